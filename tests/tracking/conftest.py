"""Databases and servers of MLflow for tests."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.tracking import Tracker, follow
from tests.mlflow_server import Server, write_database
from tests.sick_proxy import Proxy, proxied


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
