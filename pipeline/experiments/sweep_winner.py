"""The winner of a sweep: the table of all trials, the best one's profile, and the sweep's run in MLflow."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from pipeline import config, files, git, paths, tracking
from pipeline.config.sweep import describe, with_values
from pipeline.config.variant import shards_folder
from pipeline.experiments.sweep_plan import HEADER, Plan
from pipeline.experiments.trial import Result, Trial
from pipeline.shards.read import open_shards
from pipeline.tables import Table


def best_trial(results: Sequence[Result | None]) -> int | None:
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


def trials_table(plan: Plan, results: Sequence[Result | None]) -> Table:
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


def no_winner(plan: Plan, trials: Sequence[Trial], results: Sequence[Result | None]) -> str:
    failed = [
        f"{trial.variant.name}: {result.message}"
        for trial, result in zip(trials, results, strict=True)
        if result is not None and result.state == "failed"
    ]
    if failed:
        return f"no trial of {plan.path} has finished; {files.and_more(failed, 3)}"
    return f"no trial of {plan.path} has finished; raise `hours` and run the same command again to go on"


def write_winner(plan: Plan, best: int, trial: Trial, results: Sequence[Result | None]) -> None:
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
        f"# chosen by: {plan.sweep.metric} {_score(results, best):.4f} of {plan.nets[-1]} on "
        f"{_num_scored(plan, trial)} images of data.tuning, which are in neither train nor val",
        f"# MLflow:   experiment fcn-{plan.sweep.profile}, tag fcn.group = {trial.variant.group}",
        f"# git:      {_commit(plan.root)}",
        "# The profile that was varied:",
    ]
    with files.whole(plan.winner) as file:
        file.write(("\n".join(header) + "\n").encode())
        yaml.dump(values, file)


def _num_scored(plan: Plan, trial: Trial) -> int:
    """Return the number of images that the trial's scores are of."""
    settings = trial.profile.train if trial.profile.train.chooses else trial.profile.run
    folder = shards_folder(plan.root, trial.variant, plan.sweep.profile, "tuning")
    return min(settings.validate_images, len(open_shards(folder, cache=plan.root / paths.VERIFIED)))


def _commit(root: Path) -> str:
    commit = git.find_commit(root)
    return f"{commit.sha}{' with changes' * commit.is_dirty}" if commit else "not a checkout"


def begin_run(plan: Plan, tracker: tracking.Tracker, trials: Sequence[Trial]) -> Any:
    record = tracker.record(
        "group",
        f"sweep {plan.name}",
        tracking.GROUP,
        trials[0].variant.group,
        params={"sweep": plan.sweep.model_dump(mode="json", exclude_none=True)},
        datasets={},
    )
    return tracker.begin(record)


def end_run(
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
