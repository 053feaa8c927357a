"""`fcn tracking replay` sends what MLflow lacks, each thing once; test_outage.py has why MLflow lacks it."""

import subprocess
import sys

import pytest
from mlflow.entities import ViewType

from pipeline.cli import main
from pipeline.errors import ResultError
from pipeline.tracking import Follower, Tracker, replay
from tests.tiny_model import write_model
from tests.tracking.stages import (
    METRICS,
    append,
    assert_all_is_there_once,
    assert_training_is_there_once,
    begin_training,
    evaluate,
    only_run,
    replay_all,
    train,
)


def test_an_evaluation_on_another_machine_that_came_first_shares_the_run_of_its_training(tracker, proxy):
    proxy.suffers("500")
    train(tracker)
    proxy.suffers("")
    elsewhere = tracker.root / "elsewhere"
    elsewhere.mkdir()
    evaluate(Tracker(tracker.profile, elsewhere))
    replay_all(tracker)
    run = assert_training_is_there_once(tracker)
    assert run.data.params["net"] == "fcn8s"  # which the evaluation sent


def test_a_run_that_was_killed_gets_its_curves_and_is_still_running(tracker):
    Follower(tracker, begin_training(tracker))
    append(tracker, 1)
    assert replay_all(tracker) == ["1 points; it has not ended"]
    assert replay_all(tracker) == ["nothing new; it has not ended"]
    assert only_run(tracker).info.status == "RUNNING"


def test_a_run_that_was_deleted_in_mlflow_stays_deleted_until_it_is_evaluated_again(tracker):
    train(tracker)
    evaluate(tracker)
    tracker.client.delete_run(only_run(tracker).info.run_id)
    assert all("deleted" in message for message in replay_all(tracker))
    assert only_run(tracker, ViewType.ALL).info.lifecycle_stage == "deleted"
    evaluate(tracker)
    assert only_run(tracker).data.metrics == METRICS


def test_a_new_server_gets_all_of_a_profile(tracker, monkeypatch):
    train(tracker)
    evaluate(tracker)
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert replay_all(tracker) == ["5 points", "2 scores, 2 files"]
    assert_all_is_there_once(Tracker(tracker.profile, tracker.root))


def test_a_model_that_mlflow_missed_is_logged_and_one_that_is_gone_is_named(tracker, proxy):
    path = tracker.root / "final.pt"
    write_model(path)
    proxy.suffers("500")
    train(tracker, model=path)
    path.rename(path.with_suffix(".away"))
    proxy.suffers("")
    ((is_complete, message),) = replay(tracker.profile, tracker.root)
    assert not is_complete
    assert message.endswith("not sent: final.pt")
    path.with_suffix(".away").rename(path)
    assert replay_all(tracker) == ["1 files"]
    assert replay_all(tracker) == ["nothing new"]
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
    outputs = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert "5 points" in "".join(outputs)
    assert_all_is_there_once(tracker)


# --- the command


def command(*arguments: str) -> None:
    parsed = main.parser().parse_args(["tracking", "replay", *arguments])
    parsed.run(parsed)


@pytest.mark.parametrize(
    "damage", [lambda text: text[:-2], lambda text: text.replace("training", "dreaming")]
)
def test_the_command_exits_with_1_if_a_record_is_damaged_or_unknown_and_sends_the_others(
    tracker, proxy, monkeypatch, capsys, damage
):
    proxy.suffers("500")
    train(tracker)
    proxy.suffers("")
    (whole,) = tracker.records.folder.glob("*/record.json")
    damaged = tracker.records.folder / "evaluation-fcn8s-0" / "record.json"
    damaged.parent.mkdir()
    damaged.write_text(damage(whole.read_text()))
    monkeypatch.chdir(tracker.root)
    with pytest.raises(SystemExit) as exit_:
        command(tracker.profile)
    assert exit_.value.code == 1
    out = capsys.readouterr().out
    assert str(damaged) in out
    assert "fcn8s, training of a: 5 points" in out


def test_the_command_refuses_a_profile_without_runs_and_a_server_that_is_down(tracker, proxy, monkeypatch):
    monkeypatch.chdir(tracker.root)
    with pytest.raises(ResultError, match="'none'"):
        command("none")
    train(tracker)
    proxy.suffers("500")
    with pytest.raises(ResultError, match="500"):
        command(tracker.profile)
