"""Ray is tested elsewhere: here the one worker runs in this process."""

import copy
import hashlib
import io
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from ruamel.yaml import YAML

from fcn.model import FCN
from pipeline import git, tracking
from pipeline.cluster import ray_workers
from pipeline.config import CHAIN, Profile
from pipeline.curves import read_curve, read_points
from pipeline.datasets import synthetic
from pipeline.distributed.rank import SINGLE
from pipeline.errors import CheckpointError, DatasetError, LeakError, UserError
from pipeline.models import backbone, checkpoint
from pipeline.shards.read import open_shards
from pipeline.shards.sample import Sample
from pipeline.shards.write import write_shards
from pipeline.training import driver, longer, loop, prepare
from pipeline.training.driver import train_net
from pipeline.training.loop import train_worker
from pipeline.training.prepare import make_job

pytestmark = pytest.mark.early


@pytest.fixture(scope="module")
def values(request) -> dict[str, Any]:
    """The sample profile, made tiny."""
    values = YAML(typ="safe").load(request.config.rootpath / "profiles" / "sample.yaml")
    values["model"] |= {"width": 1 / 64, "batch_norm": False}
    values["train"] |= {"num_workers": 1, "batch_size": 2}
    values["run"] = {"log_every": 1, "log_every_s": 0.0, "checkpoint_every": 2}
    values["nets"] = {net: {"lr": 1e-3, "iterations": 4} for net in CHAIN}
    return values


@pytest.fixture
def profile(values):
    """The tiny profile with some values changed, given by dotted names."""

    def make(changes: dict[str, Any] | None = None) -> Profile:
        changed = copy.deepcopy(values)
        for where, value in (changes or {}).items():
            *sections, key = where.split(".")
            section = changed
            for name in sections:
                section = section[name]
            section[key] = value
        return Profile.model_validate(changed)

    return make


def write_data(
    root: Path,
    seed: int,
    classes=synthetic.CLASSES,
    keys: str = "012",
    profile: str = "tiny",
    split: str = "train",
) -> None:
    def load(key: str) -> Sample:
        image, label = synthetic.picture("sbd_train", int(key), 32, seed)
        file = io.BytesIO()
        Image.fromarray(image).save(file, "JPEG")
        return Sample.checked(key, file.getvalue(), label)

    dest = root / "data" / profile / "shards" / split
    write_shards(list(keys), load, dest, split=split, classes=classes, samples_per_shard=2, seed=0)


@pytest.fixture(scope="module")
def template(tmp_path_factory, values) -> Path:
    root = tmp_path_factory.mktemp("template")
    write_data(root, seed=1)
    write_data(root, seed=3, keys="345", split="val")
    model = Profile.model_validate(values).model.arguments()
    backbone.write_random(root / "models" / "tiny" / "backbone.pt", model, seed=1)
    return root


@pytest.fixture
def root(tmp_path, template, monkeypatch) -> Path:
    """A project with training images and a backbone; its tracking server is down."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setattr(tracking.follow, "POLL_S", 0.05)
    return Path(shutil.copytree(template, tmp_path / "project"))


@pytest.fixture
def started(monkeypatch) -> list[str]:
    """The names of the runs that were put on workers, which here is this process."""
    names = []

    def run_workers(worker, job, *, name, storage, num_workers, **_):
        assert worker is train_worker
        assert storage == job.folder.parent
        assert storage.is_absolute()
        assert num_workers == 1
        names.append(name)
        train_worker(job, SINGLE)

    monkeypatch.setattr(ray_workers, "run_workers", run_workers)
    return names


def identity(root: Path, profile: Profile, net: str = "fcn32s") -> str:
    return make_job("tiny", profile, net, root).identity


# The identity


@pytest.mark.parametrize(
    ("where", "value"),
    [
        ("nets.fcn32s.lr", 2e-3),
        ("nets.fcn32s.iterations", 5),
        ("train.batch_size", 3),
        ("train.loss", "sum"),
        ("train.optimizer", {"name": "sgd", "weight_decay": 1e-4}),
        ("train.optimizer.weight_decay", 0.0),
        ("train.optimizer", {"name": "sgd", "momentum": 0.99, "weight_decay": 1e-2}),
        ("train.schedule", "fixed"),
        ("train.sampling", "replacement"),
        ("train.size_buckets", True),
        ("train.transforms", {"mirror": True}),
        ("train.precision", "bfloat16"),
        ("train.seed", 1),
        ("train.ema", 0.99),
        ("model.dropout", 0.4),
        ("model.padding", "reference"),
        ("model.learn_upscore", True),
        ("train.warmup", 2),
        ("train.schedule", "cosine"),
    ],
)
def test_what_changes_the_result_changes_the_runs_name(root, profile, where, value):
    assert identity(root, profile({where: value})) != identity(root, profile())


@pytest.mark.parametrize(
    ("where", "value"),
    [
        ("run.log_every", 7),
        ("run.validate_every", 2),
        ("train.num_workers", 2),
        ("train.accumulation", 2),
        ("run.checkpoint_every", 7),
        ("run.loader_workers", 3),
        ("run.max_failures", 9),
        ("nets.fcn8s.lr", 1.0),
        ("evaluate.num_figures", 1),
    ],
)
def test_what_does_not_change_the_result_keeps_the_runs_name(root, profile, where, value):
    assert identity(root, profile({where: value})) == identity(root, profile())


@pytest.mark.parametrize("choice", [{"train.keep": "best"}, {"train.patience": 3}])
def test_where_val_decides_its_images_and_the_interval_are_part_of_the_runs_name(root, profile, choice):
    choice |= {"train.validate_every": 2}
    names = []
    for seed in (1, 2):
        write_data(root, seed=seed, split="val")
        names += [identity(root, profile()), identity(root, profile(choice))]
    names.append(identity(root, profile(choice | {"train.validate_every": 3})))
    names.append(identity(root, profile(choice | {"train.validate_images": 1})))
    assert identity(root, profile(choice | {"run.validate_every": 7})) == names[3]
    assert names[0] == names[2]
    assert len(set(names)) == 5


def test_a_score_that_no_validation_image_can_have_is_refused_before_workers_start(root, profile, started):
    write_data(root, seed=1, split="val", classes=synthetic.CLASSES, keys="0")
    shown = open_shards(root / "data" / "tiny" / "shards" / "val").class_pixels
    absent = [name for name, count in zip(synthetic.CLASSES, shown, strict=True) if not count]
    choice = {"train.keep": "best", "train.validate_every": 2}
    with pytest.raises(
        DatasetError, match=rf"train\.best_by iu/{absent[0]}: .*val have no pixel of {absent[0]}"
    ):
        train_net("tiny", profile(choice | {"train.best_by": f"iu/{absent[0]}"}), "fcn32s", root)
    assert started == []


def test_other_images_another_parent_and_other_code_change_the_runs_name(
    root, profile, monkeypatch, tmp_path
):
    names = {identity(root, profile())}
    write_data(root, seed=2)
    names.add(identity(root, profile()))
    backbone.write_random(root / "models" / "tiny" / "backbone.pt", profile().model.arguments(), seed=2)
    names.add(identity(root, profile()))
    code = tmp_path / "code"
    for folder in prepare.code_that_decides():
        shutil.copytree(prepare.CODE / folder, code / folder)
    shutil.copy(prepare.CODE / "dvc.yaml", code)
    monkeypatch.setattr(prepare, "CODE", code)
    assert identity(root, profile()) in names  # the same code elsewhere
    (code / "fcn" / "loss.py").write_text("# changed\n" + (code / "fcn" / "loss.py").read_text())
    names.add(identity(root, profile()))
    assert len(names) == 4
    assert all(name.startswith("fcn32s-") for name in names)


def test_who_made_a_parent_and_where_does_not_change_the_runs_name_but_its_weights_do(root, profile, started):  # noqa: ARG001
    path = train_net("tiny", profile(), "fcn32s", root)
    name = identity(root, profile(), "fcn16s")
    content, digest = checkpoint.load(path, "model")
    elsewhere = {"git": {"git_commit": "c0ffee"}, "hardware": {"cpus": 99}}
    moved = content["lineage"] | {"parent_sha256": "0" * 64}
    assert checkpoint.save(path, "model", content | {"origin": elsewhere, "lineage": moved}) != digest
    assert identity(root, profile(), "fcn16s") == name
    content["state_dict"]["score_fr.bias"] += 1
    checkpoint.save(path, "model", content)
    assert identity(root, profile(), "fcn16s") != name


# The job


def test_a_job_says_all_a_worker_needs_with_absolute_paths(root, profile):
    job = make_job("tiny", profile(), "fcn32s", root)
    assert job.model == profile().model.arguments() | {"num_classes": 5, "stride": 32}
    assert (job.recipe.lr, job.recipe.iterations, job.train.batch_size, job.train.optimizer.name) == (
        1e-3,
        4,
        2,
        "adamw",
    )
    assert job.parent == root / "models" / "tiny" / "backbone.pt"
    assert job.folder == root / "runs" / "tiny" / job.identity
    assert all(path.is_absolute() for path in (job.parent, job.shards, job.folder))
    digest = checkpoint.load(job.parent, "backbone")[1]
    assert job.lineage["parent_sha256"] == digest
    assert (job.lineage["net"], job.lineage["parent"]) == ("fcn32s", "backbone")


def test_a_job_knows_the_commit_of_the_code_without_a_say_in_its_name(root, profile, monkeypatch):
    bare = make_job("tiny", profile(), "fcn32s", root)
    monkeypatch.setattr(prepare.git, "find_commit", lambda _: git.Commit("c0ffee", False))
    job = make_job("tiny", profile(), "fcn32s", root)
    assert (bare.git, job.git) == ({}, {"git_commit": "c0ffee", "git_dirty": "false"})
    assert job.identity == bare.identity


def test_with_the_batch_rule_a_job_follows_the_run_of_one_image_a_step(root, profile):
    changes = {
        "train.batch_rule": True,
        "train.batch_size": 8,
        "nets.fcn32s": {"lr": 1e-10, "iterations": 100},
    }
    changes["train.optimizer"] = {"name": "sgd", "momentum": 0.99, "weight_decay": 5e-4}
    job = make_job("tiny", profile(changes), "fcn32s", root)
    assert job.recipe.lr == pytest.approx(61.8e-10, rel=1e-3)
    assert job.train.optimizer.momentum == pytest.approx(0.9227, rel=1e-4)
    assert job.recipe.iterations == 13  # of 8 images: as many as 100 of one, rounded up
    assert make_job("tiny", profile(changes | {"train.warmup": 9}), "fcn32s", root).train.warmup == 2
    plain = make_job("tiny", profile(changes | {"train.batch_rule": False}), "fcn32s", root)
    assert (plain.recipe.lr, plain.train.optimizer.momentum, plain.recipe.iterations) == (1e-10, 0.99, 100)


def test_nets_learned_all_at_once_start_from_the_backbone(root, profile, started):
    at_once = profile({"model.at_once": True})
    job = make_job("tiny", at_once, "fcn8s", root)
    assert job.parent == root / "models" / "tiny" / "backbone.pt"
    assert job.lineage["parent"] == "backbone"
    train_net("tiny", at_once, "fcn8s", root)
    assert started == [job.identity]


def test_shards_of_other_classes_than_the_profile_says_are_refused(root, profile):
    write_data(root, seed=1, classes=("background", "a", "b", "c", "d"))
    with pytest.raises(CheckpointError, match=r"background, a, .*data\.classes.*background, disc"):
        make_job("tiny", profile(), "fcn32s", root)


def test_a_parent_net_of_other_classes_than_the_shards_is_refused(root, profile):
    parent, others = root / "models" / "tiny" / "fcn32s.pt", list(synthetic.CLASSES)[::-1]
    options = profile().model.arguments() | {"num_classes": 5, "stride": 32}
    checkpoint.save(parent, "model", {"model": options, "classes": others, "lineage": {}, "state_dict": {}})
    with pytest.raises(CheckpointError, match=rf"{parent} is {others[0]}.*train.*background"):
        make_job("tiny", profile(), "fcn16s", root)


@pytest.mark.parametrize("shown_only", [True, False])
def test_validation_images_of_other_classes_than_the_training_images_are_refused(root, profile, shown_only):
    write_data(root, seed=3, split="val", classes=("background", "a", "b", "c", "d"))
    changes = {"run.validate_every": 2} if shown_only else {"train.keep": "best", "train.validate_every": 2}
    with pytest.raises(CheckpointError, match=r"class 1 of .*train.*val it is a"):
        make_job("tiny", profile(changes), "fcn32s", root)


def test_a_net_whose_parent_is_not_trained_yet_is_refused(root, profile):
    with pytest.raises(CheckpointError, match=r"fcn32s\.pt is missing; `dvc repro` makes it"):
        make_job("tiny", profile(), "fcn16s", root)


def test_a_net_that_cannot_compute_a_step_is_refused_before_workers_start(root, profile, started):
    impossible = profile({"model.padding": "reference", "model.fc6_kernel": 15})
    with pytest.raises(UserError, match=r"32x32 .*model\.fc6_kernel"):
        train_net("tiny", impossible, "fcn32s", root)
    assert started == []
    assert not list((root / "runs").rglob("attempt"))


# Runs


def test_the_chain_is_trained_link_by_link_and_each_model_names_its_parent(root, profile, started):
    digests = {}
    for net in CHAIN:
        path = train_net("tiny", profile(), net, root)
        assert path == root / "models" / "tiny" / f"{net}.pt"
        content, digests[net] = checkpoint.load(path, "model")
        assert content["lineage"]["net"] == net
        assert content["classes"] == list(synthetic.CLASSES)
        assert content["model"]["stride"] == int(net[3:-1])
    assert content["lineage"]["parent_sha256"] == digests["fcn16s"]
    assert content["lineage"]["chain"] == started[0]
    assert [name.split("-")[0] for name in started] == list(CHAIN)


def test_a_model_says_what_it_was_trained_on_and_its_parents_too(root, profile, started):  # noqa: ARG001
    def images(net: str) -> list[list[str]]:
        content, _ = checkpoint.load(train_net("tiny", profile(), net, root), "model")
        return [record["keys"] for record in content["trained_on"]]

    assert images("fcn32s") == [["0", "1", "2"]]
    assert images("fcn16s") == [["0", "1", "2"]]
    shutil.rmtree(root / "data")
    write_data(root, seed=4, keys="34")
    assert images("fcn8s") == [["3", "4"], ["0", "1", "2"]]


def test_a_finished_run_is_trained_anew_to_the_same_weights(root, profile, started):
    path = train_net("tiny", profile(), "fcn32s", root)
    folder = root / "runs" / "tiny" / started[0]
    first, attempt = path.read_bytes(), (folder / "attempt").read_text()
    path.unlink()
    train_net("tiny", profile(), "fcn32s", root)
    assert started == [folder.name] * 2
    assert path.read_bytes() == first
    assert (folder / "attempt").read_text() != attempt  # a run of its own in MLflow
    assert [point.step for point in read_points(folder / "curves.jsonl", -1)] == [1, 2, 3, 4]
    assert len((folder / "curves.jsonl").read_text().splitlines()) == 4


@pytest.mark.parametrize("is_committed", [True, False])
def test_a_finished_run_is_trained_anew_only_if_dvc_has_its_model(root, profile, started, is_committed):
    """The disk can be full, or a kill come, after the stage has ended and before DVC has copied its output."""
    path = train_net("tiny", profile(), "fcn32s", root)
    md5 = hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest() if is_committed else "0" * 32
    (root / "dvc.lock").write_text(f"outs:\n- path: {path.relative_to(root)}\n  md5: {md5}\n")
    first = path.read_bytes()
    path.unlink()  # as DVC does before it runs a stage
    train_net("tiny", profile(), "fcn32s", root)
    assert len(started) == (2 if is_committed else 1)
    assert path.read_bytes() == first


def test_a_trained_run_whose_driver_died_is_only_handed_over(root, profile, started):
    path = train_net("tiny", profile(), "fcn32s", root)
    folder = root / "runs" / "tiny" / started[0]
    expected, attempt = path.read_bytes(), (folder / "attempt").read_text()
    path.unlink()
    (folder / "finished").unlink()
    train_net("tiny", profile(), "fcn32s", root)
    assert len(started) == 1
    assert path.read_bytes() == expected
    assert (folder / "finished").exists()
    assert (folder / "attempt").read_text() == attempt


def test_a_damaged_final_model_is_made_again_from_the_last_checkpoint(root, profile, started, capsys):
    path = train_net("tiny", profile(), "fcn32s", root)
    folder = root / "runs" / "tiny" / started[0]
    expected = checkpoint.load(path, "model")[1]
    (folder / "finished").unlink()
    final = bytearray((folder / "final.pt").read_bytes())
    final[len(final) // 2] ^= 1
    (folder / "final.pt").write_bytes(final)
    capsys.readouterr()
    train_net("tiny", profile(), "fcn32s", root)
    assert len(started) == 2
    assert "resumed from step 4" in capsys.readouterr().out
    assert checkpoint.load(path, "model")[1] == expected


def test_a_run_that_was_stopped_goes_on_under_the_same_name_and_attempt(root, profile, started, monkeypatch):
    working = ray_workers.run_workers

    def killed(worker, job, **settings):
        working(worker, job, **settings)
        (job.folder / "final.pt").unlink()
        (job.folder / "step-00000004.pt").unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ray_workers, "run_workers", killed)
        with pytest.raises(KeyboardInterrupt):
            train_net("tiny", profile(), "fcn32s", root)
    folder = root / "runs" / "tiny" / started[0]
    assert not (root / "models" / "tiny" / "fcn32s.pt").exists()
    attempt = (folder / "attempt").read_text()
    train_net("tiny", profile(), "fcn32s", root)
    assert started == [folder.name] * 2
    assert (folder / "attempt").read_text() == attempt


def test_an_attempt_that_was_not_written_whole_is_named_anew(tmp_path):
    (tmp_path / "attempt").touch()
    name = driver._attempt(tmp_path)
    assert len(name) == 16
    assert driver._attempt(tmp_path) == name


@pytest.mark.usefixtures("started")
def test_a_model_is_trained_though_the_tracking_server_is_down(root, profile, capsys):
    train_net("tiny", profile(), "fcn32s", root)
    lines = capsys.readouterr().err.splitlines()
    warnings = [line for line in lines if line.startswith("warning: tracking: ")]
    assert warnings[-1].endswith("is kept in runs/tiny/.tracking, and `fcn tracking replay` sends it")


def test_a_model_is_trained_though_the_tracking_database_is_damaged(root, profile, started, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    (root / "mlflow.db").write_bytes(b"no database" * 1000)
    assert train_net("tiny", profile(), "fcn32s", root).exists()
    assert len(started) == 1


def test_mlflow_gets_one_run_a_net_with_curve_recipe_and_lineage(root, profile, started, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    allowed = profile({"data.allow_leak": ["A leak on purpose."]})
    path = train_net("tiny", allowed, "fcn32s", root)
    (root / "runs" / "tiny" / started[0] / "finished").unlink()
    train_net("tiny", allowed, "fcn32s", root)  # as after a driver that died at the very end
    client = tracking.Tracker("tiny", root).client
    (run,) = client.search_runs([client.get_experiment_by_name("fcn-tiny").experiment_id])
    assert (run.info.run_name, run.info.status) == ("fcn32s", "FINISHED")
    points = client.get_metric_history(run.info.run_id, "loss")
    assert [point.step for point in points] == [1, 2, 3, 4]
    assert run.data.params["train.optimizer.name"] == "adamw"
    assert (run.data.params["lr"], run.data.params["iterations"]) == ("0.001", "4")
    assert run.data.tags["model_sha256"] == checkpoint.load(path, "model")[1]
    assert run.data.tags["identity"] == started[0]
    assert run.data.tags["allow_leak"] == "A leak on purpose."
    assert (run.data.tags["kept.keep"], run.data.tags["kept.step"]) == ("last", "4")
    assert read_curve(root / "curves" / "tiny" / "fcn32s.json").kept["step"] == 4


# Training longer

FIXED, COOLDOWN = {"train.schedule": "fixed"}, {"train.schedule": "cooldown", "train.cooldown": 0.25}
CHOOSING = FIXED | {"train.keep": "best", "train.best_by": "loss", "train.validate_every": 3}
LONGER = 14


@pytest.fixture
def straight(template, tmp_path, profile, started):  # noqa: ARG001
    """Trains fcn32s from the beginning, in a project of its own; returns the project's folder."""

    def train(changes: dict[str, Any]) -> Path:
        root = Path(shutil.copytree(template, tmp_path / "straight"))
        train_net("tiny", profile(changes), "fcn32s", root)
        return root

    return train


def results(root: Path) -> list[bytes]:
    """The net's file but for its origin, and its curve."""
    content, _ = checkpoint.load(root / "models/tiny/fcn32s.pt", "model")
    digest = checkpoint.content_digest({key: content[key] for key in content if key != "origin"})
    return [digest.encode(), (root / "curves/tiny/fcn32s.json").read_bytes()]


def end(changes: dict[str, Any], iterations: int) -> dict[str, Any]:
    return changes | {"nets.fcn32s": {"lr": 1e-3, "iterations": iterations}, "run.checkpoint_every": 3}


@pytest.mark.parametrize(
    ("before", "after", "iterations", "step"),
    [
        (FIXED, FIXED, LONGER, 8),
        (COOLDOWN, COOLDOWN, LONGER, 6),
        (FIXED, COOLDOWN, LONGER, 8),
        (FIXED, COOLDOWN, 8, 6),  # as long, and now with an end
        (COOLDOWN, FIXED, 8, 6),
        (FIXED, FIXED, 7, 6),  # shorter
        (COOLDOWN | {"train.warmup": 3}, COOLDOWN | {"train.warmup": 3}, LONGER, 6),
        (CHOOSING, CHOOSING, LONGER, 6),  # a longer run does not validate after step 8
    ],
)
def test_a_finished_run_of_another_end_goes_on_to_the_bits_of_a_straight_one(
    root, profile, started, straight, capsys, before, after, iterations, step
):
    train_net("tiny", profile(end(before, 8)), "fcn32s", root)
    folder = root / "runs" / "tiny" / started[0]
    attempt = (folder / "attempt").read_text()
    capsys.readouterr()
    train_net("tiny", profile(end(after, iterations)), "fcn32s", root)
    assert f"resumed from step {step}" in capsys.readouterr().out
    assert started == [folder.name] * 2
    assert (folder / "attempt").read_text() != attempt  # a run of its own in MLflow, with other params
    assert results(root) == results(straight(end(after, iterations)))


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (end({}, 8), end({}, LONGER)),  # poly: each rate depends on the number of steps
        (end({"train.schedule": "cosine"}, 8), end({"train.schedule": "cosine"}, LONGER)),
        (end(FIXED, 8), end(FIXED | {"train.warmup": 3}, LONGER)),
    ],
)
def test_a_run_whose_first_steps_differ_begins_again(root, profile, started, straight, capsys, before, after):
    train_net("tiny", profile(before), "fcn32s", root)
    capsys.readouterr()
    train_net("tiny", profile(after), "fcn32s", root)
    assert "resumed" not in capsys.readouterr().out
    assert len(set(started)) == 2
    assert results(root) == results(straight(after))


def test_a_run_of_another_end_that_is_killed_while_it_empties_its_folder_hands_no_older_net_over(
    root, profile, started, straight, monkeypatch
):
    train_net("tiny", profile(end(FIXED, LONGER)), "fcn32s", root)
    folder = root / "runs" / "tiny" / started[0]

    def remove_some(_: Path) -> None:
        (folder / "end.json").unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(longer.shutil, "rmtree", remove_some)
        with pytest.raises(KeyboardInterrupt):
            train_net("tiny", profile(end(FIXED, 4)), "fcn32s", root)
    train_net("tiny", profile(end(FIXED, 4)), "fcn32s", root)
    assert results(root) == results(straight(end(FIXED, 4)))


def test_a_run_that_is_shorter_than_every_checkpoint_begins_again(root, profile, started, straight, capsys):
    train_net("tiny", profile(end(FIXED, LONGER)), "fcn32s", root)
    capsys.readouterr()
    train_net("tiny", profile(end(FIXED, 4)), "fcn32s", root)
    assert "resumed" not in capsys.readouterr().out
    assert len(started) == 2
    assert results(root) == results(straight(end(FIXED, 4)))


def test_a_run_stopped_while_its_rate_falls_goes_on_from_before_if_it_is_to_be_longer(
    root, profile, started, straight, monkeypatch, capsys
):
    real = loop.Meter.show

    def stopped_at_8(meter: loop.Meter, done: int, scores: dict[str, float]) -> None:
        if done == 8:
            raise KeyboardInterrupt
        real(meter, done, scores)

    with monkeypatch.context() as patch:
        patch.setattr(loop.Meter, "show", stopped_at_8)
        with pytest.raises(KeyboardInterrupt):
            train_net("tiny", profile(end(COOLDOWN, 8) | {"run.checkpoint_every": 1}), "fcn32s", root)
    assert (root / "runs" / "tiny" / started[0] / "step-00000007.pt").exists()  # in the fall
    train_net("tiny", profile(end(COOLDOWN, LONGER)), "fcn32s", root)
    assert "resumed from step 6" in capsys.readouterr().out
    assert results(root) == results(straight(end(COOLDOWN, LONGER)))


# Starting from another net


@pytest.fixture
def start(root, profile) -> Path:
    """A net of other classes, of which no record of its images is kept; backbone.pt made of it; val is there."""
    torch.manual_seed(0)
    options = profile().model.arguments() | {"num_classes": 4, "stride": 8}
    net = FCN(**options)
    for layer in (net.score_fr, net.score_pool4, net.score_pool3):
        torch.nn.init.normal_(layer.weight, std=0.01)
    classes = ["sky", "triangle", "disc", "background"]
    content = {"model": options, "classes": classes, "lineage": {}, "state_dict": net.state_dict()}
    checkpoint.save(root / "fcn8s.pt", "model", content)
    write_start(root, profile)
    return root / "fcn8s.pt"


def write_start(root: Path, profile) -> None:
    dest, model = root / "models" / "tiny" / "backbone.pt", profile().model.arguments()
    backbone.write_from_net(dest, model, str(root / "fcn8s.pt"))


def test_the_chain_takes_from_another_net_what_it_has_and_records_it(root, profile, started, start, capsys):  # noqa: ARG001
    net = checkpoint.load(start, "model")[0]["state_dict"]
    changes = {"train.start": str(start)}
    skips = {"fcn32s": "score_fr", "fcn16s": "score_pool4", "fcn8s": "score_pool3"}
    for name, layer in skips.items():
        train_net("tiny", profile(changes), name, root)
        job = make_job("tiny", profile(changes), name, root)
        begun = loop.start_model(job).state_dict()
        weight = begun[f"{layer}.weight"]  # background, disc, square, triangle, cross
        assert torch.equal(weight[[0, 1, 3]], net[f"{layer}.weight"][[3, 2, 1]])
        assert not weight[[2, 4]].any()
        if name == "fcn32s":
            assert torch.equal(begun["backbone.fc7.weight"], net["backbone.fc7.weight"])
        else:  # the rest comes from the coarser net
            coarser, _ = checkpoint.load(job.parent, "model")
            assert torch.equal(begun["score_fr.weight"], coarser["state_dict"]["score_fr.weight"])
        content, _ = checkpoint.load(root / "models" / "tiny" / f"{name}.pt", "model")
        assert content["lineage"]["start"] == str(start)
        assert content["lineage"]["start_sha256"] == checkpoint.load(start, "model")[1]
        assert content["lineage"]["start_matched"] == "background, disc, triangle"
        assert content["lineage"]["start_new"] == "square, cross"
        assert content["lineage"]["start_dropped"] == "sky"
        assert [record["keys"] for record in content["trained_on"]] == [["0", "1", "2"], None]
    out = capsys.readouterr()
    assert out.out.count("new: square, cross; dropped: sky") == 3
    assert "does not list all its training images" in out.err


def test_a_net_at_once_takes_all_layers_of_another_one(root, profile, started):  # noqa: ARG001
    at_once = {"model.at_once": True, "train.start": str(root / "fcn8s.pt")}
    options = profile(at_once).model.arguments() | {"num_classes": 5, "stride": 8}
    net = FCN(**options)
    torch.nn.init.normal_(net.score_pool3.weight)
    content = {"model": options, "classes": list(synthetic.CLASSES), "lineage": {}, "trained_on": []}
    checkpoint.save(root / "fcn8s.pt", "model", content | {"state_dict": net.state_dict()})
    dest = root / "models" / "tiny" / "backbone.pt"
    backbone.write_from_net(dest, profile(at_once).model.arguments(), str(root / "fcn8s.pt"))
    begun = loop.start_model(make_job("tiny", profile(at_once), "fcn8s", root)).state_dict()
    assert all(torch.equal(tensor, begun[name]) for name, tensor in net.state_dict().items())


def test_a_start_that_was_trained_on_images_of_val_is_refused_before_training(root, profile, start):
    content, _ = checkpoint.load(start, "model")
    rows = [("9", 0), ("4", 1)]  # another photo, and one of val
    val = prepare.open_shards(root / "data" / "tiny" / "shards" / "val", split="val")
    pixels = dict(zip(val.keys, val.table["pixel_sha256"].to_pylist(), strict=True))
    digests = (bytes(32) if number == 0 else pixels[key] for key, number in rows)
    record = {"split": "train", "digest": "ab", "keys": ["9", "4"], "pixel_sha256": b"".join(digests).hex()}
    checkpoint.save(start, "model", content | {"trained_on": [record]})
    write_start(root, profile)
    with pytest.raises(LeakError, match=r"1 images of val .*train\.start"):
        make_job("tiny", profile({"train.start": str(start)}), "fcn32s", root)
    allowed = {"train.start": str(start), "data.allow_leak": ["A leak on purpose."]}
    assert make_job("tiny", profile(allowed), "fcn32s", root).inherited == [record]


def test_the_net_to_start_from_is_part_of_the_runs_name_and_its_path_is_not(root, profile, started, start):  # noqa: ARG001
    changes = {"train.start": str(start)}
    train_net("tiny", profile(changes), "fcn32s", root)
    before = [identity(root, profile(changes), net) for net in ("fcn32s", "fcn16s")]
    moved = start.rename(root / "moved.pt")
    model = profile().model.arguments()
    backbone.write_from_net(root / "models" / "tiny" / "backbone.pt", model, str(moved))
    changes = {"train.start": str(moved)}
    assert [identity(root, profile(changes), net) for net in ("fcn32s", "fcn16s")] == before
    content, _ = checkpoint.load(moved, "model")
    content["state_dict"]["score_pool4.weight"] += 1
    checkpoint.save(moved, "model", content)
    backbone.write_from_net(root / "models" / "tiny" / "backbone.pt", model, str(moved))
    after = [identity(root, profile(changes), net) for net in ("fcn32s", "fcn16s")]
    assert not set(before) & set(after)


def test_a_backbone_made_of_something_else_than_the_profile_names_is_refused(root, profile, start):
    for changes in ({}, {"train.start": "other.pt"}):
        with pytest.raises(CheckpointError, match=r"backbone\.pt .*fcn8s\.pt.*dvc repro"):
            make_job("tiny", profile(changes), "fcn32s", root)
    assert make_job("tiny", profile({"train.start": str(start)}), "fcn32s", root).start
