"""A logged net, loaded by MLflow alone, and its name in the registry."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from mlflow import MlflowClient

from pipeline import paths
from pipeline.errors import ResultError
from pipeline.models.model_file import load_model
from pipeline.tracking import Tracker, models, register
from tests.mlflow_server import write_database
from tests.test_structure import reached
from tests.tiny_model import write_model

# Runs in another folder and without this project on its path, as where nothing but MLflow and torch is installed
LOAD = """
import sys
sys.path[:] = [path for path in sys.path if path not in ("", {root!r})]
sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in str(finder).lower()]
for name in ("fcn", "pipeline"):
    try:
        __import__(name)
    except ImportError:
        continue
    raise SystemExit(f"{{name}} is there without MLflow's help")
import mlflow, numpy as np
mlflow.set_tracking_uri({tracking!r})
model = mlflow.pyfunc.load_model({uri!r})
images = np.load({images!r})
np.savez({out!r}, **{{name: model.predict(images[name]) for name in images}})
import pipeline
print(pipeline.__file__)
"""


def log(tracker: Tracker, path: Path, name: str = "fcn8s") -> str:
    """Logs a trained net and its scores, as the stages do; its digest."""
    digest = write_model(path, seed=len(name))
    record = tracker.record("training", name, "fcn.attempt", f"attempt-{name}", params={}, datasets={})
    tracker.log(record, {}, {"model_sha256": digest}, model=path)
    metrics = tracker.root / paths.metrics(tracker.profile, name)
    metrics.parent.mkdir(parents=True, exist_ok=True)
    metrics.write_text(json.dumps({"model_sha256": digest}))
    return digest


@pytest.fixture(scope="module")
def tracker(tmp_path_factory) -> Tracker:
    """A project with a database, where a net is logged; MLflow's own files of it are elsewhere."""
    root = tmp_path_factory.mktemp("project")
    write_database(root)
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        tracker = Tracker("small", root)
    log(tracker, root / "model.pt")
    return tracker


@pytest.fixture(autouse=True)
def no_server(monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def only_model(tracker: Tracker):
    experiment = tracker.client.get_experiment_by_name(tracker.experiment)
    (model,) = tracker.client.search_logged_models([experiment.experiment_id], "name = 'fcn8s'")
    return model


def load_elsewhere(tracker: Tracker, uri: str, images: dict[str, np.ndarray], folder: Path) -> dict:
    """What the model at this URI predicts, in a process that has never heard of this project."""
    np.savez(folder / "images.npz", **images)
    script = LOAD.format(
        root=str(Path(__file__).parents[2]),
        tracking=tracker.uri,
        uri=uri,
        images=str(folder / "images.npz"),
        out=str(folder / "labels.npz"),
    )
    clean = {
        key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "MLFLOW_TRACKING_URI")
    }
    done = subprocess.run(
        [sys.executable, "-P", "-c", script],
        cwd=folder,
        env=clean | {"MLFLOW_DISABLE_TELEMETRY": "true"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    home = Path(done.stdout.splitlines()[-1])
    assert home.parent.parent.name == "code"  # of the model, not of this checkout
    assert "different versions" not in done.stderr
    with np.load(folder / "labels.npz") as labels:
        return dict(labels)


def test_a_logged_net_predicts_where_this_project_is_not_at_any_size_what_it_predicts_here(tracker, tmp_path):
    random = np.random.default_rng(0)
    images = {
        f"{height}x{width}": random.integers(0, 256, (height, width, 3), np.uint8)
        for height, width in ((48, 65), (97, 33))
    }
    labels = load_elsewhere(tracker, f"models:/{only_model(tracker).model_id}", images, tmp_path)
    model, _, _ = load_model(tracker.root / "model.pt", torch.device("cpu"))
    for name, image in images.items():
        with torch.inference_mode():
            expected = model(torch.from_numpy(image).permute(2, 0, 1)[None])[0].argmax(0)
        assert labels[name].dtype == np.uint8
        assert (labels[name] == expected.numpy()).all()
        assert len(np.unique(expected)) > 1


def test_a_logged_net_says_what_it_takes_and_gives_and_needs_and_whose_it_is(tracker):
    import mlflow

    model = only_model(tracker)
    folder = Path(model.artifact_location.removeprefix("file://"))
    info = mlflow.models.get_model_info(str(folder))
    assert str(info.signature.inputs) == "[Tensor('uint8', (-1, -1, 3))]"
    assert str(info.signature.outputs) == "[Tensor('uint8', (-1, -1))]"
    needed = (folder / "requirements.txt").read_text().split()
    assert {line.partition("==")[0] for line in needed} == {"mlflow", "numpy", "safetensors", "torch"}
    (run,) = tracker.search("tags.`fcn.attempt` = 'attempt-fcn8s'")
    assert model.source_run_id == run.info.run_id
    assert [one.model_id for one in run.outputs.model_outputs] == [model.model_id]


def test_what_is_shipped_with_a_net_is_what_it_runs():
    shipped = set(models.SHIPPED)
    assert reached("pipeline/models/pyfunc.py") == shipped


def test_a_net_is_logged_once_however_often_its_run_is_sent(tracker):
    record = tracker.shelf.all()[0][0]
    (tracker.shelf.place(record) / "sent").unlink()
    before = only_model(tracker).model_id
    tracker.shelf.put(record.ended(tags=record.tags, metrics={"again": 1.0}))
    tracker.send(tracker.shelf.all()[0][0])
    assert only_model(tracker).model_id == before


def test_a_model_that_was_not_sent_whole_is_replaced(tracker, tmp_path):
    path = tmp_path / "model.pt"
    write_model(path)
    run = tracker.open(tracker.record("training", "cut", "fcn.attempt", "cut", params={}, datasets={}))
    tracker.client.create_logged_model(run.info.experiment_id, "cut", run.info.run_id)
    models.log_model(tracker.client, run, "cut", path)
    experiment = run.info.experiment_id
    (model,) = tracker.client.search_logged_models([experiment], f"source_run_id = '{run.info.run_id}'")
    assert model.status == "READY"


def test_an_alias_leads_to_the_net_it_was_given_last(tracker, tmp_path):
    log(tracker, tmp_path / "other.pt", "fcn16s")
    assert register("small/fcn8s", "shapes", None, tracker.root) == "models:/shapes/1"
    assert register("small/fcn16s", "shapes", "champion", tracker.root) == "models:/shapes@champion"
    client = MlflowClient(tracker.uri)
    assert client.get_model_version_by_alias("shapes", "champion").version == 2
    register("fcn8s", "shapes", "champion", tracker.root)  # by the name of its run; again: no third version
    assert client.get_model_version_by_alias("shapes", "champion").version == 1
    assert len(client.search_model_versions("name = 'shapes'")) == 2
    image = np.full((40, 40, 3), 200, np.uint8)
    labels = load_elsewhere(tracker, "models:/shapes@champion", {"a": image}, tmp_path)
    assert labels["a"].shape == (40, 40)


@pytest.mark.parametrize(
    ("run", "name", "alias", "complaint"),
    [
        ("small/fcn8s", "a/b", None, "must not be empty or hold"),
        ("small/fcn8s", "a", "v2", "neither 'latest' nor v and a number"),
        ("small/fcn8s", "a", "the best", "an alias is letters"),
        ("small/fcn32s", "a", None, "does not say which model was scored"),
        ("nobody", "a", None, "unknown run 'nobody'"),
        ("bare", "a", None, "has no model"),
    ],
)
def test_what_cannot_be_registered_is_refused_with_the_reason(tracker, run, name, alias, complaint):
    tracker.open(tracker.record("training", "bare", "fcn.attempt", "bare", params={}, datasets={}))
    with pytest.raises(ResultError, match=complaint):
        register(run, name, alias, tracker.root)
