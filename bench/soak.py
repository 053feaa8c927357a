"""Inject random faults into `dvc repro` for an hour, and compare its results with those of an undisturbed run.

    python -m bench.soak --minutes 60 --seed 0

Three projects take turns, each with a tiny net: the drawn sample; a folder of own photos; and the sample with its
shards in moto's S3 server. All log to a real MLflow server. Each round runs the whole chain from the start. At a random
time it injects one of these faults:

* SIGKILL for a worker, the driver, dvc or the MLflow server;
* a store that does not answer for some seconds;
* one flipped bit in a shard, a checkpoint, a model, an object of DVC's cache or a block of the node's cache;
* a full disk (a tmpfs, which needs root; without root this fault is left out);
* modification times of all files that are a day too early or too late.

Then the round calls `dvc repro` until it succeeds, at most TRIES times. It removes the files that a message tells the
user to remove.

A round passes if the weights and scores of all three nets are bit-equal to those of an undisturbed run, and no call
ended with a traceback. The table counts the rounds that passed without an error and those with one.
"""

import argparse
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
from PIL import Image

from pipeline.models import checkpoint
from tests.mlflow_server import Server
from tests.project_copy import Project
from tests.s3_server import BUCKET, s3_server
from tests.stages.test_chain import CHAIN, tiny

KINDS = ("sample", "own", "store")
TRIES = 4
DISK_MIB = 3000
STILL_S = 20  # that the store stands still, the MLflow server is down, the disk is full


class Chain:
    """A project, and `dvc repro` in it as a process with a log."""

    def __init__(self, folder: Path, kind: str, tracking_uri: str):
        folder.mkdir()
        self.project, self.kind, self.log = Project(folder), kind, folder / "repro.log"
        self.environment = os.environ | {
            "MLFLOW_TRACKING_URI": tracking_uri,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        }
        profile = tiny(self.project.profile("sample"))
        for net in profile["nets"].values():
            net["iterations"] = 60
        profile["run"] = {"log_every": 5, "checkpoint_every": 10, "cache": {"folder": str(folder / "blocks")}}
        if kind == "own":
            own = own_folder(folder.parent / "photos", profile["data"]["classes"])
            profile["data"]["source"] = {"own": str(own)}
            profile["data"]["splits"] = {name: {"include": [f"own/{name}"]} for name in ("train", "val")}
        if kind == "store":
            profile["shards"]["destination"] = f"s3://{BUCKET}/soak"
        self.project.use_profile("tiny", profile)

    def start(self, *options: str) -> None:
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                ["dvc", "repro", *options],
                cwd=self.project.folder,
                env=self.environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def pids(self, part: str) -> list[int]:
        """Return the processes below dvc whose command has this part."""
        found = []
        for process in psutil.Process(self.process.pid).children(recursive=True):
            try:
                if part in " ".join([process.name(), *process.cmdline()]):
                    found.append(process.pid)
            except psutil.Error:
                continue
        return found

    def result(self) -> str:
        """Return the digest of all weights, and the scores."""
        folder, words = self.project.folder, []
        for net in CHAIN:
            content, _ = checkpoint.load(folder / "models" / "tiny" / f"{net}.pt", "model")
            words.append(checkpoint.content_digest(content["state_dict"])[:12])
            words.append(str(self.project.json(f"metrics/tiny/{net}.json")["mean_iu"]))
        return " ".join(words)


def own_folder(own: Path, classes: list[str]) -> Path:
    """Write a few drawn photos and masks as a folder of one's own."""
    chance = np.random.default_rng(0)
    (own / "splits").mkdir(parents=True)
    for name in ("images", "masks"):
        (own / name).mkdir()
    (own / "classes.txt").write_text("".join(f"{name}\n" for name in classes), encoding="utf-8")
    for split, count in (("train", 4), ("val", 2)):
        keys = [f"{split}{number}" for number in range(count)]
        (own / "splits" / f"{split}.txt").write_text("".join(f"{key}\n" for key in keys), encoding="utf-8")
        for key in keys:
            coarse = chance.integers(0, 256, (6, 6, 3), np.uint8)
            Image.fromarray(coarse).resize((48, 48)).save(own / "images" / f"{key}.jpg")
            labels = chance.permutation(36).astype(np.uint8).reshape(6, 6) % len(classes)
            Image.fromarray(labels.repeat(8, 0).repeat(8, 1)).save(own / "masks" / f"{key}.png")
    return own


# Faults: each returns what it did, or None where there is nothing to do it to


def killed(part: str) -> Callable[[Chain, random.Random], str | None]:
    def fault(chain: Chain, chance: random.Random) -> str | None:
        pids = [chain.process.pid] if part == "dvc" else chain.pids(part)
        if not pids:
            return None
        os.kill(chance.choice(pids), signal.SIGKILL)
        return f"{part} killed"

    return fault


def damaged(pattern: str) -> Callable[[Chain, random.Random], str | None]:
    def fault(chain: Chain, chance: random.Random) -> str | None:
        paths = [
            path for path in chain.project.folder.glob(pattern) if path.is_file() and path.stat().st_size
        ]
        if not paths:
            return None
        path = chance.choice(sorted(paths))
        path.chmod(0o644)
        content = bytearray(path.read_bytes())
        content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
        path.write_bytes(content)
        return f"a bit of {path.relative_to(chain.project.folder)} flipped"

    return fault


def times_moved(chain: Chain, chance: random.Random) -> str | None:
    shift_s = chance.choice([-1, 1]) * 86400
    for path in chain.project.folder.rglob("*"):
        if path.is_file() and ".git" not in path.parts:
            stat = path.stat()
            os.utime(path, (stat.st_atime + shift_s, stat.st_mtime + shift_s))
    return f"files' times moved by {shift_s // 3600:+} h"


def disk_full(chain: Chain, _: random.Random) -> str | None:
    folder = chain.project.folder
    if not os.path.ismount(folder.parent):
        return None
    ballast = folder.parent / "ballast"
    with ballast.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, shutil.disk_usage(folder).free - 4096)
    time.sleep(STILL_S)
    ballast.unlink()
    return f"disk full for {STILL_S} s"


def still(pid: int, what: str) -> Callable[[Chain, random.Random], str | None]:
    def fault(_chain: Chain, _chance: random.Random) -> str | None:
        os.kill(pid, signal.SIGSTOP)
        time.sleep(STILL_S)
        os.kill(pid, signal.SIGCONT)
        return f"{what} still for {STILL_S} s"

    return fault


def server_killed(server: Server) -> Callable[[Chain, random.Random], str | None]:
    def fault(_chain: Chain, _chance: random.Random) -> str | None:
        server.kill()
        time.sleep(STILL_S)
        server.start()
        return f"MLflow server killed, back after {STILL_S} s"

    return fault


# Rounds


def disturbed(
    chain: Chain, fault: Callable, chance: random.Random, duration_s: float
) -> tuple[str | None, list[str]]:
    """Run the whole chain with one fault. Return the fault, and the output of each call that failed."""
    chain.start("--force")
    until = time.monotonic() + chance.uniform(0.1, 0.9) * duration_s
    done = None
    while done is None and chain.process.poll() is None:
        time.sleep(0.2)
        if time.monotonic() >= until:
            done = fault(chain, chance)
    messages: list[str] = []
    while chain.process.wait() != 0:
        messages.append(chain.log.read_text(errors="replace"))
        if len(messages) == TRIES:
            break
        for path in re.findall(r"(?:remove|delete) (\S+?)[,;.]?(?:\s|$)", messages[-1]):
            target = chain.project.folder / path
            if target.is_file() and chain.project.folder in target.resolve().parents:
                target.unlink()
        chain.start()
    return done, messages


def verdict(chain: Chain, expected: str, messages: list[str], done: str) -> str:
    if len(messages) == TRIES:
        return "did not end"
    if any("Traceback (most recent call last)" in message for message in messages):
        return "a traceback"
    if chain.result() != expected:
        return "another result"
    killed_by_us = done in ("dvc killed", "stages. killed")  # nothing is left that could go on
    return "went on by itself" if not messages or (killed_by_us and len(messages) == 1) else "after an error"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    arguments = parser.parse_args()
    chance, tally = random.Random(arguments.seed), defaultdict(lambda: defaultdict(int))
    end = time.monotonic() + 60 * arguments.minutes
    with tempfile.TemporaryDirectory(prefix="soak") as scratch, s3_server():
        disk = Path(scratch, "disk")
        disk.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MIB}M", "tmpfs", str(disk)]
        is_mounted = os.geteuid() == 0 and subprocess.run(mount, check=False).returncode == 0
        (Path(scratch) / "mlflow").mkdir()
        server = Server(Path(scratch) / "mlflow")
        server.start()
        try:
            bad = rounds(arguments.kinds, disk, server, chance, end, tally)
        finally:
            server.kill()
            if is_mounted:
                subprocess.run(["umount", "-l", str(disk)], check=False)
    columns = ("went on by itself", "after an error", "another result", "a traceback", "did not end")
    print(f"\n| fault | {' | '.join(columns)} |\n|{' --- |' * (1 + len(columns))}")
    for name, counts in sorted(tally.items()):
        print(f"| {name} | {' | '.join(str(counts[column]) for column in columns)} |")
    sys.exit(bad > 0)


def rounds(
    kinds: list[str], disk: Path, server: Server, chance: random.Random, end: float, tally: dict
) -> int:
    """Run rounds until the end; return the number of those that were not good."""
    moto = next(p.pid for p in psutil.Process().children() if "moto_server" in " ".join(p.cmdline()))
    faults = {
        "worker killed": killed("RayTrainWorker"),
        "driver killed": killed("stages."),
        "dvc killed": killed("dvc"),
        "MLflow server killed": server_killed(server),
        "store stands still": still(moto, "the store"),
        "shard damaged": damaged("data/tiny/shards/*/*.tar"),
        "checkpoint damaged": damaged("runs/tiny/*/**/*.pt"),
        "model damaged": damaged("models/tiny/*.pt"),
        "object of DVC's cache damaged": damaged(".dvc/cache/files/md5/*/*"),
        "block of the node's cache damaged": damaged("blocks/*/*"),
        "disk full": disk_full,
        "files' times moved": times_moved,
    }
    chains, expected, duration_s = {}, {}, {}
    for kind in kinds:
        chain = chains[kind] = Chain(disk / kind, kind, server.uri)
        begun = time.monotonic()
        chain.start()
        if chain.process.wait() != 0:
            sys.exit(chain.log.read_text()[-3000:])
        expected[kind], duration_s[kind] = chain.result(), time.monotonic() - begun
        print(f"{kind}: undisturbed in {duration_s[kind]:.0f} s: {expected[kind]}", flush=True)
    bad, number = 0, 0
    while time.monotonic() < end:
        kind, name = kinds[number % len(kinds)], chance.choice(sorted(faults))
        chain, number = chains[kind], number + 1
        done, messages = disturbed(chain, faults[name], chance, duration_s[kind])
        if done is None:  # nothing to do it to, or too late
            continue
        how = verdict(chain, expected[kind], messages, done)
        tally[name][how] += 1
        print(f"{kind}: {done}: {how}", flush=True)
        if how not in ("went on by itself", "after an error"):
            bad += 1
            for message in messages:
                print(json.dumps(message[-2000:]), flush=True)
    return bad


if __name__ == "__main__":
    main()
