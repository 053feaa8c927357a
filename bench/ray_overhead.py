"""Compare the steps a second of the training loop on Ray's workers with the same loop without Ray.

    python -m bench.ray_overhead            # about 2 minutes on 2 cores; the machine should be idle

Both train the sample profile's first net on the same number of workers (gloo, one thread each), in turns, from the same
shards. Speed is measured between the first and the last point of each run's curves, so start-up does not count.
"""

import argparse
import dataclasses
import os
import socket
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn

from pipeline import config
from pipeline.cluster import ray_workers
from pipeline.curves import read_points
from pipeline.distributed.rank import Rank
from pipeline.monitoring.meter import CURVES
from pipeline.training.loop import train_worker
from pipeline.training.prepare import make_job

ROOT = Path(__file__).parent.parent


def prepare(folder: Path) -> None:
    """Write the sample profile's shards and backbone to a folder."""
    for name in ("params.yaml", "profiles", "stages", "pipeline", "fcn"):
        (folder / name).symlink_to(ROOT / name)
    for stage in ("download", "shard", "backbone"):
        subprocess.run([sys.executable, "-m", f"stages.{stage}"], cwd=folder, check=True, capture_output=True)


def process(rank: int, world: int, port: int, job: Any) -> None:
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)
    train_worker(job, Rank(rank, world, torch.device("cpu")))
    dist.destroy_process_group()


def without_ray(job: Any, world: int) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    spawn(process, (world, port, job), nprocs=world)


def with_ray(job: Any, world: int) -> None:
    ray_workers.run_workers(
        train_worker,
        job,
        name=job.identity,
        storage=job.folder.parent,
        num_workers=world,
        batch_size=job.inner_batch_size,
        use_gpu=False,
        cpus_per_worker=1,
        max_failures=0,
    )


def steps_per_s(job: Any) -> float:
    points = read_points(job.folder / CURVES, after_step=0)
    return (points[-1].step - points[0].step) / (points[-1].time_ms - points[0].time_ms) * 1000


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--rounds", type=int, default=2)
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    rates: dict[str, list[float]] = {"without Ray": [], "with Ray": []}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        prepare(folder)
        name, profile = config.load(folder)
        made = make_job(name, profile, "fcn32s", folder)
        for number in range(arguments.rounds):
            for what, run in (("without Ray", without_ray), ("with Ray", with_ray)):
                identity = f"{what.replace(' ', '-')}-{number}"
                job = dataclasses.replace(
                    made,
                    identity=identity,
                    folder=folder / "runs" / identity,
                    recipe=made.recipe.model_copy(update={"iterations": arguments.steps}),
                    run=made.run.model_copy(update={"checkpoint_every": arguments.steps, "log_every": 10}),
                )
                job.folder.mkdir(parents=True)
                run(job, arguments.workers)
                rates[what].append(steps_per_s(job))
                print(f"{what:12} {rates[what][-1]:.2f} steps/s", flush=True)
    plain, ray = (statistics.median(values) for values in rates.values())
    print(f"inside Ray: {ray / plain:.3f} of the steps/s without it")


if __name__ == "__main__":
    main()
