"""Time ten thousand scores through `mlflow server` on SQLite: as the pipeline logs them, and one by one.

    python -m bench.tracking            # --metrics 10000 --one-by-one 100 --rounds 3

The server is started on loopback with a new database in a temporary folder. Timed is Tracker.log, from the record on
disk to the end of the run; and MLflow's log_metric, --one-by-one times, scaled up to the same number. The two take
turns; medians are printed. Logging the model of a net is timed once.
"""

import argparse
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from fcn.model import FCN
from pipeline.models import checkpoint
from pipeline.tracking import Tracker


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--metrics", type=int, default=10_000)
    parser.add_argument("--one-by-one", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch, server(Path(scratch)) as uri:
        os.environ["MLFLOW_TRACKING_URI"] = uri
        tracker = Tracker("bench", Path(scratch))
        tracker.log(record(tracker, "warm-up"), {f"iu/{i}": 0.5 for i in range(1000)}, {})
        ours, theirs = [], []
        for number in range(arguments.rounds):
            metrics = {f"iu/class {i:05}": i / arguments.metrics for i in range(arguments.metrics)}
            ours.append(
                seconds_of(lambda n=number, m=metrics: tracker.log(record(tracker, f"all {n}"), m, {}))
            )
            theirs.append(one_by_one(tracker, f"one {number}", arguments.one_by_one))
        each_s = statistics.median(theirs) / arguments.one_by_one
        print(f"{arguments.metrics} scores, Tracker.log    {statistics.median(ours):7.2f} s {rounded(ours)}")
        print(
            f"{arguments.metrics} scores, log_metric     {each_s * arguments.metrics:7.2f} s, "
            f"scaled up from {each_s * 1e3:.1f} ms each"
        )
        for name, options in {"VGG-16 x 0.25": {"width": 0.25}, "VGG-16": {}}.items():
            print(f"the model of {name:14} {log_model(tracker, Path(scratch), name, options):7.2f} s")


def record(tracker: Tracker, name: str):
    return tracker.record("evaluation", name, "model_sha256", name, params={}, datasets={})


def one_by_one(tracker: Tracker, name: str, number: int) -> float:
    run = tracker.open_run(record(tracker, name)).info.run_id

    def log() -> None:
        for i in range(number):
            tracker.client.log_metric(run, f"iu/class {i:05}", i / number)

    return seconds_of(log)


def log_model(tracker: Tracker, folder: Path, name: str, options: dict) -> float:
    torch.manual_seed(0)
    arguments = {"num_classes": 21, "stride": 8, "backbone": "vgg16", **options}
    state = FCN(**arguments).state_dict()
    content = {"model": arguments, "classes": ["c"] * 21, "lineage": {}, "state_dict": state}
    path = folder / "model.pt"
    checkpoint.save(path, "model", content)
    training = tracker.record("training", "fcn8s", "fcn.attempt", name, params={}, datasets={})
    seconds = seconds_of(lambda: tracker.log(training, {}, {"model_sha256": name}, model=path))
    print(f"{path.stat().st_size / 2**20:7.0f} MiB:", end=" ")
    return seconds


def seconds_of(act) -> float:
    start = time.perf_counter()
    act()
    return time.perf_counter() - start


def rounded(values: list[float]) -> str:
    return f"({', '.join(f'{value:.2f}' for value in values)})"


@contextmanager
def server(folder: Path) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(Path(sys.executable).parent / "mlflow"), "server", "--workers", "1", "--port", str(port)]
    command += ["--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}"]
    command += ["--artifacts-destination", str(folder / "artifacts")]
    # Its job runners, which are not needed here, take both cores for the first ten seconds
    quiet = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    with (
        (folder / "log").open("wb") as log,
        subprocess.Popen(command, env=quiet, stdout=log, stderr=log) as process,
    ):
        try:
            while not is_healthy(f"http://127.0.0.1:{port}"):
                time.sleep(0.1)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()


def is_healthy(uri: str) -> bool:
    try:
        with urllib.request.urlopen(f"{uri}/health", timeout=5) as answer:
            return answer.status == 200
    except OSError:
        return False


if __name__ == "__main__":
    main()
