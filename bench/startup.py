"""Measure the seconds between `python -m stages.train` and the first step, and after the last one.

    python -m bench.startup                  # --rounds 3; the machine should be idle

The worker only notes the time. It runs on a local Ray cluster made for it, as in a stage. In the same run, processes
that only import the modules of the stage or of its worker are timed.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

IMPORTS = ("torch", "ray", "ray.train.torch", "mlflow", "pipeline.training.loop", "stages.train")
STAGE = """
import sys, time
times = [("the stage's own imports", time.time())]
from pathlib import Path
import stages.train
times.append(("ray.init", time.time()))
import ray
init = ray.init
def timed(*args, **options):
    times.append(("ray.init", time.time()))
    result = init(*args, **options)
    times.append(("fit() to a worker's first line", time.time()))
    return result
ray.init = timed
from pipeline.cluster import ray_workers
from bench.startup import note
folder = Path(sys.argv[1])
ray_workers.run_workers(note, folder / "worker", name="run", storage=folder, num_workers=1, use_gpu=False,
                        cpus_per_worker=1, max_failures=0)
times.append(("end", time.time()))
del times[1]
times.insert(3, ("its last line to the end of fit and cluster", float((folder / "worker").read_text())))
for (name, start), (_, end) in zip(times, times[1:]):
    print(f"{end - start:.3f} {name}")
"""


def note(job: Path, rank: object) -> None:  # noqa: ARG001  # the arguments of a worker of ray_workers
    import pipeline.training.loop  # noqa: F401  # as a worker of training does

    job.write_text(repr(time.time()), encoding="utf-8")


def import_seconds(module: str) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", f"import {module}"], check=True, capture_output=True)
    return time.perf_counter() - start


def stage_seconds() -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, "-c", STAGE, folder], check=True, capture_output=True, text=True
        )
    lines = [line.split(" ", 1) for line in done.stdout.splitlines() if line[:1].isdigit()]
    return {name: float(seconds) for seconds, name in lines}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    seconds = [
        {f"import {module}": import_seconds(module) for module in IMPORTS} | stage_seconds()
        for _ in range(rounds + 1)
    ][1:]  # the first round reads from disk
    for name in seconds[0]:
        print(f"{statistics.median(each[name] for each in seconds):6.2f} s  {name}")


if __name__ == "__main__":
    main()
