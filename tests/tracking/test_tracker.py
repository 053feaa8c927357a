"""Against a real MLflow server on loopback, and a database without one."""

import contextlib
import http.server
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from pipeline.curves import append_point
from pipeline.tracking import Follower, Tracker, follower, git_tags
from pipeline.tracking.points import last_step
from pipeline.tracking.record import Record
from pipeline.tracking.tracker import flattened
from tests.mlflow_server import Server, write_database


@pytest.fixture(autouse=True)
def short_patience(monkeypatch):
    """Calls to a dead server fail at once, and the database is the one of the test."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "2")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(follower, "POLL_S", 0.05)


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory) -> Path:
    return write_database(tmp_path_factory.mktemp("template"))


@pytest.fixture
def root(tmp_path, empty_database) -> Path:
    """A project's root with a database."""
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    return tmp_path


@pytest.fixture(scope="session")
def server(tmp_path_factory, empty_database) -> Iterator[Server]:
    """Not started yet; a test that needs it calls start, once for all."""
    folder = tmp_path_factory.mktemp("server")
    shutil.copy(empty_database, folder / "mlflow.db")
    server = Server(folder)
    yield server
    server.kill()


@pytest.fixture(params=["database", "server"])
def tracker(request, root, monkeypatch) -> Tracker:
    """One that writes to a database of its own, and one that goes through the server."""
    if request.param == "server":
        server = request.getfixturevalue("server")
        if server.process is None:
            server.start()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    return Tracker(f"{request.param}-{root.name}", root)


def training(tracker: Tracker, curves: Path | None = None, attempt: str = "a", **params) -> Record:
    return tracker.record(
        "training", "fcn32s", "fcn.attempt", attempt, params=params, datasets={}, curves=curves
    )


def evaluation(tracker: Tracker, digest: str = "abc", **params) -> Record:
    return tracker.record("evaluation", "fcn8s", "model_sha256", digest, params=params, datasets={"val": "d"})


def runs(tracker: Tracker) -> list[Run]:
    return tracker.client.search_runs([tracker._experiment_id()])


def history(tracker: Tracker, run_id: str, metric: str) -> list[tuple[int, float]]:
    return sorted((m.step, m.value) for m in tracker.client.get_metric_history(run_id, metric))


def wait_for(condition, timeout_s: float = 30) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


# An outage: first, so that the server is not there yet when it begins


def test_no_point_is_lost_or_doubled_while_the_server_is_away_comes_dies_and_comes_back(
    root, server, monkeypatch, capsys
):
    server.kill()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    tracker, curves = Tracker("outage", root), root / "curves.jsonl"
    following = Follower(tracker, training(tracker, curves, lr=0.1))
    delays = []

    def append(step: int) -> None:
        before = time.perf_counter()
        append_point(curves, step, {"loss": 100 / step, "lr": 0.1})
        delays.append(time.perf_counter() - before)

    warnings = []

    def warned(times: int) -> bool:
        warnings.extend(capsys.readouterr().err.splitlines())
        return len(warnings) == times

    with following:
        for step in (10, 20, 30):
            append(step)
        wait_for(lambda: warned(1))
        time.sleep(0.5)  # ten more vain tries
        assert warned(1)
        server.start()
        append(40)
        wait_for(lambda: following._step == 40)
        server.kill()
        for step in (50, 60):
            append(step)
        wait_for(lambda: warned(2))
        time.sleep(0.5)
        assert warned(2)
        server.start()
        append(70)
        wait_for(lambda: following._step == 70)
    append(80)
    run_id = following.catch_up()
    expected = [(step, pytest.approx(100 / step)) for step in range(10, 90, 10)]
    assert history(tracker, run_id, "loss") == expected
    assert history(tracker, run_id, "lr") == [(step, 0.1) for step in range(10, 90, 10)]
    assert len(runs(tracker)) == 1
    assert all(line.startswith("warning: tracking: ") and str(curves) in line for line in warnings)
    assert max(delays) < 0.05  # s that training waits for a point, server or not


# Runs


def test_there_is_one_run_for_an_attempt_however_often_it_is_started_again(tracker, root):
    ids = [
        Follower(tracker, training(tracker, root / "curves.jsonl", attempt, lr=0.1)).catch_up()
        for attempt in ("first", "first", "second", "first")
    ]
    assert ids[0] == ids[1] == ids[3] != ids[2]
    run = tracker.client.get_run(ids[0])
    assert (run.info.run_name, run.data.tags["fcn.attempt"]) == ("fcn32s", "first")
    assert tracker.client.get_experiment(run.info.experiment_id).name == tracker.experiment


def test_a_driver_started_again_adds_only_the_points_that_are_missing(tracker, root, monkeypatch):
    curves = root / "curves.jsonl"
    for step in (1, 2, 3):
        append_point(curves, step, {"loss": float(step)})
    first = Follower(tracker, training(tracker, curves))
    first.catch_up()
    first.catch_up()
    for step in (3, 4):  # step 3 was measured again after the checkpoint of step 2
        append_point(curves, step, {"loss": float(step)})
    real, sent = tracker.client.log_batch, []

    def log_batch(run_id, metrics=(), **others):
        sent.extend(metric.step for metric in metrics)
        real(run_id, metrics=metrics, **others)

    monkeypatch.setattr(tracker.client, "log_batch", log_batch)
    run_id = Follower(tracker, training(tracker, curves)).catch_up()
    assert sent == [4]
    assert history(tracker, run_id, "loss") == [(1, 1), (2, 2), (3, 3), (4, 4)]


def test_a_curve_longer_than_one_call_takes_arrives_whole(tracker, root):
    curves = root / "curves.jsonl"
    for step in range(700):
        append_point(curves, step, {"loss": step / 2, "lr": 0.1, "images_per_s": 5.0})
    following = Follower(tracker, training(tracker, curves, "long"))
    run_id = following.catch_up()
    assert history(tracker, run_id, "loss") == [(step, step / 2) for step in range(700)]
    assert history(tracker, run_id, "images_per_s") == [(step, 5.0) for step in range(700)]
    assert last_step(tracker.client, run_id) == 699
    assert last_step(tracker.client, run_id, "iu/disc") == -1


def test_points_whose_receipt_was_lost_are_there_once(tracker, root, monkeypatch):
    """The server stored them and died before it could say so: they are sent again."""
    curves = root / "curves.jsonl"
    following = Follower(tracker, training(tracker, curves, "lost receipt"))
    following.catch_up()
    for step in (1, 2):
        append_point(curves, step, {"loss": 0.5})
    real = tracker.client.log_batch

    def log_batch(*arguments, **keywords):
        real(*arguments, **keywords)
        raise MlflowException("connection reset")

    with monkeypatch.context() as patch:
        patch.setattr(tracker.client, "log_batch", log_batch)
        with pytest.raises(MlflowException):
            following.catch_up()
    run_id = following.catch_up()
    assert history(tracker, run_id, "loss") == [(1, 0.5), (2, 0.5)]


def test_params_that_an_outage_kept_from_a_new_run_are_added_later(tracker, monkeypatch):
    def log_batch(*_, **__):
        raise MlflowException("connection reset")

    with monkeypatch.context() as patch:
        patch.setattr(tracker.client, "log_batch", log_batch)
        with pytest.raises(MlflowException):
            tracker.open(training(tracker, lr=0.1))
    run_id = tracker.open(training(tracker, lr=0.1)).info.run_id
    assert tracker.client.get_run(run_id).data.params == {"lr": "0.1"}
    assert len(runs(tracker)) == 1


def test_params_go_by_dotted_names_and_a_resume_with_others_changes_none(tracker):
    params = {"net": "fcn8s", "train": {"optimizer": {"name": "sgd"}, "seed": 1}, "classes": ["a", "b"]}
    run_id = tracker.open(training(tracker, **params, long="x" * 7000)).info.run_id
    tracker.open(training(tracker, **params | {"net": "other"}))
    found = tracker.client.get_run(run_id).data.params
    assert found.pop("long") == "x" * 6000
    assert found == {
        "net": "fcn8s",
        "train.optimizer.name": "sgd",
        "train.seed": "1",
        "classes": "['a', 'b']",
    }


def test_more_params_than_one_call_takes_arrive(tracker):
    run_id = tracker.open(training(tracker, **{f"p{i}": i for i in range(150)})).info.run_id
    assert len(tracker.client.get_run(run_id).data.params) == 150


def test_scores_tags_and_figures_are_in_the_run_once_after_evaluating_twice(tracker, root):
    figure = root / "fcn8s.png"
    figure.write_bytes(b"\x89PNG picture")
    for _ in range(2):
        tracker.log(evaluation(tracker), {"mean_iu": 0.5, "iu/disc": 0.25}, {"val_digest": "d"}, [figure])
    (run,) = runs(tracker)
    run_id = run.info.run_id
    assert run.info.status == "FINISHED"
    assert run.data.metrics == {"mean_iu": 0.5, "iu/disc": 0.25}
    assert history(tracker, run_id, "mean_iu") == [(0, 0.5)]
    assert run.data.tags["val_digest"] == "d"
    assert [file.path for file in tracker.client.list_artifacts(run_id, "figures")] == ["figures/fcn8s.png"]
    there = tracker.client.download_artifacts(run_id, "figures/fcn8s.png", str(root))
    assert Path(there).read_bytes() == figure.read_bytes()


def test_a_class_of_any_name_is_logged(tracker):
    tracker.log(evaluation(tracker), {"iu/Tisch & Stühle (alt)": 0.5, "iu/car/truck": 0.25}, {})
    (run,) = runs(tracker)
    assert run.data.metrics == {"iu/Tisch _ Stühle _alt_": 0.5, "iu/car/truck": 0.25}


def test_without_a_server_everything_lies_at_the_root_wherever_the_stage_runs(root, tmp_path, monkeypatch):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    (root / "a.png").write_bytes(b"picture")
    tracker = Tracker("sample", root)
    tracker.log(evaluation(tracker), {}, {}, [root / "a.png"])
    assert tracker.uri == f"sqlite:///{root}/mlflow.db"
    assert [path.name for path in (root / "mlartifacts" / "fcn-sample").rglob("*.png")] == ["a.png"]
    assert not list(elsewhere.iterdir())


# Where the code comes from


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=n", "-c", "user.email=e@x.org", "-c", "commit.gpgsign=false"]
    command = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def test_a_run_names_its_commit_and_whether_files_differ_from_it(root):
    repository = root / "repository"
    repository.mkdir()
    git(repository, "init", "-q")
    (repository / "a.py").write_text("1")
    git(repository, "add", "a.py")
    git(repository, "commit", "-q", "-m", "a")
    commit = git(repository, "rev-parse", "HEAD")
    expected = {"mlflow.source.git.commit": commit, "git_commit": commit, "git_dirty": "false"}
    assert git_tags(repository) == expected
    (repository / "untracked").touch()
    assert git_tags(repository) == expected
    (repository / "a.py").write_text("2")
    assert git_tags(repository) == expected | {"git_dirty": "true"}
    shutil.copy(root / "mlflow.db", repository)
    tracker = Tracker("git", repository)
    tags = tracker.open(evaluation(tracker)).data.tags
    assert (tags["git_commit"], tags["git_dirty"]) == (commit, "true")


def test_outside_a_checkout_or_without_git_there_are_no_such_tags(tmp_path, monkeypatch):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert git_tags(tmp_path) == {}
    monkeypatch.setenv("PATH", "")
    assert git_tags(tmp_path) == {}


def test_nested_values_are_flattened_to_dotted_names():
    assert flattened({"a": {"b": 1, "c": {"d": [2]}}, "e": None, "f": {}}) == {
        "a.b": 1,
        "a.c.d": [2],
        "e": None,
    }


# A server that is sick


@contextlib.contextmanager
def answering(status: int, body: bytes) -> Iterator[str]:
    """The address of a server that says the same to everything."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET  # noqa: N815

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@contextlib.contextmanager
def silent() -> Iterator[str]:
    """The address of a server that takes a call and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


SICK = {
    "error 500": lambda: answering(500, b"oops"),
    "error 503": lambda: answering(503, b""),
    "no access": lambda: answering(403, b"Invalid Host header"),
    "a web page": lambda: answering(200, b"<html>Log in</html>"),
    "silent": silent,
    "nobody there": lambda: contextlib.nullcontext("http://127.0.0.1:9"),
    "an unknown scheme": lambda: contextlib.nullcontext("ftp://127.0.0.1"),
    "a database without its driver": lambda: contextlib.nullcontext("postgresql+nodriver://127.0.0.1/x"),
}


@pytest.mark.parametrize("kind", SICK)
def test_a_sick_server_is_warned_of_and_stops_nothing(tmp_path, monkeypatch, capsys, kind):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    curves = tmp_path / "curves.jsonl"
    with SICK[kind]() as uri:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        tracker = Tracker("sick", tmp_path)
        following = Follower(tracker, training(tracker, curves))
        err = []

        def is_warned() -> bool:
            err.append(capsys.readouterr().err)
            return bool("".join(err))

        with following:
            append_point(curves, 1, {"loss": 1.0})
            wait_for(is_warned)
        is_warned()
        tracker.log(following.record, {}, {})
    lines = "".join(err).splitlines()
    assert len(lines) == 1
    assert lines[0].endswith(f"training goes on, the curves wait in {curves}")
    last = capsys.readouterr().err.splitlines()
    assert len(last) == 1
    assert last[0].endswith(
        "; what MLflow lacks is kept in runs/sick/.tracking, and `fcn tracking replay` sends it"
    )


def test_a_database_that_is_damaged_is_warned_of_and_stops_nothing(tmp_path, capsys):
    (tmp_path / "mlflow.db").write_bytes(b"no database" * 1000)
    tracker = Tracker("damaged", tmp_path)
    tracker.log(evaluation(tracker), {}, {})
    assert "file is not a database" in capsys.readouterr().err


def test_our_own_mistakes_are_not_taken_for_an_outage(root, monkeypatch):
    tracker = Tracker("sample", root)
    monkeypatch.setattr(tracker, "send", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        tracker.log(evaluation(tracker), {}, {})


def test_a_password_in_the_servers_address_is_not_shown(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:secret@127.0.0.1:9")
    tracker = Tracker("private", tmp_path)
    tracker.log(evaluation(tracker), {}, {})
    err = capsys.readouterr().err
    assert "http://127.0.0.1:9/api" in err
    assert "secret" not in err
