"""Kill training at random points, resume it, and compare the weights with those of an undisturbed run.

    python -m bench.kills                    # 20 kills, 5 in each of 4 runs
    python -m bench.kills --points 4 --per-run 2 --seed 7

A tiny net (the sample profile's, narrower) is trained by `dvc repro train@fcn32s` in a copy of the project. At a
random step one of its processes gets SIGKILL: a worker (which Ray replaces), the stage that drives them, or `dvc`
itself. After the last two, `dvc repro` is run again. At the end of a run its weights must equal the undisturbed ones
bit for bit, and every step must have been taken. The table shows how many steps each kill cost.
"""

import argparse
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import psutil

from pipeline.models import checkpoint
from tests.project_copy import Project
from tests.stages.test_chain import tiny

ITERATIONS, CHECKPOINT_EVERY = 2000, 25
LAST_KILL = 1200  # workers live on for seconds without their driver and must not finish meanwhile
VICTIMS = ("worker", "driver", "dvc")
PATIENCE_S = 400


class Kill(NamedTuple):
    victim: str
    at: int  # steps on the curve when it happened
    resumed_from: int


class Repro:
    """`dvc repro train@fcn32s` as a process with a log; forced, or DVC would use its cache."""

    def __init__(self, project: Project):
        self.project = project
        self.log = project.folder / "repro.log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                ["dvc", "repro", "-s", "--force", "train@fcn32s"],
                cwd=project.folder,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def is_running(self) -> bool:
        return self.process.poll() is None

    def pid(self, victim: str, chance: random.Random) -> int:
        if victim == "dvc":
            return self.process.pid
        if victim == "worker":
            children = psutil.Process(self.process.pid).children(recursive=True)
            return chance.choice(
                [each.pid for each in children if any("RayTrainWorker" in word for word in each.cmdline())]
            )
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return int(
            next(pid for pid in children if b"stages.train" in Path(f"/proc/{pid}/cmdline").read_bytes())
        )

    def resumptions(self) -> list[int]:
        return [int(step) for step in re.findall(r"resumed from step (\d+)", self.log.read_text())]


def steps_done(project: Project) -> int:
    """Return the newest step on the curve, which has a point per step."""
    curves = list((project.folder / "runs" / "tiny").glob("fcn32s-*/curves.jsonl"))
    lines = curves[0].read_text().splitlines() if curves else []
    return max((json.loads(line)[0] for line in lines if line.endswith("]")), default=0)


def wait_until(condition: Callable[[], bool], what: str, log: Path) -> None:
    """Wait; exit with the end of the log if it takes too long."""
    give_up = time.monotonic() + PATIENCE_S
    while not condition():
        if time.monotonic() > give_up:
            sys.exit(f"{what} did not happen in {PATIENCE_S} s:\n{log.read_text()[-3000:]}")
        time.sleep(0.05)


def disturbed_run(project: Project, points: list[int], chance: random.Random) -> list[Kill]:
    """Train from the start, and kill one process after each of the given steps."""
    kills = []
    repro = Repro(project)
    wait_until(lambda: steps_done(project) < points[0], "a new run", repro.log)  # the old one's curve is gone
    for point in points:
        wait_until(
            lambda p=point, r=repro: steps_done(project) >= p or not r.is_running(),
            f"step {point}",
            repro.log,
        )
        at, victim, before = steps_done(project), chance.choice(VICTIMS), len(repro.resumptions())
        os.kill(repro.pid(victim, chance), signal.SIGKILL)
        if victim != "worker":
            repro.process.wait()
            repro, before = Repro(project), 0
        wait_until(lambda r=repro, n=before: len(r.resumptions()) > n, "going on", repro.log)
        kills.append(Kill(victim, at, repro.resumptions()[-1]))
        print(f"{victim:8} killed at step {at:4}, went on from {kills[-1].resumed_from:4}", flush=True)
    if repro.process.wait() != 0:
        sys.exit(repro.log.read_text()[-3000:])
    return kills


def weights_digest(project: Project) -> str:
    content, _ = checkpoint.load(project.folder / "models" / "tiny" / "fcn32s.pt", "model")
    return checkpoint.content_digest(content["state_dict"])


def curve(project: Project) -> dict[int, float]:
    """Return the first recorded loss of each step."""
    (path,) = (project.folder / "runs" / "tiny").glob("fcn32s-*/curves.jsonl")
    losses: dict[int, float] = {}
    for line in path.read_text().splitlines():
        try:
            step, _, values = json.loads(line)
        except json.JSONDecodeError:  # cut short by a kill
            continue
        losses.setdefault(step, values["loss"])
    return losses


def prepared(folder: Path) -> Project:
    project = Project(folder)
    profile = tiny(project.profile("sample"))
    profile["nets"]["fcn32s"]["iterations"] = ITERATIONS
    profile["run"] = {"log_every": 1, "checkpoint_every": CHECKPOINT_EVERY, "max_failures": 100}
    project.use_profile("tiny", profile)
    project.run("dvc", "repro", "inspect", "backbone")
    return project


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--points", type=int, default=20)
    parser.add_argument("--per-run", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    chance = random.Random(arguments.seed)
    kills: list[Kill] = []
    survived = 0
    with tempfile.TemporaryDirectory(prefix="kills") as folder:
        project = prepared(Path(folder))
        project.run("dvc", "repro", "-s", "train@fcn32s")
        expected, losses = weights_digest(project), curve(project)
        print(f"undisturbed: {expected[:16]}, {len(losses)} steps", flush=True)
        while len(kills) < arguments.points:
            number = min(arguments.per_run, arguments.points - len(kills))
            here = disturbed_run(project, sorted(chance.sample(range(1, LAST_KILL), number)), chance)
            is_equal = weights_digest(project) == expected and curve(project) == losses
            print(f"run: {number} kills, {'bit-equal' if is_equal else 'DIFFERENT'}", flush=True)
            kills += here
            survived += number if is_equal else 0
    print("\n| victim | kills | steps done again, mean | most |\n| --- | --- | --- | --- |")
    for victim in VICTIMS:
        lost = [max(0, kill.at - kill.resumed_from) for kill in kills if kill.victim == victim]
        if lost:
            print(f"| {victim} | {len(lost)} | {sum(lost) / len(lost):.1f} | {max(lost)} |")
    print(f"\n{survived} of {len(kills)} kills ended bit-equal, weights and loss of every step")
    sys.exit(survived != len(kills))


if __name__ == "__main__":
    main()
