"""The whole chain as a user runs it: `dvc repro` with real DVC, Ray and MLflow, on four drawn images."""

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from mlflow import MlflowClient

from fcn.model import FCN
from pipeline.curves import read_curve
from pipeline.evaluation import per_image
from pipeline.models import checkpoint
from pipeline.report import gallery
from tests.project_copy import Project, stages_run
from tests.s3_server import s3_server

pytestmark = pytest.mark.early

CHAIN = ["fcn32s", "fcn16s", "fcn8s"]


def tiny(profile: dict) -> dict:
    """The sample profile on four training images, for a few steps."""
    profile["data"]["source"]["sample"] = {"num_train": 4, "num_val": 2, "image_size": 48, "seed": 1}
    profile["model"]["width"] = 0.03125
    profile["shards"]["samples_per_shard"] = 3
    profile["train"]["batch_size"] = 2
    profile["run"] = {"log_every": 1, "checkpoint_every": 2}
    for net in CHAIN:
        profile["nets"][net]["iterations"] = 4
    profile["evaluate"]["num_figures"] = 2
    return profile


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Project:
    project = Project(tmp_path_factory.mktemp("project"))
    project.use_profile("tiny", tiny(project.profile("sample")))
    project.log = project.run("dvc", "repro")
    return project


def models(project: Project) -> dict[str, dict]:
    folder = project.folder / "models" / "tiny"
    return {net: checkpoint.load(folder / f"{net}.pt", "model")[0] for net in CHAIN}


def test_every_net_is_trained_and_scored(project):
    for net in CHAIN:
        scores = json.loads((project.folder / "metrics" / "tiny" / f"{net}.json").read_text("utf-8"))
        assert {"pixel_acc", "mean_acc", "mean_iu", "fw_iu", "class_iu", "num_images"} <= set(scores)
        assert scores["num_images"] == 2
        assert 0 <= scores["mean_iu"] <= scores["pixel_acc"] <= 1
        images = per_image.read(project.folder / "metrics" / "tiny" / f"{net}.parquet")
        right, label, _ = images.whole.sum((0, 2)).tolist()
        assert scores["pixel_acc"] == right / label
        assert len(images.keys) == 2
        curve = read_curve(project.folder / "curves" / "tiny" / f"{net}.json")
        assert curve.of("loss")[0] == [1, 2, 3, 4]
        assert curve.parent == CHAIN[max(0, CHAIN.index(net) - 1)] or curve.parent == "backbone"
        shown = gallery.read(project.folder / "figures" / "tiny" / net / "gallery")
        assert shown.model_sha256 == scores["model_sha256"]
    page = (project.folder / "reports" / "tiny" / "index.html").read_text("utf-8")
    assert all(key in page for key in shown.keys)
    report = (project.folder / "reports" / "tiny" / "README.md").read_text("utf-8")
    rows = [[cell.strip() for cell in line.split("|")[1:]] for line in report.splitlines() if "|" in line]
    score = f"{scores['mean_iu']:.3f} [{scores['mean_iu_low']:.3f}, {scores['mean_iu_high']:.3f}]"
    assert ["fcn8s", score] in [row[:2] for row in rows]
    assert ["fcn8s - fcn16s", "mean_iu"] in [row[:2] for row in rows]
    assert "No image of val is trained on." in report


def test_each_net_names_the_one_it_started_from(project):
    files = models(project)
    assert [files[net]["lineage"]["parent"] for net in CHAIN] == ["backbone", "fcn32s", "fcn16s"]
    assert files["fcn8s"]["lineage"]["chain"] == files["fcn32s"]["lineage"]["identity"]
    for net, stride in zip(CHAIN, (32, 16, 8), strict=True):
        model = FCN(**files[net]["model"])
        assert model.stride == stride
        model.load_state_dict(files[net]["state_dict"])
        (seen,) = files[net]["trained_on"]
        assert seen["keys"] == [f"sbd_train_{number:06d}" for number in range(4)]


def test_workers_show_step_loss_rate_and_time_left(project):
    assert "fcn8s  4/4  loss " in project.log
    assert "% data wait  0:00 left" in project.log


def test_mlflow_has_a_run_for_each_net_with_curve_scores_params_tags_and_figure(project):
    client = MlflowClient(f"sqlite:///{project.folder / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("fcn-tiny")
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    assert sorted(runs) == ["data", *sorted(CHAIN)]
    commit = project.run("git", "rev-parse", "HEAD").strip()
    for net in CHAIN:
        run = runs[net]
        scores = json.loads((project.folder / "metrics" / "tiny" / f"{net}.json").read_text("utf-8"))
        assert run.info.status == "FINISHED"
        assert run.data.metrics["mean_iu_low"] == scores["mean_iu_low"]
        files = {file.path for file in client.list_artifacts(run.info.run_id)}
        assert {f"{net}.json", f"{net}.parquet"} <= files
        assert run.data.metrics["mean_iu"] == pytest.approx(scores["mean_iu"])
        assert run.data.metrics["iu/background"] == pytest.approx(scores["class_iu"]["background"])
        curve = client.get_metric_history(run.info.run_id, "loss")
        assert [point.step for point in curve] == [1, 2, 3, 4]
        assert run.data.params["train.batch_size"] == "2"
        assert run.data.tags["git_commit"] == commit
        assert run.data.tags["parent"] in ("backbone", "fcn32s", "fcn16s")
        assert len(run.data.tags["data_digest"]) == 64
        figures = {Path(file.path).name for file in client.list_artifacts(run.info.run_id, "figures")}
        drawn = {"best.png", "class_iu.png", "confusion.csv", "confusion.png", "curve.png", "predictions.png"}
        assert figures == drawn | {"worst.png"}
    # score_fr begins at zero, so the first loss is ln 5 per pixel
    first = client.get_metric_history(runs["fcn32s"].info.run_id, "loss")[0].value
    assert first == pytest.approx(torch.log(torch.tensor(5.0)).item(), abs=1e-4)


def test_a_second_repro_does_nothing(project):
    assert project.will_run() == []


@pytest.mark.parametrize(
    ("section", "key", "stages"),
    [
        ("evaluate", "num_figures", ["evaluate@fcn32s", "evaluate@fcn16s", "evaluate@fcn8s", "report"]),
        ("train", "seed", ["train@fcn32s", "train@fcn16s", "train@fcn8s"]),
        ("run", "log_every", []),
        ("shards", "samples_per_shard", ["shard"]),
        ("backbone", "seed", ["backbone"]),
        ("data", "allow_leak", ["inspect", "evaluate@fcn32s", "evaluate@fcn16s", "evaluate@fcn8s"]),
    ],
)
def test_a_changed_value_concerns_the_stages_that_read_it(project, section, key, stages):
    """--dry names those whose parameters changed; what comes after them runs if their outputs differ."""
    profile = project.profile("tiny")
    before = project.profile("tiny")
    changed = {"allow_leak": ["To see what a leak does."]}
    profile[section][key] = changed.get(key) or profile[section].get(key, 2) + 1
    project.use_profile("tiny", profile)
    assert sorted(project.will_run()) == sorted(stages)
    project.use_profile("tiny", before)


@pytest.mark.slow
def test_a_new_seed_of_the_shards_shards_again(project):
    profile = project.profile("tiny")
    manifest = project.folder / "data" / "tiny" / "shards" / "train" / "manifest.parquet"
    before = manifest.read_bytes()
    profile["shards"]["seed"] += 1
    project.use_profile("tiny", profile)
    assert stages_run(project.run("dvc", "repro", "shard")) == ["shard"]
    assert manifest.read_bytes() != before
    profile["shards"]["seed"] -= 1
    project.use_profile("tiny", profile)
    project.run("dvc", "repro", "shard")
    assert manifest.read_bytes() == before


def test_results_are_seen_by_dvc_and_not_by_git(project):
    assert "mean_iu" in project.run("dvc", "metrics", "show")
    assert "train@fcn32s" in project.run("dvc", "dag")
    plots = json.loads(project.run("dvc", "plots", "show", "--json"))
    assert sorted(plots["data"]) == sorted(f"curves/tiny/{net}.json" for net in CHAIN)
    assert all(plots["data"].values())
    changed = {line.split()[-1] for line in project.run("git", "status", "--porcelain").splitlines()}
    assert changed == {"params.yaml", "profiles/tiny.yaml", "dvc.lock"}


def test_the_pipeline_lies_where_the_stages_look(project):
    """What ran is the copy, not the checkout the tests run from."""
    assert (project.folder / "runs" / "tiny").is_dir()
    assert not Path("runs", "tiny").exists()


@pytest.mark.slow
def test_another_learning_rate_retrains_its_net_and_what_starts_from_it(project):
    profile = project.profile("tiny")
    before = models(project)
    profile["nets"]["fcn16s"]["lr"] *= 2
    project.use_profile("tiny", profile)
    log = project.run("dvc", "repro")
    ran = stages_run(log)
    assert ran[:4] == ["train@fcn16s", "train@fcn8s", "evaluate@fcn16s", "evaluate@fcn8s"]
    assert ran[4:] in ([], ["report"])  # after so few steps the scores may have come out the same
    after = models(project)
    assert [before[net]["lineage"] == after[net]["lineage"] for net in CHAIN] == [True, False, False]
    assert project.will_run() == []


@pytest.mark.slow
def test_another_val_trains_nothing_anew_and_a_val_that_is_trained_on_stops_the_chain(project):
    profile = project.profile("tiny")
    val = profile["data"]["splits"]["val"]
    val["include"] = ["voc2012/train"]
    project.use_profile("tiny", profile)
    ran = stages_run(project.run("dvc", "repro"))
    assert ran[:2] == ["shard", "inspect"]
    assert {stage.partition("@")[0] for stage in ran[2:]} <= {"evaluate", "report"}

    val["include"] = ["sbd/train"]
    project.use_profile("tiny", profile)
    log = project.run("dvc", "repro", fails=True)
    assert stages_run(log) == ["shard", "inspect"]
    assert "error: 4 images of val are in train: sbd_train_000000, sbd_train_000001, " in log
    assert stages_run(project.run("dvc", "repro", "train@fcn32s", fails=True)) == ["inspect"]

    profile["data"]["allow_leak"] = ["To see what a leak does."]
    project.use_profile("tiny", profile)
    log = project.run("dvc", "repro", "evaluate@fcn32s")
    assert stages_run(log) == ["inspect", "train@fcn32s", "evaluate@fcn32s"]
    assert log.count("warning: LEAK: 4 images of val are in ") == 2  # what inspect and evaluate say
    scores = json.loads((project.folder / "metrics" / "tiny" / "fcn32s.json").read_text("utf-8"))
    assert scores["num_leaked"] == scores["num_images"] == 4
    client = MlflowClient(f"sqlite:///{project.folder / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("fcn-tiny")
    newest = client.search_runs([experiment.experiment_id], max_results=1)[0]
    assert newest.info.run_name == "fcn32s"
    assert newest.data.tags["allow_leak"] == "To see what a leak does."
    assert newest.data.metrics["num_leaked"] == 4


@pytest.mark.slow
def test_where_val_chooses_the_net_another_val_trains_again(project):
    before = project.profile("tiny")
    profile = project.profile("tiny")
    profile["train"] |= {"keep": "best", "best_by": "loss", "validate_every": 1, "validate_images": 2}
    project.use_profile("tiny", profile)
    assert stages_run(project.run("dvc", "repro", "train@fcn32s")) == ["inspect", "train@fcn32s"]
    assert stages_run(project.run("dvc", "repro", "train@fcn32s")) == []
    kept = models(project)["fcn32s"]["lineage"]["kept"]
    losses = read_curve(project.folder / "curves" / "tiny" / "fcn32s.json").of("val_loss")[1]
    assert kept["step"] == 1 + losses.index(min(losses))
    profile["data"]["splits"]["val"]["include"] = ["voc2012/train"]
    project.use_profile("tiny", profile)
    assert stages_run(project.run("dvc", "repro", "train@fcn32s")) == ["shard", "inspect", "train@fcn32s"]
    project.use_profile("tiny", before)
    project.run("dvc", "repro")


@pytest.mark.slow
def test_of_two_repros_at_once_one_runs_and_the_other_is_told_so(project):
    profile = project.profile("tiny")
    profile["shards"]["seed"] += 1
    project.use_profile("tiny", profile)

    def repro(_: int) -> str:
        return project.run("sh", "-c", "dvc repro shard || echo ended with $?")

    with ThreadPoolExecutor() as pool:
        logs = list(pool.map(repro, range(2)))
    assert sorted(log.count("Running stage 'shard'") for log in logs) == [0, 1]
    refused = [log for log in logs if "ended with" in log]
    assert all("another DVC process" in log or "busy" in log for log in refused)
    assert stages_run(project.run("dvc", "repro", "shard")) == []
    profile["shards"]["seed"] -= 1
    project.use_profile("tiny", profile)
    project.run("dvc", "repro", "shard")


@pytest.mark.slow
def test_shards_in_a_bucket_give_the_same_nets_and_scores_as_shards_here(project, tmp_path):
    elsewhere = Project(tmp_path)
    profile = tiny(elsewhere.profile("sample"))
    with s3_server() as bucket:
        profile["shards"]["destination"] = f"{bucket}/shards"
        elsewhere.use_profile("tiny", profile)
        elsewhere.run("dvc", "repro")
    assert not list((elsewhere.folder / "data" / "tiny" / "shards").rglob("*.tar"))
    project.use_profile("tiny", tiny(project.profile("sample")))
    project.run("dvc", "repro")
    here, there = models(project), models(elsewhere)
    for net in CHAIN:
        assert here[net]["lineage"]["identity"] == there[net]["lineage"]["identity"]
        for key in here[net].keys() - {"state_dict", "lineage", "origin"}:
            assert here[net][key] == there[net][key], (net, key)
        for name, tensor in here[net]["state_dict"].items():
            assert torch.equal(tensor, there[net]["state_dict"][name]), (net, name)
    scores, others = (
        json.loads((at.folder / "metrics" / "tiny" / "fcn8s.json").read_text("utf-8"))
        for at in (project, elsewhere)
    )
    # The model's file says where it comes from, which is not the same
    del scores["model_sha256"], others["model_sha256"]
    assert scores == others


@pytest.mark.slow
def test_a_damaged_object_of_dvcs_cache_is_named_by_the_stage_that_reads_it(project):
    model = project.folder / "models" / "tiny" / "fcn8s.pt"
    name = hashlib.md5(model.read_bytes()).hexdigest()
    cached = project.folder / ".dvc" / "cache" / "files" / "md5" / name[:2] / name[2:]
    whole = cached.read_bytes()
    model.unlink()
    cached.chmod(0o644)
    cached.write_bytes(
        whole[: len(whole) // 2] + bytes([whole[len(whole) // 2] ^ 1]) + whole[len(whole) // 2 + 1 :]
    )
    project.run("dvc", "checkout", "models/tiny/fcn8s.pt")  # which sees nothing
    said = project.run("dvc", "repro", "--force", "--single-item", "evaluate@fcn8s", fails=True)
    assert "models/tiny/fcn8s.pt" in said
    assert "Traceback" not in said
    cached.write_bytes(whole)
    model.write_bytes(whole)
