"""ASHA against the full grid, and a trial against the same run alone: python -m bench.sweep [--iterations 400].

    python -m bench.sweep --replay runs/sample/sweeps/grid/sweep.json   # instead: what other settings had stopped

Both sweeps run sweeps/sample-lr.yaml: 16 trials of the sample's FCN-32s, as many at once as there are CPUs. The grid's
trials all run to the end. A sweep's time is the wall time of `fcn sweep` after the data are there, and the steps of all
trials, which do not depend on what else the machine does. A trial is compared with `stages.train fcn32s` by the median
time of a step.

--replay gives the curves of a grid, two trials at a time, to Ray's ASHA with other settings, in many random orders.
"""

import argparse
import json
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

from ray.tune.schedulers import ASHAScheduler
from ruamel.yaml import YAML

from pipeline.curves import read_points
from pipeline.tables import Table, render

Curve = Sequence[tuple[float, float]]  # percent of a trial's steps, score
AT_ONCE, ORDERS = 2, 500  # trials of a replay; orders of them
ROOT = Path(__file__).parents[1]
FCN = [sys.executable, "-m", "pipeline.cli.main"]
yaml = YAML(typ="safe", pure=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--iterations", type=int, default=400, help="of a trial")
    parser.add_argument("--folder", type=Path, help="for the runs; an interrupted bench goes on there")
    parser.add_argument("--replay", type=Path, help="the report of a sweep whose trials all ran to the end")
    arguments = parser.parse_args()
    if arguments.replay:
        print(render([replayed(json.loads(arguments.replay.read_text("utf-8")))], "markdown"))
    elif arguments.folder:
        measure(arguments.folder.absolute(), arguments.iterations)
    else:
        with TemporaryDirectory() as folder:
            measure(Path(folder), arguments.iterations)


def measure(folder: Path, iterations: int) -> None:
    settings = write_project(folder, iterations)
    times = {}
    for name, changes in (("asha", {}), ("grid", {"asha": None})):
        with (folder / f"{name}.yaml").open("w") as file:
            yaml.dump({key: value for key, value in (settings | changes).items() if value is not None}, file)
        times[name] = run(folder, [*FCN, "sweep", f"{name}.yaml"])
    steps = {name: sweep_steps(folder, name, iterations) for name in times}
    best = {name: json.loads(found.read_text("utf-8")) for name, found in reports(folder).items()}
    rows = [
        [
            name,
            f"{best_score(best[name]):.4f}",
            best[name]["trials"][best[name]["best"]]["name"],
            steps[name],
            f"{steps[name] / steps['grid']:.2f}",
            f"{times[name]:.0f}",
            f"{times[name] / times['grid']:.2f}",
        ]
        for name in times
    ]
    head = ["sweep", "best mean IU", "settings", "steps", "of the grid's", "seconds", "of the grid's"]
    print(render([Table(head, rows)], "markdown"))
    print(f"difference of the best: {best_score(best['grid']) - best_score(best['asha']):.4f}")
    print(render([overhead(folder)], "markdown"))


def write_project(folder: Path, iterations: int) -> dict[str, Any]:
    """Write the sample's profile with so many iterations and draw its images; return the sweep's settings."""
    profile = yaml.load((ROOT / "profiles" / "sample.yaml").read_text("utf-8"))
    profile["nets"]["fcn32s"]["iterations"] = iterations
    profile["run"] |= {"validate_every": iterations // 8, "log_every": max(1, iterations // 40)}
    (folder / "profiles").mkdir(parents=True, exist_ok=True)
    for name, changes in (("sample", {}), ("alone", {"num_workers": 1})):
        values = profile | {"train": profile["train"] | changes, "data": profile["data"] | {"tuning": 0.1}}
        with (folder / "profiles" / f"{name}.yaml").open("w") as file:
            yaml.dump(values, file)
        (folder / "params.yaml").write_text(f"profile: {name}\n")
        if not (folder / "models" / name / "backbone.pt").exists():
            for stage in ("download", "shard", "backbone"):
                run(folder, [sys.executable, "-m", f"stages.{stage}"])
    settings = yaml.load((ROOT / "sweeps" / "sample-lr.yaml").read_text("utf-8"))
    settings["fixed"].pop("data.tuning")
    return settings | {"hours": None}


def run(folder: Path, command: Sequence[str]) -> float:
    """Run a command in the folder, and return its seconds."""
    start = time.perf_counter()
    subprocess.run(command, cwd=folder, check=True)
    return time.perf_counter() - start


def reports(folder: Path) -> dict[str, Path]:
    return {path.parent.name: path for path in folder.glob("runs/sample/sweeps/*/sweep.json")}


def best_score(report: dict[str, Any]) -> float:
    return report["trials"][report["best"]]["result"]["points"][-1][1]


def sweep_steps(folder: Path, name: str, iterations: int) -> int:
    """Return the steps of all trials of a sweep."""
    trials = json.loads(reports(folder)[name].read_text("utf-8"))["trials"]
    return sum(round(trial["result"]["points"][-1][0] / 100 * iterations) for trial in trials)


def replayed(report: dict[str, Any]) -> Table:
    """Return, for settings of ASHA, the mean share of the grid's steps and how often its best score was reached."""
    curves = [
        [(percent, score) for percent, score in trial["result"]["points"]] for trial in report["trials"]
    ]
    best = max(curve[-1][1] for curve in curves)
    rows = []
    for first in (12.5, 25, 37.5, 50, 62.5):
        for keep in (2, 3, 4):
            settings: Any = (100, first, keep)  # any number will do
            ends = [
                replay(curves, ASHAScheduler("percent", "score", "max", *settings), seed)
                for seed in range(ORDERS)
            ]
            shares, scores = zip(*ends, strict=True)
            reached = statistics.fmean(best - score <= 0.01 for score in scores)
            lost = statistics.median(best - score for score in scores)
            row = (first / 100, keep, statistics.fmean(shares), reached, lost)
            rows.append([f"{row[0]:g}", f"{keep}", f"{row[2]:.2f}", f"{reached:.0%}", f"{lost:.3f}"])
    head = [
        "first",
        "keep",
        "steps, of the grid's",
        "orders that reach the best within 0.01",
        "median loss of mean IU",
    ]
    return Table(head, rows)


def replay(curves: Sequence[Curve], scheduler: Any, seed: int) -> tuple[float, float]:
    """Return the share of the points that ASHA lets come, and the best score of the trials that it lets end."""
    waiting = random.Random(seed).sample(range(len(curves)), len(curves))
    running: list[tuple[SimpleNamespace, Iterator[tuple[float, float]]]] = []
    num_points, best = 0, 0.0
    while waiting or running:
        while waiting and len(running) < AT_ONCE:
            trial = SimpleNamespace(trial_id=str(waiting[-1]))
            scheduler.on_trial_add(None, trial)
            running.append((trial, iter(curves[waiting.pop()])))
        for trial, points in list(running):
            percent, score = next(points)
            num_points += 1
            action = scheduler.on_trial_result(None, trial, {"percent": percent, "score": score})
            if percent >= 100:
                best = max(best, score)
            if percent >= 100 or action == scheduler.STOP:
                running.remove((trial, points))
    return num_points / sum(map(len, curves)), best


def overhead(folder: Path) -> Table:
    """Compare a run alone with the trials of a sweep, one at a time: `stages.train`, the sweep, `stages.train`."""
    settings = {
        "profile": "alone",
        "search": "grid",
        "space": {"train.seed": [1, 2]},
        "at_once": 1,
        "asha": None,
    }
    with (folder / "overhead.yaml").open("w") as file:
        yaml.dump({key: value for key, value in settings.items() if value is not None}, file)
    first = run_alone(folder)
    begun = time.time()
    run(folder, [*FCN, "sweep", "overhead.yaml"])
    second = run_alone(folder)
    alone, startups = first[0] + second[0], [first[1], second[1]]
    trials = sorted(folder.glob("runs/alone/.tracking/*seed=*/curves.jsonl"))
    starts = sorted(read_points(path)[0].time_ms / 1000 for path in trials)
    in_sweep = [seconds for path in trials for seconds in step_seconds(read_points(path))]
    ends = sorted(read_points(path)[-1].time_ms / 1000 for path in trials)
    rows = [
        ["run alone", f"{statistics.median(alone):.3f}", f"{statistics.median(startups):.1f}"],
        [
            "trial",
            f"{statistics.median(in_sweep):.3f}",
            f"{starts[0] - begun:.1f} the first, {starts[1] - ends[0]:.1f} the next",
        ],
    ]
    ratio = statistics.median(in_sweep) / statistics.median(alone)
    head = ["", "median seconds of a step", "seconds from the start to the first point"]
    return Table(head, rows, [f"A trial's step takes {ratio:.3f} of the time of the run alone."])


def run_alone(folder: Path) -> tuple[list[float], float]:
    """Train without a sweep; return the seconds of its steps, and those from the start to the first point."""
    begun = time.time()
    run(folder, [sys.executable, "-m", "stages.train", "fcn32s"])
    (curves,) = folder.glob("runs/alone/fcn32s-*/curves.jsonl")
    points = read_points(curves)
    return step_seconds(points), points[0].time_ms / 1000 - begun


def step_seconds(points: Sequence[Any]) -> list[float]:
    return [
        (after.time_ms - before.time_ms) / 1000 / (after.step - before.step)
        for before, after in pairwise(points)
        if "val_mean_iu" not in after.values
    ]


if __name__ == "__main__":
    main()
