"""Check and measure everything on a GPU with one command, in order of worth, within a few minutes.

    python -m bench.gpu_all --out DIR --photos .gpu/project --peer .gpu/peer     # both from bench.gpu_pack
    python -m bench.gpu_all --out DIR --photos FOLDER --device cpu --small       # a rehearsal without a GPU

DIR/gpu.json and DIR/gpu.md, the table for docs/benchmarks.md, are written again after every value. Each part runs in a
process of its own and has a share of the time: one that fails, hangs or breaks the CUDA context costs its own time
alone. A part that ends early leaves its time to those after it. Exit code 1 if a part failed; a missed target is a
result, not a failure.

Needs torch 2.11, torchvision, numpy, pillow, pyarrow, safetensors and tqdm, and the packages of bench.gpu_pack.CARRIED.
"""

import argparse
import dataclasses
import datetime
import multiprocessing
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torchvision

from bench import gpu_checks, gpu_learning, gpu_loop, gpu_runs, gpu_speed
from bench.gpu_result import PartResult, Results, Row
from bench.gpu_setup import Bench, SkippedError

POLL_S = 0.5
LEAST_S = 3.0  # no part starts with less
Measure = Callable[[Bench], Iterator[Row]]


class Part(NamedTuple):
    """A part of the run.

    seconds: its share of the whole, as seconds of six minutes.
    measure: yields rows; raises SkippedError with a reason where it cannot run.
    """

    name: str
    seconds: float
    measure: Measure


PARTS = (
    Part("nets", 40, gpu_checks.nets),
    Part("counts", 10, gpu_checks.counts),
    Part("step", 45, gpu_speed.step),
    Part("loop", 40, gpu_loop.loop),
    Part("resume", 30, gpu_runs.resume),
    Part("group", 15, gpu_runs.group),
    Part("files", 25, gpu_runs.files),
    Part("tiles", 10, gpu_checks.tiles),
    Part("evaluation", 25, gpu_loop.evaluation),
    Part("kernels", 15, gpu_speed.kernels),
    Part("learning", 70, gpu_learning.learning),
    Part("compile", 35, gpu_speed.compiled),
)


def main() -> None:
    arguments = parse()
    arguments.out.mkdir(parents=True, exist_ok=True)
    end_s = time.monotonic() + 60 * arguments.minutes
    with tempfile.TemporaryDirectory() as scratch:
        bench = Bench(
            torch.device(arguments.device), arguments.small, Path(scratch), arguments.photos, arguments.peer
        )
        machine = PartResult("machine")
        measure(about, dataclasses.replace(bench, deadline_s=end_s), machine)
        if machine.status != "done":
            sys.exit(machine.reason)
        results = Results(arguments.out, {row.name: row.note for row in machine.rows})
        print("\n".join(f"{name}: {value}" for name, value in results.about.items()), flush=True)

        def show(row: Row) -> None:
            print(f"  {row.name}: {row.measured}  {row.target} {row.verdict}".rstrip(), flush=True)
            results.write()

        for number, part in enumerate(PARTS):
            result = PartResult(part.name)
            results.parts.append(result)
            left_s = end_s - time.monotonic()
            if left_s < LEAST_S:
                result.status, result.reason = "skipped", "no time is left"
                continue
            share = part.seconds / sum(later.seconds for later in PARTS[number:])
            part_s = max(LEAST_S, share * left_s)
            print(f"\n{part.name}: {part_s:.0f} s", flush=True)
            own = dataclasses.replace(bench, deadline_s=time.monotonic() + part_s)
            measure(part.measure, own, result, show)
            results.write()
            if result.status != "done":
                print(f"  {result.status}: {result.reason}", flush=True)
    results.write()
    print(f"\n{results.markdown()}", flush=True)
    sys.exit(any(part.status == "failed" for part in results.parts))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="the folder for gpu.json and gpu.md")
    parser.add_argument("--minutes", type=float, default=6.0, help="the time for all parts")
    parser.add_argument("--photos", type=Path, help="the project folder that bench.gpu_pack wrote")
    parser.add_argument("--peer", type=Path, help="a clone of wkentaro/pytorch-fcn")
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--small", action="store_true", help="tiny nets and images: a rehearsal")
    return parser.parse_args()


def measure(
    work: Measure, bench: Bench, result: PartResult, show: Callable[[Row], None] = lambda _: None
) -> None:
    """Run a part in a forked process, at most until its deadline, and fill in its result.

    The fork saves the seconds of importing torch. This process never starts CUDA or torch's threads, which a forked
    process could not use.

    show: is called with each row as it comes.
    """
    start = time.monotonic()
    receiver, sender = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(target=run, args=(work, bench, sender))
    process.start()
    sender.close()
    try:
        while time.monotonic() < bench.deadline_s:
            if receiver.poll(POLL_S):
                message = receiver.recv()
                if not isinstance(message, Row):
                    result.status, result.reason = message
                    break
                result.rows.append(message)
                show(message)
            elif not process.is_alive() and not receiver.poll():
                raise EOFError
        else:
            result.status, result.reason = "stopped", "its time was up"
    except EOFError:  # it died without a last message
        process.join()
        result.status, result.reason = "failed", f"its process ended with code {process.exitcode}"
    finally:
        end(process)
        result.seconds = time.monotonic() - start


def run(work: Measure, bench: Bench, sender: Connection) -> None:
    """In the part's process: send each row, then (status, reason)."""
    os.setpgid(0, 0)  # with the processes that it starts, a group that `end` can end
    if bench.is_small:
        torch.set_num_threads(1)
    try:
        for row in work(bench):
            sender.send(row)
        sender.send(("done", ""))
    except SkippedError as error:
        sender.send(("skipped", str(error)))
    except BaseException:
        sender.send(("failed", traceback.format_exc()))


def end(process: Any) -> None:
    """Kill a part's process, and the processes that it started, if any are left."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    process.join()


def about(bench: Bench) -> Iterator[Row]:
    """Yield date, card, driver and versions, as notes."""
    facts: dict[str, Any] = {"date": datetime.date.today().isoformat()}
    if bench.is_cuda:
        facts["card"] = torch.cuda.get_device_name(bench.device)
        facts["driver"] = driver_version()
    else:
        facts["device"] = "CPU (a rehearsal: no figure of a GPU)" if bench.is_small else "CPU"
    facts |= {
        "torch": torch.__version__,
        "CUDA": torch.version.cuda,
        "cuDNN": torch.backends.cudnn.version() if bench.is_cuda else "not used",
        "torchvision": torchvision.__version__,
        "Python": platform.python_version(),
        "CPUs": len(os.sched_getaffinity(0)),
    }
    for name, value in facts.items():
        yield Row(name, None, note=str(value))


def driver_version() -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        return "unknown"


if __name__ == "__main__":
    main()
