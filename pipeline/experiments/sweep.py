"""Sweeps: many trials of a profile with other values, compared on images that are left out of train for that.

runs/<profile>/sweeps/<name>/ holds a folder for each trial, with its checkpoints, curves and result, named after all
that decides the result. A sweep that is called again runs the trials that have not ended.
"""

import hashlib
import json
import random
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from pipeline import config, files, paths, tracking
from pipeline.cluster import ray_workers
from pipeline.cluster.tune import End, Running, run_trials
from pipeline.config import CHAIN, Profile
from pipeline.config.sweep import Sweep, Values, describe, read, with_values
from pipeline.config.variant import Variant
from pipeline.errors import ConfigError, LeakError, UserError
from pipeline.experiments.trial import Result, Trial
from pipeline.inspection import leaks
from pipeline.shards.read import Shards, open_shards
from pipeline.tables import Table, render
from pipeline.training.prepare import CODE, code_that_decides

HEADER = "# The winner of the sweep "
SPLITS = ("train", "val", "tuning")
MAX_NAME = 120  # of a trial in MLflow, which allows 250 for a run
MODELS = paths.model("", "").parts[0]


@dataclass(frozen=True)
class Plan:
    """A sweep that was read and found to be runnable.

    path: of its file.
    root: the project's folder, absolute.
    profiles: of each trial.
    values: of `space`, for each trial.
    """

    path: Path
    root: Path
    sweep: Sweep
    profiles: list[Profile]
    values: list[Values]

    @property
    def name(self) -> str:
        return self.path.stem

    @property
    def folder(self) -> Path:
        return self.root / paths.RUNS / self.sweep.profile / "sweeps" / self.name

    @property
    def winner(self) -> Path:
        """The file of the winner's profile."""
        return self.root / config.PROFILES / f"{self.name}-best.yaml"

    @property
    def nets(self) -> tuple[str, ...]:
        if self.profiles[0].model.at_once:  # such a net starts from the backbone
            return (self.sweep.net,)
        return CHAIN[: CHAIN.index(self.sweep.net) + 1]


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
        group = _begin_group(plan, tracker, trials)
        _run(plan, trials, tracker)
        results = [Result.read(trial.variant.folder) for trial in trials]
        print(render([_table(plan, results)], "plain"), flush=True)
        best = _best(results)
        if best is None:
            raise UserError(_no_winner(plan, trials, results))
        _write_winner(plan, best, trials[best], results)
        _end_group(plan, tracker, group, trials[best], results, best)
    return plan.winner


# Before the trials


def make_plan(path: Path, root: Path) -> Plan:
    """Read a sweep and check whatever can be checked before a trial runs."""
    settings, profiles = read(path, root)
    plan = Plan(path, root, settings, profiles, settings.trials())
    if not plan.name.replace("-", "").replace("_", "").isalnum():
        raise ConfigError(f"{path}: the file's name becomes a profile's: use letters, digits, - and _")
    for profile in profiles:
        if not profile.data.tuning:
            raise ConfigError(
                f"{path}: data.tuning of profiles/{settings.profile}.yaml is {profile.data.tuning}; settings must not "
                "be chosen by the images of the final score, so a sweep needs some of train: add data.tuning: 0.1 to "
                "`fixed`, or set it in the profile"
            )
        _refuse_missing_scores(path, settings, profile)
    winner = plan.winner
    if winner.exists() and not winner.read_text(encoding="utf-8").startswith(f"{HEADER}{plan.name}:"):
        raise ConfigError(f"{winner} exists and is not of this sweep: rename it, or the sweep's file")
    return plan


def _refuse_missing_scores(path: Path, settings: Sweep, profile: Profile) -> None:
    """Refuse a profile in which no score comes, or none before ASHA first looks at it."""
    every = profile.train.validate_every or profile.run.validate_every
    if every == 0:
        raise ConfigError(
            f"{path}: run.validate_every is 0, so {settings.metric} would never come; set it in `fixed`"
        )
    if settings.asha and not profile.train.batch_rule:
        first = max(1, int(settings.asha.first * profile.net(CHAIN[0]).iterations))
        if every > first:
            raise ConfigError(
                f"{path}: asha.first is {settings.asha.first}, {first} iterations, but the first score comes after "
                f"{every}; set run.validate_every to at most {first} in `fixed`, or asha.first higher"
            )


def make_trials(plan: Plan) -> list[Trial]:
    """Return the trials, with shards for all of them."""
    own = config.read(plan.sweep.profile, plan.root)
    code = files.code_digest(CODE, code_that_decides())
    group = _group(plan.folder)
    opened: dict[str, dict[str, Shards]] = {}
    trials = []
    for profile, values in zip(plan.profiles, plan.values, strict=True):
        data = None
        if (profile.data, profile.shards) != (own.data, own.shards):
            data = _write_shards(plan, profile)
        if str(data) not in opened:
            opened[str(data)] = _open_shards(plan, profile, data)
        shards = opened[str(data)]
        decides = [
            plan.nets,
            plan.sweep.metric,
            profile.model_dump(mode="json", exclude={"run", "evaluate"}),
            [shards[split].digest for split in ("train", "tuning")],
            code,
        ]
        digest = hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()
        name = describe(values).replace("/", "_")
        if len(name) > MAX_NAME:
            name = f"{name[:MAX_NAME]} {digest[:8]}"
        if "run.validate_images" not in plan.sweep.fixed:  # all: a few say little about a setting
            run = profile.run.model_copy(update={"validate_images": len(shards["tuning"])})
            profile = profile.model_copy(update={"run": run})
        variant = Variant(name, group, plan.folder / digest[:12], data, values)
        trials.append(Trial(plan.sweep.profile, profile, plan.root, variant, plan.nets, plan.sweep.metric))
    return trials


def _group(folder: Path) -> str:
    """Return the tag of the sweep's run in MLflow, which stays the same until the sweep's folder is removed."""
    path = folder / "group"
    if not path.exists():
        files.write_text(path, f"sweep {folder.name} {secrets.token_hex(4)}")
    return path.read_text(encoding="utf-8")


def _write_shards(plan: Plan, profile: Profile) -> Path:
    """Write shards for trials whose data are not those of the sweep's profile; return the folder of the splits."""
    name, raw = plan.sweep.profile, plan.root / paths.raw(plan.sweep.profile)
    if not raw.is_dir():
        raise UserError(
            f"{raw} is missing; write `profile: {name}` into {config.PARAMS} and run `dvc repro download`"
        )
    values = profile.model_dump(mode="json", exclude_unset=True)
    source = plan.root / paths.source(name)
    inputs = [values["data"], values["shards"], source.read_text("utf-8") if source.exists() else ""]
    digest = hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()
    folder = plan.folder / f"data-{digest[:12]}"
    shards, written = folder / paths.shards(name, "train").parent, folder / "written"
    if written.exists():
        return shards
    (folder / config.PROFILES).mkdir(parents=True, exist_ok=True)
    (folder / config.PARAMS).write_text(f"profile: {name}\n", encoding="utf-8")
    with files.whole(folder / config.PROFILES / f"{name}.yaml") as file:
        values["shards"].pop("destination", None)
        YAML().dump(values, file)
    link = folder / paths.raw(name)
    link.parent.mkdir(parents=True, exist_ok=True)
    if not link.is_symlink():
        link.symlink_to(raw)
    if subprocess.run([sys.executable, "-m", "stages.shard"], cwd=folder, check=False).returncode:
        raise UserError(f"the shards of the sweep could not be written to {folder}; the message is above")
    written.touch()
    return shards


def _open_shards(plan: Plan, profile: Profile, data: Path | None) -> dict[str, Shards]:
    """Open a trial's shards; LeakError if images to choose settings on are also trained on or in the final score."""
    folder = data or plan.root / paths.shards(plan.sweep.profile, "train").parent
    cache = plan.root / paths.VERIFIED
    shards = {split: open_shards(folder / split, split=split, cache=cache) for split in SPLITS}
    if list(shards["train"].classes) != profile.data.classes:
        raise ConfigError(f"{folder} has other classes than data.classes; run `dvc repro shard`")
    images = {split: leaks.Images.of_shards(split, opened) for split, opened in shards.items()}
    if both := leaks.shared_images(images["val"], images["tuning"]):
        raise LeakError(
            f"{len(both)} images of val are in tuning: {leaks.named(both, 'tuning')}; settings must not be chosen by "
            "the images of the final score: leave them out of train, or run `dvc repro shard`"
        )
    trained = leaks.shared_images(images["tuning"], images["train"])
    if same := sorted(key for key, other in trained.items() if key == other):
        raise LeakError(
            f"{len(same)} images of tuning are trained on: {files.and_more(same)}; run `dvc repro shard`"
        )
    return shards


# The trials


def _run(plan: Plan, trials: Sequence[Trial], tracker: tracking.Tracker) -> None:
    """Run the trials that have not ended, or until the time is over."""
    results = [Result.read(trial.variant.folder) for trial in trials]
    num_open = sum(result is None or result.state == "failed" for result in results)
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

    def start(number: int) -> Running:
        return trials[number].start()

    def on_end(number: int, end: End) -> None:
        trial = trials[number]
        elapsed.write()
        previous = Result.read(trial.variant.folder)
        if previous is not None and previous.state != "failed":  # it ended in an earlier call
            return
        result = Result(end.state, end.points, round(end.seconds, 1), end.message)
        _remove_what_is_not_needed(number, result, trials)
        _close_runs(trial, result, tracker)
        result.write(trial.variant.folder)
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
    with ray_workers.session(num_cpus):
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
    """Remove the nets of all ended trials but the best, and checkpoints of a trial that will not go on."""
    if result.state == "failed":
        return  # another call goes on from its checkpoints
    shutil.rmtree(trials[number].variant.folder / paths.RUNS, ignore_errors=True)
    results = [Result.read(trial.variant.folder) for trial in trials]
    results[number] = result
    best = _best(results)
    for i, known in enumerate(results):
        if i != best and known is not None and known.state != "failed":
            shutil.rmtree(trials[i].variant.folder / MODELS, ignore_errors=True)


def _close_runs(trial: Trial, result: Result, tracker: tracking.Tracker) -> None:
    """End the runs in MLflow of a trial that did not finish."""
    if result.state == "finished":
        return
    for record in tracker.records.read_all()[0]:
        is_of_trial = record.group == trial.variant.group and record.value.startswith(
            trial.variant.member("")
        )
        if is_of_trial and record.ended_ms is None:
            tags = {"trial": result.state} | ({"trial_failure": result.message} if result.message else {})
            tracker.log(record, {}, tags)


# After the trials


def _best(results: Sequence[Result | None]) -> int | None:
    """Return the number of the finished trial with the best score; the first of equal ones."""
    scores = {
        number: result.score
        for number, result in enumerate(results)
        if result is not None and result.state == "finished" and result.score is not None
    }
    return max(scores, key=lambda number: (scores[number], -number)) if scores else None


def _score(results: Sequence[Result | None], number: int) -> float:
    """Return the score of a finished trial."""
    result = results[number]
    assert result is not None
    score = result.score
    assert score is not None
    return score


def _table(plan: Plan, results: Sequence[Result | None]) -> Table:
    def cells(number: int) -> list[object]:
        result = results[number]
        values = [str(value) for value in plan.values[number].values()]
        if result is None:
            return [*values, "-", "has not ended", "-", "-"]
        score = "-" if result.score is None else f"{result.score:.4f}"
        progress = f"{result.points[-1][0]:.0f}%" if result.points else "-"
        return [*values, score, result.state, progress, f"{result.seconds:.0f}"]

    def rank(number: int) -> tuple[bool, float]:
        result = results[number]
        is_finished = result is not None and result.state == "finished"
        score = result.score if result is not None else None
        return not is_finished, -(score or 0.0)

    numbers = sorted(range(len(results)), key=rank)
    head = [*plan.values[0], plan.sweep.metric, "trial", "of its steps", "seconds"]
    return Table(head, [cells(number) for number in numbers])


def _no_winner(plan: Plan, trials: Sequence[Trial], results: Sequence[Result | None]) -> str:
    failed = [
        f"{trial.variant.name}: {result.message}"
        for trial, result in zip(trials, results, strict=True)
        if result is not None and result.state == "failed"
    ]
    if failed:
        return f"no trial of {plan.path} has finished; {files.and_more(failed, 3)}"
    return f"no trial of {plan.path} has finished; raise `hours` and run the same command again to go on"


def _write_winner(plan: Plan, best: int, trial: Trial, results: Sequence[Result | None]) -> None:
    """Write the winner's profile: the sweep's profile with its comments, and the winner's values."""
    yaml = YAML()
    yaml.width = 4096  # a line stays a line
    yaml.preserve_quotes = True
    values = yaml.load(config.path_of(plan.sweep.profile, plan.root).read_text(encoding="utf-8"))
    values = with_values(values, plan.sweep.fixed | plan.values[best], plan.path)
    num_finished = sum(other is not None and other.state == "finished" for other in results)
    header = [
        f"{HEADER}{plan.name}: {trial.variant.name}",
        f"# sweep:    {plan.path.name} over profiles/{plan.sweep.profile}.yaml; {len(results)} trials, "
        f"{num_finished} to the end",
        f"# chosen by: {plan.sweep.metric} {_score(results, best):.4f} of {plan.nets[-1]} on the "
        f"{trial.profile.run.validate_images} images of data.tuning, which are in neither train nor val",
        f"# MLflow:   experiment fcn-{plan.sweep.profile}, tag fcn.group = {trial.variant.group}",
        f"# git:      {_commit(plan.root)}",
        "# The profile that was varied:",
    ]
    with files.whole(plan.winner) as file:
        file.write(("\n".join(header) + "\n").encode())
        yaml.dump(values, file)


def _commit(root: Path) -> str:
    from pipeline import git

    commit = git.find_commit(root)
    return f"{commit.sha}{' with changes' * commit.is_dirty}" if commit else "not a checkout"


def _begin_group(plan: Plan, tracker: tracking.Tracker, trials: Sequence[Trial]) -> Any:
    record = tracker.record(
        "group",
        f"sweep {plan.name}",
        tracking.GROUP,
        trials[0].variant.group,
        params={"sweep": plan.sweep.model_dump(mode="json", exclude_none=True)},
        datasets={},
    )
    return tracker.begin(record)


def _end_group(
    plan: Plan,
    tracker: tracking.Tracker,
    group: Any,
    winner: Trial,
    results: Sequence[Result | None],
    best: int,
) -> None:
    report = {
        "metric": plan.sweep.metric,
        "best": best,
        "trials": [
            {"name": describe(values), "values": values, "result": result and result.__dict__}
            for values, result in zip(plan.values, results, strict=True)
        ],
    }
    path = plan.folder / "sweep.json"
    files.write_json(path, report)
    states = [result.state if result else "not ended" for result in results]
    metrics = {plan.sweep.metric: _score(results, best)} | {
        f"num_{state}": float(states.count(state)) for state in ("finished", "stopped", "failed")
    }
    tags = {"winner": winner.variant.name, "winner_profile": plan.winner.stem}
    tracker.log(replace(group, ended_ms=None), metrics, tags, files=[path, plan.winner])
