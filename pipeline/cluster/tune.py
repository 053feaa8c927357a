"""Runs the trials of a sweep with Ray Tune: as many at once as there is room for; ASHA ends bad ones early.

Nothing of Tune's own state is kept: what a trial has learned is in its folder, so a sweep that was killed starts Tune
again, and each trial goes on from there.
"""

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from textwrap import shorten
from typing import Any, Literal, NamedTuple, Protocol

from pipeline.cluster import ray_workers as _ray  # noqa: F401  # sets Ray's environment, so before Ray

# Ray Tune reads these when it runs
os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")  # else files of each trial's results
os.environ.setdefault(
    "TUNE_DISABLE_STRICT_METRIC_CHECKING", "1"
)  # a trial has no score before its first point
os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")  # Ctrl-C ends at once, as in training
os.environ.setdefault("TUNE_PRINT_ALL_TRIAL_ERRORS", "0")  # the caller names a failed trial
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")

from ray import cloudpickle, tune
from ray.exceptions import RayTaskError
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler

from pipeline.errors import UserError

PROGRESS = "progress"  # percent of a trial's steps, over all of its nets
MAX_PROGRESS = 100.0
LEAST: dict[str, float] = {"memory": 1}  # a byte, because Tune refuses a process that reserves nothing
ENDED, FAILED = "ended", "failed"  # keys of a trial's last result


class Running(Protocol):
    """A trial that runs in a process of Ray."""

    def next(self) -> dict[str, Any]:
        """Wait a while for the next point and return it, with PROGRESS; without the metric if none has come.

        The last one has ENDED, and FAILED with a message if the trial failed.
        """
        ...

    def stop(self) -> None:
        """End the trial early, so that it can go on later."""
        ...


class End(NamedTuple):
    """How a trial ended.

    state: "finished", "stopped" by ASHA, or "failed".
    points: (progress, metric) in order.
    seconds: since its start in this call.
    message: of a failure.
    """

    state: Literal["finished", "stopped", "failed"]
    points: list[tuple[float, float]]
    seconds: float
    message: str = ""


def run_trials(
    start: Callable[[int], Running],
    order: Sequence[int],
    resources: Sequence[Mapping[str, float]],
    on_end: Callable[[int, End], None],
    *,
    metric: str,
    asha: tuple[float, float] | None,
    at_once: int,
    seconds: float | None,
    max_failures: int,
    storage: Path,
) -> None:
    """Run trials until all have ended or the time is over.

    start: starts a trial by its number, in a process of Ray.
    order: the numbers in the order in which the trials start.
    resources: the CPUs and GPUs that each trial's process reserves, {} if its workers reserve their own.
    on_end: called in this process when a trial has ended, but not if the time was over before.
    metric: the key of the scores in the trials' results; more is better.
    asha: (first progress in percent, factor) as in config.sweep.Asha; None: no trial is stopped.
    at_once: the most trials at the same time.
    seconds: time limit.
    max_failures: how often a trial starts again after its process died.
    storage: a folder for Tune's files; it is removed.
    """
    scheduler = _Asha(metric, *asha) if asha else FIFOScheduler()
    observer = _Observer(metric, scheduler.stopped if isinstance(scheduler, _Asha) else set(), on_end)
    trainable = tune.with_resources(
        tune.with_parameters(_Trial, start=start),
        lambda config: tune.PlacementGroupFactory([dict(resources[config["number"]]) or LEAST]),
    )
    tuner = tune.Tuner(
        trainable,
        param_space={"number": tune.grid_search(list(order))},
        tune_config=tune.TuneConfig(
            metric=metric,
            mode="max",
            scheduler=scheduler,
            max_concurrent_trials=at_once,
            time_budget_s=seconds,
            reuse_actors=True,  # a process imports torch once
        ),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=str(storage),
            verbose=0,
            callbacks=[observer],
            stop=_StopAfterError(observer),
            failure_config=tune.FailureConfig(max_failures=max_failures),
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
        ),
    )
    try:
        tuner.fit()
        if observer.error:
            raise observer.error
    except tune.TuneError as error:
        raise observer.error or UserError(f"Ray Tune failed: {shorten(str(error), 400)}") from error
    finally:
        shutil.rmtree(storage, ignore_errors=True)


class _Trial(tune.Trainable):
    """One trial after the other in one process.

    A trial starts with its first step: Tune may set up a process for it, and then drop that process for one that has
    become free. Two processes would train the same trial.
    """

    running: Running | None = None

    def setup(  # pyright: ignore[reportIncompatibleMethodOverride]  # tune.with_parameters adds `start`
        self, config: dict[str, Any], start: Callable[[int], Running]
    ) -> None:
        self.start, self.number = start, config["number"]

    def step(self) -> dict[str, Any]:
        if self.running is None:
            self.running = self.start(self.number)
        return self.running.next()

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self.cleanup()
        self.number = new_config["number"]
        return True

    def cleanup(self) -> None:
        if self.running is not None:
            self.running.stop()
            self.running = None


class _Asha(ASHAScheduler):
    """ASHA that remembers which trials it stopped."""

    def __init__(self, metric: str, first: float, factor: float):
        super().__init__(
            time_attr=PROGRESS,
            max_t=MAX_PROGRESS,  # pyright: ignore[reportArgumentType]  # any number will do
            grace_period=first,  # pyright: ignore[reportArgumentType]
            reduction_factor=factor,
        )
        self.score = metric
        self.stopped: set[str] = set()

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        action = super().on_trial_result(tune_controller, trial, result)
        if action == self.STOP:
            self.stopped.add(trial.trial_id)
        return action


class _Observer(tune.Callback):
    """Collects the trials' points and reports their ends."""

    def __init__(self, metric: str, stopped: set[str], on_end: Callable[[int, End], None]):
        self.metric, self.stopped, self.on_end = metric, stopped, on_end
        self.points: dict[int, dict[float, float]] = {}
        self.error: UserError | None = None

    def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: Any, **_: Any) -> None:  # noqa: ARG002
        if self.metric in result:
            points = self.points.setdefault(trial.config["number"], {})
            points[result[PROGRESS]] = result[self.metric]

    def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **_: Any) -> None:  # noqa: ARG002
        result = trial.last_result
        if result.get(FAILED):
            self._end(trial, "failed", result[FAILED])
        elif result.get(ENDED):
            self._end(trial, "finished")
        elif trial.trial_id in self.stopped:
            self._end(trial, "stopped")

    def on_trial_error(self, iteration: int, trials: Any, trial: Any, **_: Any) -> None:  # noqa: ARG002
        # The file of this process: get_error() looks in the storage, where it comes later
        path = trial.pickled_error_file
        error = cloudpickle.loads(Path(path).read_bytes()) if path else None
        if isinstance(error, RayTaskError):
            message = f"{type(error.cause).__name__}: {error.cause}"
        else:
            message = f"its process died, as when memory runs out: {error or 'no message'}"
        self._end(trial, "failed", shorten(message, 400))

    def _end(self, trial: Any, state: Literal["finished", "stopped", "failed"], message: str = "") -> None:
        number = trial.config["number"]
        points = sorted(self.points.get(number, {}).items())
        try:
            self.on_end(number, End(state, points, trial.last_result.get("time_total_s", 0.0), message))
        except UserError as error:  # Tune would log it and go on
            self.error = error


class _StopAfterError(tune.Stopper):
    """Ends the sweep when the end of a trial could not be recorded, as on a full disk."""

    def __init__(self, observer: _Observer):
        self.observer = observer

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:  # noqa: ARG002
        return False

    def stop_all(self) -> bool:
        return self.observer.error is not None
