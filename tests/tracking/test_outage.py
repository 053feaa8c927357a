"""Outages of MLflow: no stage stops or waits, the warning has no password, and a replay brings each thing once."""

import contextlib
import http.server
import resource
import shutil
import socket
import sqlite3
import threading
import time
from collections.abc import Iterator

import pytest

from pipeline.errors import ResultError
from pipeline.tracking import Follower, Tracker
from pipeline.tracking.outage import without_passwords
from tests.tracking.stages import (
    STEPS,
    append,
    assert_all_is_there_once,
    assert_evaluation_is_there_once,
    assert_training_is_there_once,
    begin_training,
    end_training,
    evaluate,
    replay_all,
    train,
    wait_for,
)

pytestmark = pytest.mark.early


@contextlib.contextmanager
def answering(status: int, body: bytes) -> Iterator[str]:
    """The address of a server that gives the same answer to every call."""

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
    """The address of a server that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


@contextlib.contextmanager
def damaged(database) -> Iterator[None]:
    good = database.read_bytes()
    database.write_bytes(b"no database" * 1000)
    yield
    database.write_bytes(good)


@contextlib.contextmanager
def locked(database) -> Iterator[None]:
    """Another process is in the middle of a long write."""
    with contextlib.closing(sqlite3.connect(database)) as connection:
        connection.execute("BEGIN EXCLUSIVE")
        yield
        connection.rollback()


@contextlib.contextmanager
def full(database) -> Iterator[None]:  # noqa: ARG001
    """No large file can be written, as on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**14, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def flaky(number: int) -> str:
    return ("", "500", "lost", "cut")[number % 4]


CALLS = {"500": "500", "lost": "lost", "cut": "cut", "slow": "slow", "flaky": flaky}  # of a real server
ADDRESSES = {
    "error 503": lambda: answering(503, b""),
    "no access": lambda: answering(403, b"Invalid Host header"),
    "a web page": lambda: answering(200, b"<html>Log in</html>"),
    "silent": silent,
    "no server": lambda: contextlib.nullcontext("http://user:secret@127.0.0.1:9"),
    "unknown scheme": lambda: contextlib.nullcontext("ftp://user:secret@127.0.0.1"),
    "no driver": lambda: contextlib.nullcontext("postgresql+nodriver://user:secret@127.0.0.1/x"),
}
DATABASES = {"damaged": damaged, "locked": locked, "full": full}
# MLflow waits 30 s for a lock
FAULTS = (*CALLS, "killed", *ADDRESSES, "damaged", "full", pytest.param("locked", marks=pytest.mark.slow))


@pytest.fixture
def outage(request, fault, root, monkeypatch):
    """Return a context in which MLflow has the fault. Afterwards it works."""

    @contextlib.contextmanager
    def suffer() -> Iterator[None]:
        if fault in DATABASES:
            with DATABASES[fault](root / "mlflow.db"):
                yield
        elif fault in ADDRESSES:
            with ADDRESSES[fault]() as uri:
                monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
                monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
                yield
            monkeypatch.delenv("MLFLOW_TRACKING_URI")
        else:
            server, proxy = request.getfixturevalue("server"), request.getfixturevalue("proxy")
            monkeypatch.setenv("MLFLOW_TRACKING_URI", proxy.uri)
            if fault == "killed":
                server.kill()
                yield
                server.start()
            else:
                proxy.suffers(CALLS[fault])
                yield
                proxy.suffers("")

    return suffer


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize(
    ("log", "assert_is_there_once"),
    [(train, assert_training_is_there_once), (evaluate, assert_evaluation_is_there_once)],
    ids=["training", "evaluation"],
)
def test_what_an_outage_kept_from_mlflow_is_there_once_after_a_replay(
    outage, fault, log, assert_is_there_once, root, capfd
):
    with outage():
        tracker = Tracker(root.name, root)
        slowest_point = log(tracker)
    stderr = capfd.readouterr().err
    assert "Traceback" not in stderr
    warnings = [line for line in stderr.splitlines() if "warning: tracking" in line]
    assert max(map(len, warnings), default=0) < 1000  # no statement of a database
    assert (warnings == []) == (fault == "slow")
    if fault not in CALLS:  # a fault that lasts is reported once while a net trains, and once by the stage
        assert len(warnings) == (2 if log is train else 1)
        assert warnings[-1].startswith("warning: tracking: ")
        assert f"runs/{root.name}/.tracking" in warnings[-1]
    assert "secret" not in "".join(warnings)
    if log is train:
        assert slowest_point < 0.05  # s that training waits for a point
    tracker = Tracker(root.name, root)
    replay_all(tracker)
    assert_is_there_once(tracker)
    assert replay_all(tracker) == ["nothing new"]
    assert_is_there_once(tracker)


@pytest.mark.slow
def test_a_server_that_comes_dies_and_comes_back_while_a_net_trains_gets_each_point_once_and_is_warned_of_once(
    tracker, server, capsys
):
    server.kill()
    follower = Follower(tracker, begin_training(tracker))
    warnings = []

    def num_warnings() -> int:
        warnings.extend(capsys.readouterr().err.splitlines())
        return len(warnings)

    with follower:
        append(tracker, 10)
        wait_for(lambda: num_warnings() == 1)
        time.sleep(0.5)  # ten more calls fail
        server.start()
        append(tracker, 20)
        wait_for(lambda: follower.step == 20)
        assert num_warnings() == 1
        server.kill()
        append(tracker, 30)
        wait_for(lambda: num_warnings() == 2)
        time.sleep(0.5)
        server.start()
        append(tracker, 40)
        wait_for(lambda: follower.step == 40)
    append(tracker, 50)
    end_training(tracker, follower.record)
    evaluate(tracker)
    assert num_warnings() == 2
    assert all(line.startswith("warning: tracking: ") for line in warnings)
    assert str(tracker.records.find_curves(follower.record)) in warnings[0]
    assert_all_is_there_once(tracker)
    assert replay_all(tracker) == ["nothing new"] * 2


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["lost", "500"])
def test_a_replay_that_is_cut_off_after_any_call_goes_on_where_it_was(tmp_path, tracker, proxy, fault):
    """Runs of their own for each number of calls that succeed before all others fail."""
    for num_calls in range(100):
        root = tmp_path / str(num_calls)
        root.mkdir()
        cut_off = Tracker(f"{tracker.profile}-{fault}-{num_calls}", root)
        proxy.suffers("500")
        train(cut_off)
        evaluate(cut_off)
        proxy.suffers(lambda number, num_calls=num_calls: fault if number > num_calls else "")
        with contextlib.suppress(ResultError):
            replay_all(cut_off)
            break
        proxy.suffers("")
        replay_all(cut_off)
        assert_all_is_there_once(cut_off)
    assert num_calls > 10


def test_the_next_stage_sends_what_the_one_before_could_not(tracker, proxy):
    proxy.suffers("500")
    train(tracker)
    proxy.suffers("")
    evaluate(tracker)
    assert_all_is_there_once(tracker)
    assert replay_all(tracker) == ["nothing new"] * 2


def test_an_evaluation_waits_with_its_files_though_they_were_replaced_since(tracker, proxy):
    train(tracker)
    proxy.suffers("500")
    evaluate(tracker)
    for name in ("fcn8s.png", "fcn8s.json"):
        (tracker.root / name).write_text("of another model")
    proxy.suffers("")
    assert replay_all(tracker)[1] == "2 scores, 2 files"
    assert_all_is_there_once(tracker)


def test_curves_wait_though_the_net_is_trained_again(tracker, proxy):
    proxy.suffers("500")
    train(tracker)
    run_folder = tracker.root / "runs" / tracker.profile / "a"
    tracker.records.keep_curves(run_folder)
    shutil.rmtree(run_folder)
    append(tracker, 1)  # of the next attempt
    proxy.suffers("")
    assert replay_all(tracker) == [f"{len(STEPS)} points"]
    assert_training_is_there_once(tracker)


def test_a_bug_is_not_taken_for_an_outage(root, monkeypatch):
    tracker = Tracker("sample", root)
    monkeypatch.setattr(tracker, "send", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        evaluate(tracker)


@pytest.mark.parametrize(
    "address",
    [
        "postgresql://me:hunter2@db/mlflow",
        "postgresql+psycopg2:///mlflow?host=db&user=me&password=hunter2",
        "postgresql:///mlflow?sslpassword=hunter2&host=db",
        "https://mlflow.internal/?Token=hunter2",
    ],
)
def test_a_password_anywhere_in_an_address_is_not_shown(address):
    shown = without_passwords(f"{address} does not answer")
    assert "hunter2" not in shown
    assert shown.endswith(" does not answer")
