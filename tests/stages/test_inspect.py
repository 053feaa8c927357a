"""The leak guard of the stages inspect and evaluate, run in this process on a drawn data set."""

import json
import shutil
import sys
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
from mlflow import MlflowClient
from PIL import Image
from scipy.io import loadmat, savemat

from fcn.model import FCN
from pipeline import config
from pipeline.datasets import sbd, synthetic, voc
from pipeline.errors import DatasetError, LeakError
from pipeline.models import backbone, checkpoint
from pipeline.shards.read import open_shards
from pipeline.training import provenance
from pipeline.training.prepare import make_job
from stages import evaluate, inspect, shard
from tests.conftest import ROOT
from tests.project_copy import yaml

LEAKED = "voc_val_000001"
REASON = "To see what a leak does to a score."
FILES = {"inspection.json", "inspection.md", "inspection.png", "leaks.json", "leaks.md", "verdict.json"}


def write_profile(root: Path, **data) -> None:
    profile = yaml.load((ROOT / "profiles" / "sample.yaml").read_text("utf-8"))
    profile["data"] |= data
    with (root / "profiles" / "small.yaml").open("w") as file:
        yaml.dump(profile, file)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory) -> Path:
    """A project's root as after the download stage."""
    root = tmp_path_factory.mktemp("drawn")
    (root / "params.yaml").write_text("profile: small\n")
    (root / "profiles").mkdir()
    synthetic.draw(root / "data" / "small" / "raw", num_train=3, num_val=2, image_size=48, seed=1)
    write_profile(root)
    return root


@pytest.fixture
def root(drawn: Path, tmp_path: Path, monkeypatch) -> Path:
    """The project, in which stages run; its tracking server is down."""
    root = Path(shutil.copytree(drawn, tmp_path / "project"))
    monkeypatch.chdir(root)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    return root


def results(root: Path) -> dict:
    folder = root / "data" / "small" / "inspection"
    assert {path.name for path in folder.iterdir()} | {"verdict.json"} == FILES
    return {path.stem: json.loads(path.read_text("utf-8")) for path in folder.glob("*.json")}


def leak(root: Path, name: str = LEAKED, *, mirrored: bool = False) -> None:
    """Adds a validation image to what is trained on, under the same or another name."""
    raw = root / "data" / "small" / "raw"
    folder = sbd.root(raw)
    photo, copy = voc.root(raw) / "JPEGImages" / f"{LEAKED}.jpg", folder / "img" / f"{name}.jpg"
    if mirrored:
        with Image.open(photo) as image:
            image.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(copy, quality=60)
    else:
        shutil.copy(photo, copy)
    shutil.copy(folder / "cls" / "sbd_train_000000.mat", folder / "cls" / f"{name}.mat")
    with (folder / "train.txt").open("a") as file:
        file.write(f"{name}\n")


def test_a_clean_data_set_passes_and_its_tables_stand_in_the_folder_and_in_the_log(root: Path, capsys):
    shard.main()
    inspect.main()
    found = results(root)
    assert found["verdict"] == {"leak": "none"}
    assert found["leaks"]["leak"]["num_images"] == 0
    assert (found["inspection"]["train"]["num_images"], found["inspection"]["val"]["num_images"]) == (3, 2)
    printed = capsys.readouterr()
    for name in ("inspection", "leaks"):
        assert (root / "data" / "small" / "inspection" / f"{name}.md").read_text("utf-8") in printed.out
    assert "kept in runs/small/.tracking" in printed.err  # MLflow is down: only a warning
    with Image.open(root / "data" / "small" / "inspection" / "inspection.png") as picture:
        picture.load()


def test_the_verdict_on_which_training_depends_names_val_only_where_val_decides_what_is_kept(root: Path):
    shard.main()
    path = root / "profiles" / "small.yaml"
    profile = yaml.load(path.read_text("utf-8"))
    profile["train"] |= {"patience": 2, "validate_every": 50}
    with path.open("w") as file:
        yaml.dump(profile, file)
    inspect.main()
    digest = open_shards(root / "data" / "small" / "shards" / "val").digest
    assert results(root)["verdict"] == {"leak": "none", "chosen_on": digest}


@pytest.mark.parametrize(
    ("name", "ids"), [(LEAKED, f"in train: {LEAKED};"), ("mine", f"in train: {LEAKED} (mine in train);")]
)
def test_an_image_in_train_and_val_is_refused_with_its_id_and_the_tables_are_there(root: Path, name, ids):
    leak(root, name)
    shard.main()
    with pytest.raises(LeakError, match=r"data\.splits\.train\.exclude") as error:
        inspect.main()
    assert ids in str(error.value)
    found = results(root)
    assert "verdict" not in found  # without which nothing trains
    assert found["leaks"]["leak"] == {"num_images": 1, "id_in_train": {LEAKED: name}}


def test_a_leak_that_is_allowed_passes_loudly_and_stands_in_mlflow_with_all_files(
    root: Path, monkeypatch, capsys
):
    uri = f"sqlite:///{root / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    leak(root)
    write_profile(root, allow_leak=[REASON])
    shard.main()
    inspect.main()
    inspect.main()  # `dvc repro -f`: the same run again
    assert f"warning: LEAK: 1 images of val are in train: {LEAKED}; allowed by" in capsys.readouterr().err
    assert REASON in (root / "data" / "small" / "inspection" / "leaks.md").read_text("utf-8")
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("fcn-small")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.run_name, run.info.status) == ("data", "FINISHED")
    assert (run.data.tags["leak"], run.data.tags["allow_leak"]) == ("allowed", REASON)
    assert run.data.metrics["num_leaked"] == 1
    assert run.data.metrics["train/num_images"] == 4
    files = {file.path for file in client.list_artifacts(run.info.run_id)}
    assert files == FILES - {"inspection.png"} | {"figures"}
    digests = {split: open_shards(root / "data/small/shards" / split).digest for split in ("train", "val")}
    inputs = {one.tags[0].value: one.dataset for one in run.inputs.dataset_inputs}
    assert {split: one.digest for split, one in inputs.items()} == {s: d[:36] for s, d in digests.items()}
    assert inputs["train"].name == "small-train"


@pytest.mark.parametrize("choice", ["warn", "refuse", "ignore"])
def test_a_mirrored_image_of_val_in_train_is_a_warning_a_refusal_or_nothing_by_choice(
    root: Path, choice: str, capsys
):
    leak(root, "mine", mirrored=True)
    write_profile(root, near_duplicates=choice)
    shard.main()
    with pytest.raises(LeakError, match="mine") if choice == "refuse" else nullcontext():
        inspect.main()
    folder = root / "data" / "small" / "inspection"
    found = json.loads((folder / "leaks.json").read_text("utf-8"))
    assert found["leak"]["num_images"] == 0
    assert (folder / "verdict.json").exists() == (choice != "refuse")
    pairs = [(pair["val"], pair["train"], pair["turn"]) for pair in found["near_duplicates"]["pairs"]]
    assert pairs == ([] if choice == "ignore" else [(LEAKED, "mine", "mirrored")])
    is_warned = f"{LEAKED} (mine, mirrored)" in capsys.readouterr().err
    assert is_warned == (choice == "warn")
    assert (folder / "near_duplicates.png").exists() == (choice != "ignore")
    if choice != "ignore":
        assert "mine" in (folder / "leaks.md").read_text("utf-8")
        with Image.open(folder / "near_duplicates.png") as picture:
            picture.load()


def test_masks_of_0_and_255_stop_the_chain_before_training(root: Path):
    """As many tools write binary masks: 255 is void here, so that the only class beside background has no pixel."""
    for path in (sbd.root(root / "data" / "small" / "raw") / "cls").iterdir():
        label = loadmat(path)["GTcls"][0, 0]["Segmentation"]
        savemat(path, {"GTcls": {"Segmentation": np.where(label > 0, 255, 0).astype(np.uint8)}})
    write_profile(root, classes=["background", "lesion", "b", "c", "d"])
    shard.main()
    with pytest.raises(DatasetError, match=r"lesion.*255.*write 1 into the masks"):
        inspect.main()
    (root / "models" / "small").mkdir(parents=True)
    profile = config.load()[1]
    backbone.write_random(root / "models" / "small" / "backbone.pt", profile.model.arguments(), seed=0)
    with pytest.raises(DatasetError, match="lesion"):
        make_job("small", profile, "fcn32s", root)


def write_model(root: Path, split: str | None) -> None:
    """A net that was trained on a split, or whose file does not list its training images."""
    model = {
        "backbone": "vgg16",
        "padding": "tight",
        "width": 1 / 64,
        "fc6_kernel": 3,
        "num_classes": 5,
        "stride": 32,
    }
    content = {
        "model": model,
        "classes": list(synthetic.CLASSES),
        "lineage": {"net": "fcn32s"},
        "state_dict": FCN(**model).state_dict(),
    }
    if split:
        content["trained_on"] = provenance.records(open_shards(root / "data/small/shards" / split), [])
    checkpoint.save(root / "models" / "small" / "fcn32s.pt", "model", content)


def test_evaluation_reads_the_training_images_from_the_model_file_alone(root: Path, monkeypatch, capsys):
    shard.main()
    write_model(root, "val")
    monkeypatch.setattr(sys, "argv", ["evaluate", "fcn32s"])
    with pytest.raises(LeakError, match=r"2 images of val .* fcn32s .*: voc_val_000000, voc_val_"):
        evaluate.main()
    assert not (root / "metrics").exists()
    write_profile(root, allow_leak=[REASON])
    evaluate.main()
    assert REASON in capsys.readouterr().err
    metrics = root / "metrics" / "small" / "fcn32s.json"
    assert json.loads(metrics.read_text("utf-8"))["num_leaked"] == 2
    write_profile(root)
    for split, number in (("train", 0), (None, None)):
        write_model(root, split)
        evaluate.main()
        assert json.loads(metrics.read_text("utf-8"))["num_leaked"] == number
    assert "warning: fcn32s" in capsys.readouterr().err


@pytest.mark.parametrize("tuning", [0.4, ["sbd/mine"]])
def test_images_to_choose_settings_on_are_in_no_other_split_and_every_model_records_them(root: Path, tuning):
    (sbd.root(root / "data" / "small" / "raw") / "mine.txt").write_text("sbd_train_000001\n")
    write_profile(root, tuning=tuning)
    shard.main()
    inspect.main()
    opened = {split: open_shards(root / "data/small/shards" / split) for split in ("train", "tuning", "val")}
    assert [len(shards) for shards in opened.values()] == [2, 1, 2]
    keys = [key for shards in opened.values() for key in shards.keys]
    assert len(set(keys)) == 5
    assert tuning == 0.4 or opened["tuning"].keys == ["sbd_train_000001"]
    found = results(root)
    assert found["verdict"] == {"leak": "none", "tuning": opened["tuning"].digest}
    assert found["leaks"]["tuning"] == {"num_images": 1, "id_in_tuning": {}, "id_in_train": {}}
    assert found["inspection"]["tuning"]["num_images"] == 1
    profile = config.load()[1]
    backbone.write_random(root / "models" / "small" / "backbone.pt", profile.model.arguments(), seed=0)
    job = make_job("small", profile, "fcn32s", root)
    assert (job.validation, job.validation_split) == (root / "data/small/shards/tuning", "tuning")
    assert [(record["split"], record["keys"]) for record in job.inherited] == [
        ("tuning", opened["tuning"].keys)
    ]


def test_settings_are_not_chosen_on_an_image_of_val_under_any_name(root: Path):
    leak(root, "mine")
    folder = sbd.root(root / "data" / "small" / "raw")
    (folder / "mine.txt").write_text("mine\n")
    write_profile(root, tuning=["sbd/mine"])
    shard.main()
    with pytest.raises(LeakError, match=rf"1 images of val are in tuning: {LEAKED} \(mine in tuning\)"):
        inspect.main()
    assert "verdict" not in results(root)
    leak(root)
    (folder / "mine.txt").write_text(f"{LEAKED}\n")
    with pytest.raises(LeakError, match=rf"data\.tuning holds 1 images of val: {LEAKED}"):
        shard.main()


def test_a_model_is_refused_on_images_that_its_settings_were_chosen_on(root: Path, monkeypatch):
    shard.main()
    write_model(root, "train")
    model = root / "models" / "small" / "fcn32s.pt"
    content, _ = checkpoint.load(model, "model")
    content["trained_on"] = provenance.with_tuning(
        open_shards(root / "data/small/shards/val"), content["trained_on"]
    )
    checkpoint.save(model, "model", content)
    monkeypatch.setattr(sys, "argv", ["evaluate", "fcn32s"])
    with pytest.raises(LeakError, match=r"2 images of val .* tuned on"):
        evaluate.main()
