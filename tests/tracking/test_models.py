"""A logged net, loaded by MLflow alone, and its name in the registry."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.errors import ResultError
from pipeline.models.model_file import load_model
from pipeline.tracking import Tracker, models, register
from tests.conftest import ROOT
from tests.mlflow_server import write_database
from tests.tracking.stages import end_training, log_net

# Run in another folder, without this project on the path, and without packages that the model does not list
LOAD = """
import sys
sys.path[:] = [path for path in sys.path if path not in ("", {root!r})]
sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in str(finder).lower()]
for name in ("fcn", "pipeline"):
    try:
        __import__(name)
    except ImportError:
        continue
    raise SystemExit(f"{{name}} can be imported without MLflow's help")
for name in {missing!r}:
    sys.modules[name] = None
import mlflow, numpy as np
mlflow.set_tracking_uri({tracking!r})
model = mlflow.pyfunc.load_model({uri!r})
images = np.load({images!r})
np.savez({out!r}, **{{name: model.predict(images[name]) for name in images}})
import pipeline
print(pipeline.__file__)
"""
# Of this project's packages those that neither the model's requirements nor MLflow bring
MISSING = ("dvc", "fsspec", "httpx", "onnxruntime", "PIL", "ray", "ruamel", "tqdm", "webdataset")


@pytest.fixture(scope="module")
def tracker(tmp_path_factory) -> Tracker:
    """A tracker of a project with a database, where two nets are logged."""
    root = tmp_path_factory.mktemp("project")
    write_database(root)
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        tracker = Tracker("small", root)
    for net in ("fcn8s", "fcn16s"):
        log_net(tracker, root / f"{net}.pt", net)
    return tracker


def logged_models(tracker: Tracker, net: str = "fcn8s") -> list:
    return list(tracker.client.search_logged_models([tracker.experiment_id()], f"name = '{net}'"))


def predict_elsewhere(tracker: Tracker, uri: str, images: dict[str, np.ndarray], folder: Path) -> dict:
    """Return what the model at this URI predicts in a process without this project."""
    np.savez(folder / "images.npz", **images)
    script = LOAD.format(
        root=str(ROOT),
        missing=MISSING,
        tracking=tracker.uri,
        uri=uri,
        images=str(folder / "images.npz"),
        out=str(folder / "labels.npz"),
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", script],
        cwd=folder,
        env={key: value for key, value in os.environ.items() if key != "PYTHONPATH"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    package = Path(done.stdout.splitlines()[-1]).parent
    assert package.parent.name == "code"  # the model's, not this checkout's
    assert "different versions" not in done.stderr
    with np.load(folder / "labels.npz") as labels:
        return dict(labels)


def test_a_logged_net_predicts_where_this_project_is_not_at_any_size_what_it_predicts_here(tracker, tmp_path):
    random = np.random.default_rng(0)
    images = {
        f"{height}x{width}": random.integers(0, 256, (height, width, 3), np.uint8)
        for height, width in ((48, 65), (97, 33))
    }
    (logged,) = logged_models(tracker)
    labels = predict_elsewhere(tracker, f"models:/{logged.model_id}", images, tmp_path)
    model, _, _ = load_model(tracker.root / "fcn8s.pt", torch.device("cpu"))
    for name, image in images.items():
        with torch.inference_mode():
            expected = model(torch.from_numpy(image).permute(2, 0, 1)[None])[0].argmax(0)
        assert labels[name].dtype == np.uint8
        assert (labels[name] == expected.numpy()).all()
        assert len(np.unique(expected)) > 1


def test_a_logged_net_has_a_signature_requirements_and_a_run(tracker):
    import mlflow

    (model,) = logged_models(tracker)
    folder = Path(model.artifact_location.removeprefix("file://"))
    info = mlflow.models.get_model_info(str(folder))
    assert str(info.signature.inputs) == "[Tensor('uint8', (-1, -1, 3))]"
    assert str(info.signature.outputs) == "[Tensor('uint8', (-1, -1))]"
    requirements = {line.partition("==")[0] for line in (folder / "requirements.txt").read_text().split()}
    assert requirements == {"mlflow", *models.PACKAGES}
    (run,) = tracker.search_runs("tags.`fcn.attempt` = 'attempt-fcn8s'")
    assert model.source_run_id == run.info.run_id
    assert [output.model_id for output in run.outputs.model_outputs] == [model.model_id]


def test_a_net_is_logged_once_however_often_its_run_is_sent(tracker):
    before = logged_models(tracker)
    for record in tracker.records.read_all()[0]:
        tracker.send(record.ended(metrics={"again": 1.0}))
    assert [model.model_id for model in logged_models(tracker)] == [model.model_id for model in before]


def test_a_model_that_was_not_sent_whole_is_replaced(tracker):
    record = tracker.record("training", "cut", "fcn.attempt", "cut", params={}, datasets={})
    run = tracker.open_run(record)
    tracker.client.create_logged_model(run.info.experiment_id, "cut", run.info.run_id)
    end_training(tracker, record, tracker.root / "fcn8s.pt", "another digest")
    assert [model.status for model in logged_models(tracker, "cut")] == ["READY"]


def test_an_alias_leads_to_the_net_it_was_given_last(tracker, tmp_path):
    assert register("small/fcn8s", "shapes", None, tracker.root) == "models:/shapes/1"
    assert register("small/fcn16s", "shapes", "champion", tracker.root) == "models:/shapes@champion"
    assert tracker.client.get_model_version_by_alias("shapes", "champion").version == 2
    register("fcn8s", "shapes", "champion", tracker.root)  # by the name of its run; no third version
    assert tracker.client.get_model_version_by_alias("shapes", "champion").version == 1
    assert len(tracker.client.search_model_versions("name = 'shapes'")) == 2
    image = np.full((40, 40, 3), 200, np.uint8)
    labels = predict_elsewhere(tracker, "models:/shapes@champion", {"a": image}, tmp_path)
    assert labels["a"].shape == (40, 40)


@pytest.mark.parametrize(
    ("run", "name", "alias", "named"),
    [
        ("small/fcn8s", "a/b", None, "'a/b'"),
        ("small/fcn8s", "a", "v2", "'v2'"),
        ("small/fcn8s", "a", "the best", "'the best'"),
        ("small/fcn32s", "a", None, r"fcn32s\.json"),
        ("nobody", "a", None, "'nobody'"),
        ("fcn32s", "a", None, "'fcn32s'"),
    ],
)
def test_what_cannot_be_registered_is_refused_by_name(tracker, run, name, alias, named):
    tracker.open_run(tracker.record("training", "fcn32s", "fcn.attempt", "b", params={}, datasets={}))
    with pytest.raises(ResultError, match=named):
        register(run, name, alias, tracker.root)
