"""Databases and servers of MLflow for tests."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow.tracking._tracking_service import utils

from pipeline.tracking import Tracker, follow
from tests.mlflow_server import Server, write_database
from tests.sick_proxy import Proxy, proxied
from tests.tracking.stages import log_net


@pytest.fixture(autouse=True)
def short_patience(monkeypatch):
    """Calls to a dead server fail at once, and curves are read often."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "3")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(follow, "POLL_S", 0.05)


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory) -> Path:
    return write_database(tmp_path_factory.mktemp("template"))


@pytest.fixture
def root(tmp_path, empty_database) -> Path:
    """A project's root with a database."""
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    return tmp_path


@pytest.fixture(scope="session")
def trained(tmp_path_factory, empty_database) -> Path:
    """A project, with a space in its path, whose net fcn8s of profile `small` is trained, scored and logged."""
    root = tmp_path_factory.mktemp("a space") / "trained"
    (root / "models" / "small").mkdir(parents=True)
    shutil.copy(empty_database, root / "mlflow.db")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        log_net(Tracker("small", root), root / "models" / "small" / "fcn8s.pt", "fcn8s")
    return root


@pytest.fixture
def logged(trained, tmp_path) -> Path:
    """A copy of it, as a process of its own sees it: MLflow keeps the addresses of a run's files in memory."""
    utils._artifact_repos_cache.clear()
    root = Path(shutil.copytree(trained, tmp_path / "project"))
    Tracker("small", root).client.search_experiments()
    return root


@pytest.fixture(scope="session")
def one_server(tmp_path_factory, empty_database) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    shutil.copy(empty_database, folder / "mlflow.db")
    server = Server(folder)
    yield server
    server.kill()


@pytest.fixture
def server(one_server) -> Server:
    """A running server, shared by all tests, which may kill it."""
    if one_server.process is None:
        one_server.start()
    return one_server


@pytest.fixture
def proxy(server) -> Iterator[Proxy]:
    with proxied(server.uri) as proxy:
        yield proxy


@pytest.fixture
def tracker(root, proxy, monkeypatch) -> Tracker:
    """A tracker of a profile of the test's own, on the server behind the proxy."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", proxy.uri)
    return Tracker(root.name, root)
