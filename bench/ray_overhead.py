"""Compare the steps a second of the training loop on Ray's workers with the same loop without Ray, and with a bare one.

    python -m bench.ray_overhead                       # about 2 minutes on 2 cores; the machine should be idle
    python -m bench.ray_overhead --work DIR --steps 40 # the profile laptop, in the project that bench.learning made

Both train the profile's first net on the same number of workers (gloo, one thread each), in turns, from the same
shards. Speed is measured between the first and the last point of each run's curves, so start-up does not count.

Where timm is installed and has the profile's trunk, it takes its turn with the least that training needs: one process
with a thread for each worker, timm's trunk, one score layer, resized bilinearly, the same optimizer, and one batch in
memory. Nothing is loaded, cropped, exchanged, written or averaged.
"""

import argparse
import dataclasses
import os
import socket
import statistics
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn

from pipeline import config
from pipeline.cluster import nodes, ray_workers
from pipeline.curves import read_points
from pipeline.distributed.rank import Rank
from pipeline.monitoring.meter import CURVES
from pipeline.training.loop import train_worker
from pipeline.training.prepare import make_job

ROOT = Path(__file__).parent.parent
BARE = """
import sys, time
import timm, torch
import torch.nn.functional as F
trunk, (classes, batch, side, threads, steps) = sys.argv[1], map(int, sys.argv[2:])
torch.set_num_threads(threads)
net = timm.create_model(trunk, pretrained=False).eval().to(memory_format=torch.channels_last)  # batch norm is frozen
net.classifier = torch.nn.Conv2d(net.num_features, classes, 1)
image = torch.rand(batch, 3, side, side).to(memory_format=torch.channels_last)
label = torch.randint(0, classes, (batch, side, side))
optimizer = torch.optim.AdamW(net.parameters(), fused=True)
for step in range(5 + steps):
    if step == 5:
        start = time.perf_counter()
    score = F.interpolate(net.classifier(net.forward_features(image)), (side, side), mode="bilinear")
    optimizer.zero_grad()
    F.cross_entropy(score, label).backward()
    optimizer.step()
print(steps / (time.perf_counter() - start))
"""


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


def bare_steps_per_s(profile: config.Profile, num_threads: int, num_steps: int) -> float | None:
    """Return the steps a second of timm's net; None if timm is not installed or has no such trunk."""
    trunk, train = profile.model.backbone, profile.train
    if find_spec("timm") is None or not trunk.startswith("efficientnet_lite"):
        return None
    command = [
        sys.executable,
        "-c",
        BARE,
        f"tf_{trunk}",
        str(len(profile.data.classes)),
        str(train.batch_size),
    ]
    command += [
        str(train.transforms.crop[0] if train.transforms.crop else 320),
        str(num_threads),
        str(num_steps),
    ]
    # As a script of its own would run: without this project's settings of malloc
    environment = {name: value for name, value in os.environ.items() if name not in nodes.MALLOC}
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    return float(done.stdout)


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
    parser.add_argument("--work", type=Path, metavar="DIR", help="that of bench.learning; else the sample")
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    rates: dict[str, list[float]] = {"bare": [], "without Ray": [], "with Ray": []}
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.work / "project" if arguments.work else Path(scratch)
        if arguments.work is None:
            prepare(folder)
        name, profile = config.load(folder)
        made = make_job(name, profile, "fcn32s", folder.absolute())
        for number in range(arguments.rounds):
            if bare := bare_steps_per_s(profile, arguments.workers, arguments.steps):
                rates["bare"].append(bare)
                print(f"{'bare':12} {bare:.2f} steps/s", flush=True)
            for what, run in (("without Ray", without_ray), ("with Ray", with_ray)):
                identity = f"{what.replace(' ', '-')}-{number}"
                job = dataclasses.replace(
                    made,
                    identity=identity,
                    folder=Path(scratch) / "runs" / identity,
                    recipe=made.recipe.model_copy(update={"iterations": arguments.steps}),
                    run=made.run.model_copy(update={"checkpoint_every": arguments.steps, "log_every": 10}),
                )
                job.folder.mkdir(parents=True)
                run(job, arguments.workers)
                rates[what].append(steps_per_s(job))
                print(f"{what:12} {rates[what][-1]:.2f} steps/s", flush=True)
    ray = statistics.median(rates["with Ray"])
    for what in ("without Ray", "bare"):
        if rates[what]:
            print(f"with Ray: {ray / statistics.median(rates[what]):.3f} of the steps/s {what}")


if __name__ == "__main__":
    main()
