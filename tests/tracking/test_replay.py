"""What MLflow missed is logged later, each thing once: a real server, behind a proxy that does it harm."""

import contextlib
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow.entities import Run, ViewType

from pipeline.cli import main
from pipeline.curves import append_point
from pipeline.errors import ResultError
from pipeline.tracking import Follower, Tracker, follower, replay
from tests.mlflow_server import Server, write_database
from tests.sick_proxy import Proxy, proxied
from tests.tiny_model import write_model

STEPS = range(10, 60, 10)
METRICS = {"mean_iu": 0.5, "iu/disc": 0.25}


@pytest.fixture(scope="module")
def empty_database(tmp_path_factory) -> Path:
    return write_database(tmp_path_factory.mktemp("template"))


@pytest.fixture(scope="module")
def server(tmp_path_factory, empty_database) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    shutil.copy(empty_database, folder / "mlflow.db")
    server = Server(folder)
    server.start()
    yield server
    server.kill()


@pytest.fixture
def proxy(server) -> Iterator[Proxy]:
    if server.process is None:
        server.start()
    with proxied(server.uri) as proxy:
        yield proxy


@pytest.fixture
def tracker(tmp_path, proxy, monkeypatch) -> Tracker:
    """Of a profile of this test's own, on the server behind the proxy."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "3")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", proxy.uri)
    monkeypatch.setattr(follower, "POLL_S", 0.05)
    return Tracker(tmp_path.name, tmp_path)


def curves_of(tracker: Tracker, attempt: str) -> Path:
    folder = tracker.root / "runs" / tracker.profile / attempt
    folder.mkdir(parents=True, exist_ok=True)
    return folder / "curves.jsonl"


def train(tracker: Tracker, attempt: str = "a", model: Path | None = None) -> list[float]:
    """As the training stage tells of it; the seconds that each point cost it."""
    curves, delays = curves_of(tracker, attempt), []
    record = tracker.record(
        "training",
        "fcn8s",
        "fcn.attempt",
        attempt,
        params={"lr": 0.1, "seed": 1},
        datasets={"train": "t" * 36},
        curves=curves,
    )
    following = Follower(tracker, record)
    with following:
        for step in STEPS:
            before = time.perf_counter()
            append_point(curves, step, {"loss": 100 / step, "lr": 0.1})
            delays.append(time.perf_counter() - before)
            time.sleep(0.03)
    tracker.log(following.record, {}, {"model_sha256": f"digest of {attempt}", "chain": "c"}, model=model)
    return delays


def evaluate(tracker: Tracker, attempt: str = "a") -> None:
    """As the evaluation stage tells of it."""
    figure, table = tracker.root / "fcn8s.png", tracker.root / "fcn8s.json"
    figure.write_bytes(b"\x89PNG of " + attempt.encode())
    table.write_text(json.dumps(METRICS))
    record = tracker.record(
        "evaluation", "fcn8s", "model_sha256", f"digest of {attempt}", params={}, datasets={"val": "v"}
    )
    tracker.log(record, METRICS, {"val_digest": "v"}, [figure], [table])


def replayed(tracker: Tracker) -> list[str]:
    """What a replay says of each record, all of which must be there afterwards."""
    found = list(replay(tracker.profile, tracker.root))
    assert all(is_whole for is_whole, _ in found), found
    return [sentence.partition(": ")[2] for _, sentence in found]


def wait_for(condition, timeout_s: float = 30) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def only_run(tracker: Tracker, view: int = ViewType.ACTIVE_ONLY) -> Run:
    (run,) = tracker.client.search_runs([tracker._experiment_id()], run_view_type=view)
    return run


def assert_all_is_there_once(tracker: Tracker, attempt: str = "a") -> None:
    run = only_run(tracker)
    client, run_id = tracker.client, run.info.run_id
    history = {key: client.get_metric_history(run_id, key) for key in ("loss", "lr", *METRICS)}
    points = {
        key: [(one.step, one.value) for one in sorted(found, key=lambda m: m.step)]
        for key, found in history.items()
    }
    assert points["loss"] == [(step, pytest.approx(100 / step)) for step in STEPS]
    assert points["lr"] == [(step, 0.1) for step in STEPS]
    assert {key: points[key] for key in METRICS} == {key: [(0, value)] for key, value in METRICS.items()}
    assert run.data.params == {"lr": "0.1", "seed": "1"}
    assert run.data.tags["fcn.attempt"] == attempt
    assert run.data.tags["model_sha256"] == f"digest of {attempt}"
    assert (run.data.tags["chain"], run.data.tags["val_digest"]) == ("c", "v")
    assert (run.info.run_name, run.info.status) == ("fcn8s", "FINISHED")
    inputs = {one.dataset.name.rpartition("-")[2]: one.dataset.digest for one in run.inputs.dataset_inputs}
    assert len(run.inputs.dataset_inputs) == 2
    assert inputs == {"train": "t" * 36, "val": "v"}
    assert {file.path for file in client.list_artifacts(run_id)} == {"figures", "fcn8s.json"}
    there = client.download_artifacts(run_id, "figures/fcn8s.png", str(tracker.root))
    assert Path(there).read_bytes() == b"\x89PNG of " + attempt.encode()


def flaky(number: int) -> str:
    return ("", "500", "lost", "cut")[number % 4]


@pytest.mark.parametrize("fault", ["500", "lost", "cut", "slow", flaky, "down"])
def test_what_a_sick_server_missed_is_there_once_after_a_replay_and_training_never_waited(
    tracker, server, proxy, fault, capsys
):
    if fault == "down":
        server.kill()
    else:
        proxy.suffers(fault)
    delays = train(tracker)
    evaluate(tracker)
    warnings = capsys.readouterr().err.splitlines()
    assert all(line.startswith("warning: tracking: ") for line in warnings)
    assert (warnings == []) == (fault == "slow")
    if fault == "down":
        server.start()
    proxy.suffers("")
    replayed(tracker)
    assert_all_is_there_once(tracker)
    assert replayed(tracker) == ["nothing new"] * 2
    assert_all_is_there_once(tracker)
    assert max(delays) < 0.05  # s that training waits for a point


def test_a_server_that_dies_in_mid_run_and_comes_back_has_all_of_it_without_a_replay(tracker, server):
    curves = curves_of(tracker, "a")
    record = tracker.record(
        "training",
        "fcn8s",
        "fcn.attempt",
        "a",
        params={"lr": 0.1, "seed": 1},
        datasets={"train": "t" * 36},
        curves=curves,
    )
    following = Follower(tracker, record)
    with following:
        for step in STEPS:
            append_point(curves, step, {"loss": 100 / step, "lr": 0.1})
            if step == 20:
                wait_for(lambda: following._step == 20)
                server.kill()
                time.sleep(0.5)
    server.start()
    tracker.log(following.record, {}, {"model_sha256": "digest of a", "chain": "c"})
    evaluate(tracker)
    assert_all_is_there_once(tracker)
    assert replayed(tracker) == ["nothing new"] * 2


@pytest.mark.parametrize("fault", ["500", "lost"])
def test_a_replay_that_is_cut_off_after_any_call_goes_on_where_it_was(tmp_path, tracker, proxy, fault):
    """Fresh runs for each number of calls that get through before all others fail."""
    for passed in range(100):
        root = tmp_path / str(passed)
        root.mkdir()
        one = Tracker(f"{tracker.profile}-{fault}-{passed}", root)
        proxy.suffers("500")
        train(one)
        evaluate(one)
        proxy.suffers(lambda number, passed=passed: fault if number > passed else "")
        with contextlib.suppress(ResultError):
            replayed(one)
            break
        proxy.suffers("")
        replayed(one)
        assert_all_is_there_once(one)
    assert passed > 10


def test_an_evaluation_that_mlflow_missed_is_sent_though_its_files_were_replaced_since(tracker, proxy):
    train(tracker)
    proxy.suffers("500")
    evaluate(tracker)
    for name in ("fcn8s.png", "fcn8s.json"):
        (tracker.root / name).write_text("of another model")
    proxy.suffers("")
    assert replayed(tracker)[1] == "2 scores, 2 files"
    assert_all_is_there_once(tracker)


def test_the_next_stage_sends_what_the_one_before_could_not_and_there_is_one_run(tracker, proxy):
    proxy.suffers("500")
    train(tracker)
    proxy.suffers("")
    evaluate(tracker)
    assert_all_is_there_once(tracker)
    assert replayed(tracker) == ["nothing new"] * 2


def test_an_evaluation_on_another_machine_that_came_first_shares_the_run_of_its_training(tracker, proxy):
    proxy.suffers("500")
    train(tracker)
    proxy.suffers("")
    elsewhere = tracker.root / "elsewhere"
    elsewhere.mkdir()
    evaluate(Tracker(tracker.profile, elsewhere))
    replayed(tracker)
    assert only_run(tracker).data.tags["fcn.attempt"] == "a"


def test_curves_of_a_run_that_is_trained_again_are_not_lost(tracker, proxy):
    proxy.suffers("500")
    train(tracker, "a")
    folder = curves_of(tracker, "a").parent
    tracker.shelf.keep_curves(folder)
    shutil.rmtree(folder)
    folder.mkdir()
    append_point(folder / "curves.jsonl", 10, {"loss": -1.0})  # of the next attempt
    proxy.suffers("")
    assert replayed(tracker) == ["5 points"]
    loss = tracker.client.get_metric_history(only_run(tracker).info.run_id, "loss")
    assert [one.value for one in loss] == [pytest.approx(100 / step) for step in STEPS]


def test_a_run_that_was_killed_has_its_curves_after_a_replay_and_is_not_said_to_have_ended(tracker):
    curves = curves_of(tracker, "a")
    record = tracker.record("training", "fcn8s", "fcn.attempt", "a", params={}, datasets={}, curves=curves)
    Follower(tracker, record)
    append_point(curves, 1, {"loss": 1.0})
    assert replayed(tracker) == ["1 points; it has not ended"]
    assert replayed(tracker) == ["nothing new; it has not ended"]
    assert only_run(tracker).info.status == "RUNNING"


def test_a_run_that_was_deleted_in_mlflow_stays_deleted_until_it_is_evaluated_again(tracker):
    train(tracker)
    evaluate(tracker)
    tracker.client.delete_run(only_run(tracker).info.run_id)
    assert replayed(tracker) == ["its run was deleted in MLflow, and stays so"] * 2
    assert only_run(tracker, ViewType.ALL).info.lifecycle_stage == "deleted"
    evaluate(tracker)
    assert only_run(tracker).data.metrics == METRICS


def test_a_server_that_is_new_gets_all_of_a_profile(tracker, empty_database, monkeypatch):
    train(tracker)
    evaluate(tracker)
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    shutil.copy(empty_database, tracker.root)
    assert replayed(tracker) == ["5 points", "2 scores, 2 files"]
    assert_all_is_there_once(Tracker(tracker.profile, tracker.root))


def test_a_model_that_mlflow_missed_is_logged_by_a_replay_and_one_that_is_gone_is_named(tracker, proxy):
    path = curves_of(tracker, "a").parent / "final.pt"
    write_model(path)
    proxy.suffers("500")
    train(tracker, "a", path)
    path.rename(path.with_suffix(".away"))
    proxy.suffers("")
    ((is_whole, sentence),) = replay(tracker.profile, tracker.root)
    assert not is_whole
    assert sentence.endswith(f"5 points; changed since, and not sent: {path.relative_to(tracker.root)}")
    path.with_suffix(".away").rename(path)
    assert replayed(tracker) == ["1 files"]
    assert replayed(tracker) == ["nothing new"]
    assert len(only_run(tracker).outputs.model_outputs) == 1


def test_two_replays_at_once_make_one_run(tracker, proxy):
    proxy.suffers("500")
    train(tracker)
    evaluate(tracker)
    proxy.suffers("")
    command = [sys.executable, "-m", "pipeline.cli.main", "tracking", "replay", tracker.profile]
    processes = [
        subprocess.Popen(command, cwd=tracker.root, stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    said = sorted(process.communicate()[0] for process in processes)
    assert [process.returncode for process in processes] == [0, 0]
    assert "5 points" in "".join(said)
    assert_all_is_there_once(tracker)


def command(*arguments: str) -> None:
    parsed = main.parser().parse_args(["tracking", "replay", *arguments])
    parsed.run(parsed)


def test_the_command_exits_with_1_if_a_record_cannot_be_read_and_sends_the_others(
    tracker, proxy, monkeypatch, capsys
):
    proxy.suffers("500")
    train(tracker)
    proxy.suffers("")
    damaged = tracker.shelf.folder / "evaluation-fcn8s-0" / "record.json"
    damaged.parent.mkdir()
    damaged.write_text("{")
    monkeypatch.chdir(tracker.root)
    with pytest.raises(SystemExit) as exit_:
        command(tracker.profile)
    assert exit_.value.code == 1
    out = capsys.readouterr().out
    assert f"{damaged} cannot be read" in out
    assert "fcn8s, training of a: 5 points" in out


def test_the_command_says_what_is_wrong_if_there_are_no_runs_or_the_server_is_down(
    tracker, proxy, monkeypatch
):
    monkeypatch.chdir(tracker.root)
    with pytest.raises(ResultError, match="no runs of profile 'none'"):
        command("none")
    train(tracker)
    proxy.suffers("500")
    with pytest.raises(ResultError, match=r"MLflow does not answer: .* run the same command again"):
        command(tracker.profile)
