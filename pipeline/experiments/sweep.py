"""Sweeps: many trials of a profile with other values, compared on images that are left out of train for that.

runs/<profile>/sweeps/<name>/ holds a folder for each trial, with its checkpoints, curves and result, named after all
that decides the result. A sweep that is called again runs the trials that have not ended.
"""

import random
import shutil
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from pipeline import files, paths, tracking
from pipeline.cluster import connection, ray_workers
from pipeline.cluster.tune import End, Running, run_trials
from pipeline.errors import UserError
from pipeline.experiments.sweep_plan import Plan, make_plan, make_trials
from pipeline.experiments.sweep_winner import (
    begin_run,
    best_trial,
    end_run,
    no_winner,
    trials_table,
    write_winner,
)
from pipeline.experiments.trial import Result, Trial
from pipeline.surroundings import enter_project, mlflow_settings
from pipeline.tables import render

MODELS = paths.model("", "").parts[0]


def run_sweep(path: Path, root: Path) -> Path:
    """Run a sweep, or go on with it, and write the winner's profile. Return the path of the winner's profile.

    path: of the sweep's file.
    root: the project's folder, absolute.

    Raises UserError if the file has a mistake, before any trial runs, or if no trial finishes.
    """
    plan = make_plan(path, root)
    with files.lock(plan.folder / "lock", f"runs the sweep {plan.name}"):
        trials = make_trials(plan)
        tracker = tracking.Tracker(plan.sweep.profile, root)
        group = begin_run(plan, tracker, trials)
        _run(plan, trials, tracker)
        results = [Result.read(trial.variant.folder) for trial in trials]
        print(render([trials_table(plan, results)], "plain"), flush=True)
        best = best_trial(results)
        if best is None:
            raise UserError(no_winner(plan, trials, results))
        write_winner(plan, best, trials[best], results)
        end_run(plan, tracker, group, trials[best], results, best)
    return plan.winner


def _run(plan: Plan, trials: Sequence[Trial], tracker: tracking.Tracker) -> None:
    """Run the trials that have not ended, or until the time is over."""
    num_open = sum(trial.ended() is None for trial in trials)
    elapsed = _Elapsed(plan.folder / "seconds")
    seconds = None if plan.sweep.hours is None else plan.sweep.hours * 3600 - elapsed.before
    if num_open == 0:
        return
    if seconds is not None and seconds <= 0:
        print(
            f"the {plan.sweep.hours} hours of this sweep are over; {num_open} trials have not ended",
            flush=True,
        )
        return
    print(f"sweep {plan.name}: {num_open} of {len(trials)} trials to run", flush=True)
    for trial in trials:
        trial.variant.folder.mkdir(parents=True, exist_ok=True)

    settings = mlflow_settings()

    def start(number: int) -> Running:
        enter_project(trials[number].root, settings)
        return trials[number].start()

    def on_end(number: int, end: End) -> None:
        trial = trials[number]
        elapsed.write()
        if trial.ended():  # in an earlier call
            return
        result = Result(end.state, end.points, round(end.seconds, 1), end.message, trial.asha)
        if end.state == "stopped":  # its process removes the folders as it ends
            for folder in trial.run_folders():
                with suppress(FileNotFoundError):  # the net has just been finished
                    tracker.records.keep_curves(folder)
        _close_runs(trial, result, tracker, is_again=Result.read(trial.variant.folder) is not None)
        result.write(trial.variant.folder)
        _remove_what_is_not_needed(number, result, trials)
        score = "no score" if result.score is None else f"{plan.sweep.metric} {result.score:.4f}"
        print(
            f"{end.state}: {trial.variant.name}: {score}{': ' * bool(end.message)}{end.message}", flush=True
        )

    train, run = zip(*((trial.profile.train, trial.profile.run) for trial in trials), strict=True)
    # A trial's process is the worker if there is one, else it waits for workers that reserve what they need
    resources = [
        {"CPU": r.cpus_per_worker} | ({"GPU": 1} if t.use_gpu else {}) if t.num_workers == 1 else {}
        for t, r in zip(train, run, strict=True)
    ]
    num_cpus = max(t.num_workers * r.cpus_per_worker for t, r in zip(train, run, strict=True))
    asha = plan.sweep.asha
    # ASHA compares a trial with those before it, and would stop none of a grid that begins with the worst values
    order = random.Random(plan.sweep.seed).sample(range(len(trials)), len(trials))
    with connection.session(num_cpus):
        rooms = [
            ray_workers.capacity(t.num_workers, r.cpus_per_worker, use_gpu=t.use_gpu)
            for t, r in zip(train, run, strict=True)
        ]
        try:
            run_trials(
                start,
                order,
                resources,
                on_end,
                metric=plan.sweep.metric,
                asha=asha and (100 * asha.first, asha.keep),
                at_once=min(plan.sweep.at_once or len(trials), *rooms),
                seconds=seconds,
                max_failures=max(r.max_failures for r in run),
                storage=plan.folder / ".tune",
            )
        finally:
            elapsed.write()


class _Elapsed:
    """The seconds that all calls of a sweep took together, in a file."""

    def __init__(self, path: Path):
        self.path, self.begun = path, time.monotonic()
        try:
            self.before = float(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            self.before = 0.0

    def write(self) -> None:
        files.write_text(self.path, f"{self.before + time.monotonic() - self.begun:.1f}")


def _remove_what_is_not_needed(number: int, result: Result, trials: Sequence[Trial]) -> None:
    """Remove the nets of all ended trials but the best, and what else a finished trial has left."""
    if result.state == "failed":
        return  # another call goes on from its checkpoints
    if result.state == "finished":
        shutil.rmtree(trials[number].variant.folder / paths.RUNS, ignore_errors=True)
    results = [Result.read(trial.variant.folder) for trial in trials]
    best = best_trial(results)
    for i, known in enumerate(results):
        if i != best and known is not None and known.state != "failed":
            shutil.rmtree(trials[i].variant.folder / MODELS, ignore_errors=True)


def _close_runs(trial: Trial, result: Result, tracker: tracking.Tracker, *, is_again: bool) -> None:
    """Tag the runs in MLflow of a trial with how it ended, and end them; a finished trial's have ended, without tags.

    is_again: an earlier call has tagged them.
    """
    if result.state == "finished" and not is_again:
        return
    tags = {"trial": result.state}
    if result.message or is_again:
        tags["trial_failure"] = result.message
    for record in tracker.records.read_all()[0]:
        is_of_trial = record.group == trial.variant.group and record.value.startswith(
            trial.variant.member("")
        )
        if is_of_trial and (record.ended_ms is None or is_again):
            tracker.log(record, record.metrics, {**record.tags, **tags})
