"""MLflow's records in PostgreSQL: directly, and through a server; the password of neither is anywhere to be seen."""

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.curves import append_point
from pipeline.tracking import Follower, Tracker, register
from tests.mlflow_server import Server
from tests.postgres import PASSWORD, QUOTED, needs_postgres, postgres
from tests.tiny_model import write_model

pytestmark = needs_postgres


@pytest.fixture(scope="module")
def database() -> Iterator[str]:
    with postgres() as uri:
        yield uri


@pytest.fixture(scope="module")
def server(database, tmp_path_factory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("server"), database)
    server.start()
    yield server
    server.kill()


@pytest.fixture(params=["direct", "server"])
def tracker(request, database, tmp_path, monkeypatch) -> Tracker:
    uri = database if request.param == "direct" else request.getfixturevalue("server").uri
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    return Tracker(request.param, tmp_path)


def log_all(tracker: Tracker) -> None:
    """A net's run with a long curve, a model and scores, as the stages tell of it."""
    root = tracker.root
    curves = root / "runs" / "a" / "curves.jsonl"
    curves.parent.mkdir(parents=True)
    for step in range(1, 701):
        append_point(curves, step, {"loss": 1 / step, "lr": 0.1})
    write_model(root / "model.pt")
    record = tracker.record(
        "training", "fcn8s", "fcn.attempt", "a", params={"lr": 0.1}, datasets={"train": "t"}, curves=curves
    )
    following = Follower(tracker, record)
    following.catch_up()
    tracker.log(following.record, {}, {"model_sha256": "d"}, model=root / "model.pt")
    (root / "fcn8s.png").write_bytes(b"picture")
    scores = tracker.record("evaluation", "fcn8s", "model_sha256", "d", params={}, datasets={"val": "v"})
    tracker.log(scores, {"mean_iu": 0.5, "iu/disc": 0.25}, {}, [root / "fcn8s.png"])


def test_a_run_with_curves_scores_pictures_and_a_model_is_in_postgresql_whole(tracker, capfd):
    log_all(tracker)
    (run,) = tracker.search("")
    loss = tracker.client.get_metric_history(run.info.run_id, "loss")
    assert sorted((one.step, one.value) for one in loss) == [(step, 1 / step) for step in range(1, 701)]
    assert (run.data.metrics["mean_iu"], run.data.metrics["iu/disc"]) == (0.5, 0.25)
    assert run.data.params == {"lr": "0.1"}
    assert len(run.inputs.dataset_inputs) == 2
    there = tracker.client.download_artifacts(run.info.run_id, "figures/fcn8s.png", str(tracker.root))
    assert Path(there).read_bytes() == b"picture"
    assert len(run.outputs.model_outputs) == 1
    name = f"shapes-{tracker.profile}"
    assert register("fcn8s", name, "champion", tracker.root) == f"models:/{name}@champion"
    captured = capfd.readouterr()
    shown = captured.out + captured.err + str(run.to_dictionary())
    shown += "".join(path.read_text() for path in tracker.shelf.folder.rglob("*") if path.is_file())
    assert "warning" not in shown
    for secret in (PASSWORD, QUOTED):
        assert secret not in shown


def test_artifacts_lie_in_the_project_if_there_is_no_server(database, tmp_path, monkeypatch):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", database)
    tracker = Tracker("place", tmp_path)
    (tmp_path / "a.png").write_bytes(b"picture")
    record = tracker.record("evaluation", "fcn8s", "model_sha256", "d", params={}, datasets={})
    tracker.log(record, {}, {}, [tmp_path / "a.png"])
    assert len(list((tmp_path / "mlartifacts" / "fcn-place").rglob("a.png"))) == 1
    assert not list(elsewhere.iterdir())


@pytest.mark.parametrize("what", ["password", "port", "driver", "host"])
def test_a_database_that_does_not_let_us_in_is_warned_of_without_its_password(
    database, tmp_path, monkeypatch, capfd, what
):
    right, port = database, database.rpartition(":")[2].partition("/")[0]
    uri = {
        "password": right.replace(QUOTED, f"wrong-{QUOTED}"),
        "port": right.replace(f":{port}/", ":9/"),
        "driver": right.replace("+psycopg2", "+nodriver"),
        "host": right.replace("127.0.0.1", "no.such.host.invalid").replace(QUOTED, PASSWORD),
    }[what]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    tracker = Tracker("refused", tmp_path)
    begun = time.monotonic()
    tracker.log(tracker.record("evaluation", "fcn8s", "model_sha256", "d", params={}, datasets={}), {}, {})
    assert time.monotonic() - begun < 30  # s; left to itself, MLflow tries for 100
    err = capfd.readouterr().err
    assert "warning: tracking: " in err
    assert QUOTED not in err
    assert PASSWORD not in err


def test_a_server_that_is_told_of_its_database_by_the_environment_shows_no_password_to_others(server):
    shown = Path(f"/proc/{server.process.pid}/cmdline").read_text()
    assert "mlflow" in shown
    assert QUOTED not in shown
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            assert QUOTED not in path.read_text(errors="replace")
