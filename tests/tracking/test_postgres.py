"""MLflow in PostgreSQL, directly and through a server. The password is shown nowhere."""

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.tracking import Tracker, register
from tests.mlflow_server import Server
from tests.postgres import PASSWORD, QUOTED, needs_postgres, postgres
from tests.tiny_model import write_model
from tests.tracking.stages import assert_all_is_there_once, evaluate, only_run, train

pytestmark = needs_postgres


@pytest.fixture(scope="module")
def database() -> Iterator[str]:
    with postgres() as uri:
        yield uri


@pytest.fixture(scope="module")
def postgres_server(database, tmp_path_factory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("server"), database)
    server.start()
    yield server
    server.kill()


@pytest.mark.parametrize("way", ["direct", pytest.param("server", marks=pytest.mark.slow)])
def test_a_run_is_in_postgresql_whole_and_the_password_is_shown_nowhere(
    way, database, request, tmp_path, tmp_path_factory, monkeypatch, capfd
):
    uri = database if way == "direct" else request.getfixturevalue("postgres_server").uri
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    tracker, model = Tracker(way, tmp_path), tmp_path / "model.pt"
    write_model(model)
    train(tracker, model=model)
    evaluate(tracker)
    assert_all_is_there_once(tracker)
    run = only_run(tracker)
    assert len(run.outputs.model_outputs) == 1
    assert register("fcn8s", way, "champion", tmp_path) == f"models:/{way}@champion"
    # Without a server artifacts lie in the project, not in the working directory
    assert len(list(tmp_path.glob("mlartifacts/*/*/artifacts/figures/*.png"))) == (way == "direct")
    assert not list(Path.cwd().iterdir())
    captured = capfd.readouterr()
    shown = captured.out + captured.err + str(run.to_dictionary())
    shown += "".join(path.read_text() for path in tracker.records.folder.rglob("*") if path.is_file())
    assert "warning" not in shown
    assert not any(password in shown for password in (PASSWORD, QUOTED))


@pytest.mark.parametrize("wrong", ["password", "port", "driver", "host"])
def test_a_database_that_refuses_is_warned_of_soon_and_without_its_password(
    wrong, database, tmp_path, monkeypatch, capfd
):
    port = database.rpartition(":")[2].partition("/")[0]
    uri = {
        "password": database.replace(QUOTED, f"wrong-{QUOTED}"),
        "port": database.replace(f":{port}/", ":9/"),
        "driver": database.replace("+psycopg2", "+nodriver"),
        "host": database.replace("127.0.0.1", "no.such.host.invalid").replace(QUOTED, PASSWORD),
    }[wrong]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    start = time.monotonic()
    evaluate(Tracker("refused", tmp_path))
    assert time.monotonic() - start < 30  # s; MLflow's default is 100
    err = capfd.readouterr().err
    assert "warning: tracking: " in err
    assert not any(password in err for password in (PASSWORD, QUOTED))


def test_a_servers_database_password_is_in_no_list_of_processes(postgres_server):
    assert "mlflow" in Path(f"/proc/{postgres_server.process.pid}/cmdline").read_text()
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # the process has ended meanwhile
            assert QUOTED not in path.read_text(errors="replace")
