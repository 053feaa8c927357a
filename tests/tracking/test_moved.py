"""A project that was moved or copied keeps its runs, figures and models in MLflow."""

import shutil
from pathlib import Path
from urllib.parse import unquote

import mlflow
import numpy as np
import pytest
from mlflow.tracking._tracking_service import utils

from pipeline import paths
from pipeline.errors import ResultError
from pipeline.tracking import Tracker, register
from pipeline.tracking.models import find_model


@pytest.fixture(params=["moved", "copied"])
def project(logged: Path, request) -> Path:
    """The project at another place, after its net was registered; after a move, the first one is gone."""
    register("small/fcn8s", "shapes", "champion", logged)
    utils._artifact_repos_cache.clear()
    second = logged.with_name("second")
    return logged.rename(second) if request.param == "moved" else Path(shutil.copytree(logged, second))


def files_in(root: Path) -> dict[Path, bytes]:
    folder = root / "mlartifacts"
    return {path.relative_to(root): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def predicts(root: Path) -> bool:
    """Return whether the model that the alias leads to is loaded from this project's files."""
    client = Tracker("small", root).client
    version = client.get_model_version_by_alias("shapes", "champion").version
    where = client.get_model_version_download_uri("shapes", str(version))
    assert str(root / "mlartifacts") in unquote(where)
    return mlflow.pyfunc.load_model(where).predict(np.zeros((32, 40, 3), np.uint8)).shape == (32, 40)


def test_its_models_load_and_new_files_land_where_it_is_now(project, capsys):
    first = project.with_name("project")
    before, here = files_in(first), files_in(project)
    assert here
    assert register("small/fcn8s", "shapes", "latest-one", project) == "models:/shapes@latest-one"
    assert str(first) in (warning := capsys.readouterr().err)
    assert str(project / "mlartifacts") in warning
    assert files_in(project) == here  # nothing was logged again
    assert predicts(project)
    tracker = Tracker("small", project)
    assert len(tracker.client.search_model_versions("name = 'shapes'")) == 1
    figure = project / "fcn8s.png"
    figure.write_bytes(b"PNG")
    digest = tracker.search_runs("")[0].data.tags["model_sha256"]
    record = tracker.record("evaluation", "fcn8s", "model_sha256", digest, params={}, datasets={})
    tracker.log(record, {"mean_iu": 0.5}, {}, [figure])
    assert [path.name for path in files_in(project).keys() - here.keys()] == ["fcn8s.png"]
    assert files_in(first) == before
    assert "warning" not in capsys.readouterr().err


def test_a_database_copied_without_the_files_leads_to_them_and_says_where_they_are(logged, capsys):
    second = logged.with_name("second")
    second.mkdir()
    shutil.copy(logged / "mlflow.db", second)
    capsys.readouterr()
    tracker = Tracker("small", second)
    (run,) = tracker.search_runs("")
    assert find_model(tracker.client, run)
    assert str(logged / "mlartifacts") in capsys.readouterr().err


def test_a_model_whose_files_are_gone_is_logged_again_or_refused_but_never_named(logged):
    shutil.rmtree(logged / "mlartifacts")
    with pytest.raises(ResultError, match="files are gone"):
        register("fcn8s", "shapes", "champion", logged)
    assert register("small/fcn8s", "shapes", "champion", logged) == "models:/shapes@champion"
    assert predicts(logged)
    shutil.rmtree(logged / "mlartifacts")
    (logged / paths.model("small", "fcn8s")).unlink()
    with pytest.raises(ResultError, match="files are gone"):
        register("small/fcn8s", "shapes", "champion", logged)
