"""pipeline/cluster/tune.py: trials with scores that are known before, run by Ray Tune."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ray import tune

from pipeline.cluster import connection
from pipeline.cluster.tune import End, _Trial, run_trials
from pipeline.errors import UserError

NUM_POINTS = 8


class Scripted:
    """Gives the same score at each point, or misbehaves."""

    def __init__(self, script: Any, folder: Path):
        self.script, self.folder, self.num_given = script, folder, 0

    def next(self) -> dict[str, Any]:
        if self.script == "hangs":
            time.sleep(0.2)
            return {"progress": 0.0}
        self.num_given += 1
        progress = 100 * self.num_given / NUM_POINTS
        if self.script == "dies" and self.num_given == 3:
            with (self.folder / "deaths").open("a") as file:
                file.write("x")
            os.kill(os.getpid(), signal.SIGKILL)
        if self.script == "raises":
            raise OSError("no such disk")
        if self.script == "fails" and self.num_given == 3:
            return {"progress": progress, "ended": True, "done": True, "failed": "no good"}
        score = self.script if isinstance(self.script, float) else 1.0
        end = {"ended": True, "done": True} if self.num_given == NUM_POINTS else {}
        return {"progress": progress, "score": score} | end

    def stop(self) -> None:
        (self.folder / f"stopped-{self.script}").touch()


@pytest.fixture(scope="module", autouse=True)
def session() -> Iterator[None]:
    with connection.session(2):
        yield


def run(folder: Path, scripts: list[Any], **changes: Any) -> dict[int, End]:
    ends: dict[int, End] = {}
    settings: dict[str, Any] = {
        "metric": "score",
        "asha": None,
        "at_once": 1,
        "seconds": None,
        "max_failures": 1,
        "storage": folder / "tune",
    }
    run_trials(
        lambda number: Scripted(scripts[number], folder),
        range(len(scripts)),
        [{"CPU": 1}] * len(scripts),
        ends.__setitem__,
        **settings | changes,
    )
    assert not (folder / "tune").exists()
    return ends


def test_asha_stops_the_trials_that_are_worse_at_the_same_progress(tmp_path: Path):
    ends = run(tmp_path, [0.5, 0.1, 0.6, 0.2], asha=(25.0, 2.0))
    states = [ends[number].state for number in range(4)]
    assert states == ["finished", "stopped", "finished", "stopped"]
    assert [score for _, score in ends[0].points] == [0.5] * NUM_POINTS
    assert ends[1].points == [(12.5, 0.1), (25.0, 0.1)]
    assert (tmp_path / "stopped-0.1").exists()


def test_failed_trials_are_named_and_the_rest_goes_on(tmp_path: Path):
    ends = run(tmp_path, ["fails", 0.3, "raises"])
    assert (ends[0].state, ends[0].message) == ("failed", "no good")
    assert ends[1].state == "finished"
    assert (ends[2].state, ends[2].message) == ("failed", "OSError: no such disk")


@pytest.mark.slow
def test_a_trial_whose_process_dies_is_started_once_more_then_named_and_the_rest_goes_on(tmp_path: Path):
    ends = run(tmp_path, ["dies", 0.3])
    assert ends[0].state == "failed"
    assert "process died" in ends[0].message
    assert "no message" not in ends[0].message
    assert "\n" not in ends[0].message
    assert (tmp_path / "deaths").read_text() == "xx"
    assert ends[1].state == "finished"


def test_when_the_time_is_over_no_trial_counts_as_ended(tmp_path: Path):
    start = time.monotonic()
    assert run(tmp_path, ["hangs", 0.4], seconds=5.0) == {}
    assert time.monotonic() - start >= 5


@pytest.mark.slow
def test_a_result_that_cannot_be_recorded_ends_the_sweep_with_its_message(tmp_path: Path):
    def refuse(number: int, end: End) -> None:  # noqa: ARG001
        raise UserError("trial.json cannot be written: No space left on device")

    with pytest.raises(UserError, match="No space left"):
        run_trials(
            lambda number: Scripted([0.1, "hangs"][number], tmp_path),
            [0, 1],
            [{"CPU": 1}] * 2,
            refuse,
            metric="score",
            asha=None,
            at_once=1,
            seconds=None,
            max_failures=0,
            storage=tmp_path / "tune",
        )


def test_a_process_that_ray_tune_drops_before_its_first_step_starts_no_trial(tmp_path: Path):
    """Tune sets up a process for a trial, and drops it for one that has become free: both would train it."""
    starts = tmp_path / "starts"

    def start(number: int) -> Scripted:
        with starts.open("a") as file:
            file.write(f"{number} ")
        return Scripted(0.5, tmp_path)

    trial_class = tune.with_parameters(_Trial, start=start)
    dropped = trial_class({"number": 2})
    dropped.stop()
    assert not starts.exists()
    free = trial_class({"number": 0})
    free.train()
    free.reset({"number": 2})
    free.train()
    assert starts.read_text() == "0 2 "
    free.stop()
    assert (tmp_path / "stopped-0.5").exists()
