"""A trial of a sweep: trains a variant in a thread, and hands its validation scores to Ray Tune one by one."""

import json
import shutil
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from pipeline import files, paths
from pipeline.cluster.tune import ENDED, FAILED, MAX_PROGRESS, PROGRESS, Running
from pipeline.config import Profile
from pipeline.config.variant import Variant
from pipeline.curves import read_curve, read_points
from pipeline.errors import ResultError, UserError
from pipeline.experiments.variant import train_variant
from pipeline.monitoring.meter import CURVES, STOP
from pipeline.training.prepare import apply_batch_rule

POLL_S = 1.0  # between two looks at a curve, each of which reads all of it
ANSWER_S = 2.0  # Ray Tune can stop a trial only between two answers
RESULT = "trial.json"


@dataclass(frozen=True)
class Trial:
    """One trial.

    profile_name, profile: as in `run_variant`.
    root: the project's folder, absolute.
    variant: its names and folder.
    nets: those it trains, in order.
    metric: the name of the score in the curves.
    asha: the sweep's settings of ASHA; None: it stops no trial.
    """

    profile_name: str
    profile: Profile
    root: Path
    variant: Variant
    nets: tuple[str, ...]
    metric: str
    asha: Mapping[str, float] | None = None

    @property
    def num_steps(self) -> list[int]:
        """The steps of each net."""
        train = self.profile.train
        return [apply_batch_rule(train, self.profile.net(net))[1].iterations for net in self.nets]

    def points(self) -> list[tuple[float, float]]:
        """Return the scores so far: (percent of all steps of the trial, score)."""
        scores, done, total = [], 0, sum(self.num_steps)
        for net, num_steps in zip(self.nets, self.num_steps, strict=True):
            for step, score in self._net_points(net):
                scores.append((MAX_PROGRESS * (done + step) / total, score))
            done += num_steps
        return scores

    def _net_points(self, net: str) -> list[tuple[float, float]]:
        running = sorted(
            self.run_folders(net), key=lambda folder: folder.stat().st_mtime
        )  # more than one after a change of the code
        if running:
            points = read_points(running[-1] / CURVES)
            return [
                (point.step, point.values[self.metric]) for point in points if self.metric in point.values
            ]
        try:
            curve = read_curve(self.variant.folder / paths.curve(self.profile_name, net))
        except ResultError:
            return []
        return list(zip(*curve.of(self.metric), strict=True))

    def kept_score(self) -> float | None:
        """Return the score of the net that training kept, the last or the best; None if it was never scored."""
        curve = read_curve(self.variant.folder / paths.curve(self.profile_name, self.nets[-1]))
        scores = dict(zip(*curve.of(self.metric), strict=True))
        return scores.get(curve.kept["step"])

    def run_folders(self, net: str = "") -> list[Path]:
        """Return the folders of nets that are being trained."""
        runs = self.variant.folder / paths.RUNS / self.profile_name
        return [path for path in runs.glob(f"{net}*") if path.is_dir() and not path.name.startswith(".")]

    def start(self) -> Running:
        """Start or resume the trial; one that has ended before only hands out its scores."""
        result = self.ended()
        return Replay(self.metric, result) if result else Training(self)

    def ended(self) -> "Result | None":
        """Return the result of an earlier call; None if the trial failed, or other settings of ASHA stopped it."""
        result = Result.read(self.variant.folder)
        if result is None or result.state == "failed":
            return None
        return None if result.state == "stopped" and result.asha != self.asha else result


@dataclass(frozen=True)
class Result:
    """What is kept of a trial that has ended, in its folder's trial.json.

    state: "finished", "stopped" by ASHA, or "failed".
    points: (progress in percent, score) in order.
    seconds: since its start in the call in which it ended.
    message: of a failure.
    asha: the settings of ASHA in that call.
    """

    state: Literal["finished", "stopped", "failed"]
    points: Sequence[tuple[float, float]]
    seconds: float
    message: str = ""
    asha: Mapping[str, float] | None = None

    @property
    def score(self) -> float | None:
        """The last score, that of the trained net if the trial has finished."""
        return self.points[-1][1] if self.points else None

    def write(self, folder: Path) -> None:
        files.write_json(folder / RESULT, asdict(self))

    @staticmethod
    def read(folder: Path) -> "Result | None":
        """Return the result in a trial's folder; None if there is none, or it is damaged: the trial then runs again."""
        try:
            return Result(**json.loads((folder / RESULT).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None


class Training:
    """A trial that trains, in a thread of this process."""

    def __init__(self, trial: Trial):
        self.trial = trial
        self.num_given = 0
        self.progress = 0.0
        self.message = ""
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._train, daemon=True)
        self._thread.start()

    def _train(self) -> None:
        trial = self.trial
        try:
            for net in trial.nets:
                if not self._stopping.is_set():
                    train_variant(trial.profile_name, trial.profile, trial.root, trial.variant, net)
        except KeyboardInterrupt:
            self.message = f"it was stopped by a file named {STOP}"
        except UserError as error:
            self.message = str(error)
        except Exception as error:  # it must not end the other trials
            traceback.print_exc()
            self.message = f"{type(error).__name__}: {error}"

    def next(self) -> dict[str, Any]:
        deadline = time.monotonic() + ANSWER_S
        while True:
            has_ended = not self._thread.is_alive()  # looked at first: points come before the end
            points = self.trial.points()
            # The last point waits for the end, because ASHA stops a trial that has come to 100 percent
            is_last = self.num_given < len(points) and points[self.num_given][0] >= MAX_PROGRESS
            if self.num_given < len(points) and not is_last:
                self.progress, score = points[self.num_given]
                self.num_given += 1
                return {PROGRESS: self.progress, self.trial.metric: score}
            if has_ended:
                return self._end()
            if time.monotonic() > deadline:
                return {PROGRESS: self.progress}
            self._thread.join(POLL_S)

    def _end(self) -> dict[str, Any]:
        end: dict[str, Any] = {ENDED: True, "done": True, PROGRESS: MAX_PROGRESS}
        if self.message:
            return end | {FAILED: self.message}
        score = self.trial.kept_score()
        if score is None:
            return end | {
                FAILED: f"{self.trial.metric} never came; the labels of data.tuning may all be void"
            }
        return end | {self.trial.metric: score}

    def stop(self) -> None:
        """End the training; remove the checkpoints if ASHA has stopped the trial.

        Ray Tune reports that a trial was stopped before it ends the training, which writes to its folder until then.
        """
        self._stopping.set()
        while self._thread.is_alive():
            for folder in self.trial.run_folders():  # each time, because a run removes the file as it starts
                with suppress(FileNotFoundError):  # the net has just been finished
                    (folder / STOP).touch()
            self._thread.join(POLL_S)
        result = self.trial.ended()
        if result and result.state == "stopped":
            shutil.rmtree(self.trial.variant.folder / paths.RUNS, ignore_errors=True)


class Replay:
    """A trial that ended in an earlier call. ASHA compares the others with its scores as it did then."""

    def __init__(self, metric: str, result: Result):
        self.metric, self.points = metric, list(result.points)

    def next(self) -> dict[str, Any]:
        progress, score = self.points.pop(0)
        end = {} if self.points else {ENDED: True, "done": True}
        return {PROGRESS: progress, self.metric: score} | end

    def stop(self) -> None:
        pass
