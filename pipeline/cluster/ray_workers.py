"""Ray: the workers a function runs on, here or on a cluster. No other module imports it."""

import os
import signal
import socket
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from functools import partial
from itertools import islice
from pathlib import Path
from textwrap import shorten
from typing import Any

# Ray's uv hook would give every worker an environment of its own; usage statistics are nobody's business
os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_AUTH_MODE", "token")  # Ray's default for clusters of one machine, here for all
os.environ.setdefault("RAY_enable_metrics_collection", "0")  # it would serve them on every interface
os.environ.setdefault("RAY_TRAIN_ENABLE_PRINT_PATCH", "0")  # it shows every line twice
os.environ.setdefault(
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5"
)  # how late the end of a run is noticed; 2 by default
# For Ray to start on a busy machine; 20 by default
os.environ.setdefault("RAY_gcs_server_port_wait_time_s", "120")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # its new behaviour, without the warning
if not os.environ.get("RAY_ADDRESS"):  # this machine alone: nobody takes it away from under a run
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")

import ray
import ray.train
import torch
import torch.distributed as dist
from ray.exceptions import AuthenticationError, RayError, RayTaskError
from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
from ray.train.torch import TorchConfig, TorchTrainer, get_device

from pipeline.cluster import nodes
from pipeline.distributed.rank import COLLECTIVE_TIMEOUT_S, Rank
from pipeline.errors import UserError

ANSWER_TIMEOUT_S = 10.0  # for the head to take a connection


Worker = Callable[[Any, Rank], None]


class _Trainer(TorchTrainer):
    """Without two of Ray's helpers, processes of 200 MB that take their share of cores that workers have all of.

    One deals out Ray's own data sets, which nothing here uses; the other tidies up after a driver that died, which on
    a cluster of this machine alone takes the cluster with it. If Ray renames what this overrides, they are back.
    """

    def _create_default_callbacks(self) -> list[Any]:
        unused = {"DatasetsCallback"}
        if not os.environ.get("RAY_ADDRESS"):
            unused.add("PlacementGroupCleanerCallback")
        return [one for one in super()._create_default_callbacks() if type(one).__name__ not in unused]


def run_workers(
    worker: Worker,
    job: Any,
    *,
    name: str,
    storage: Path,
    num_workers: int,
    use_gpu: bool,
    cpus_per_worker: int,
    max_failures: int,
    min_workers: int | None = None,
    divided: int | None = None,
    on_sigterm: Callable[[], None] | None = None,
) -> None:
    """Runs worker(job, rank) on num_workers processes joined in a torch process group, until all have returned.

    On the cluster RAY_ADDRESS names, else on a cluster of this machine alone. If a worker dies all are started again,
    up to max_failures times. storage: absolute, shared by all nodes. UserError if the workers failed for good.
    min_workers: how many do while the cluster has no room for all; when it has, all start again. None: wait for all.
    divided: of what the workers share as many as divide it evenly work together, and the others stand by.
    on_sigterm: what SIGTERM does, instead of ending this process at once.
    """
    least = min(min_workers or num_workers, num_workers)
    if use_gpu:
        _refuse_too_few_gpus(least)
    _connect(num_workers * cpus_per_worker)
    trainer = _Trainer(
        _inside_worker,
        train_loop_config={
            "worker": worker,
            "job": job,
            "divided": divided,
            "mistake": str(_mistake_file(storage, name)),
        },
        torch_config=TorchConfig(backend="nccl" if use_gpu else "gloo", timeout_s=COLLECTIVE_TIMEOUT_S),
        scaling_config=ScalingConfig(
            num_workers=num_workers if least == num_workers else (least, num_workers),
            use_gpu=use_gpu,
            resources_per_worker=_resources(use_gpu, cpus_per_worker),
        ),
        run_config=RunConfig(
            name=name, storage_path=str(storage), failure_config=FailureConfig(max_failures=max_failures)
        ),
    )
    mistake = _mistake_file(storage, name)
    mistake.unlink(missing_ok=True)
    try:
        with _sigterm_calls(on_sigterm) if on_sigterm else nullcontext():
            trainer.fit()
    except TrainingFailedError as error:
        if not mistake.exists():
            raise UserError(
                f"{name}: the workers failed for good, what they said is above: {shorten(str(error), 400)}"
            ) from error
    except SystemExit as stop:  # how Ray ends a run that Ctrl-C has aborted
        raise KeyboardInterrupt from stop
    finally:
        ray.shutdown()
    if mistake.exists():
        raise UserError(mistake.read_text(encoding="utf-8"))


@contextmanager
def tasks(num_workers: int) -> Iterator[Callable[[Callable[[Any], Any], Iterable[Any]], Iterator[Any]]]:
    """A function like map that runs up to num_workers calls at once, each in a process, and yields what is done first.

    On the cluster RAY_ADDRESS names, else on a cluster of this machine alone. A UserError there is raised here.
    """
    _connect(num_workers)
    try:
        yield partial(_map, num_workers)
    finally:
        ray.shutdown()


def _map(num_workers: int, function: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
    @ray.remote(
        num_cpus=1
    )  # within, so that workers need not import this module and with it Ray Train and torch
    def call(function: Callable[[Any], Any], item: Any) -> Any:
        try:
            return function(item)
        except UserError as error:  # Ray would put the worker's stack in its message
            return error

    shared, waiting = ray.put(function), iter(items)
    running = [call.remote(shared, item) for item in islice(waiting, num_workers)]
    while running:
        done, running = ray.wait(running)
        try:
            result = ray.get(done[0])
        except RayTaskError:
            raise
        except RayError as error:  # after Ray's own retries
            raise UserError(
                f"a worker process died: {error}; run the same again, with fewer workers"
            ) from error
        if isinstance(result, UserError):
            raise result
        running += [call.remote(shared, item) for item in islice(waiting, 1)]
        yield result


def _connect(num_cpus: int) -> None:
    address = os.environ.get("RAY_ADDRESS")
    if not address:
        nodes.ensure_token()  # Ray's own would be for every eye on this machine
        # "local": never a cluster that somebody happens to run on this machine. The dashboard is ten processes
        ray.init(address="local", num_cpus=max(num_cpus, os.cpu_count() or 1), include_dashboard=False)
        return
    if address.startswith("http"):
        raise UserError(
            f"RAY_ADDRESS={address} is a job server: submit a job to it (fcn cluster submit --address {address} ...), "
            "or give the head's HOST:PORT to run this command itself on the cluster"
        )
    nodes.require_token()
    _refuse_silence(address)
    try:
        ray.init(address=address)
    except (ConnectionError, AuthenticationError, RuntimeError) as error:
        raise UserError(f"RAY_ADDRESS={address}: {' '.join(str(error).split())}") from None


def _refuse_too_few_gpus(least: int) -> None:
    """UserError if this machine alone, without a cluster, has not as many GPUs: Ray would wait for them forever."""
    has = torch.cuda.device_count()
    if has < least and not os.environ.get("RAY_ADDRESS"):
        raise UserError(
            f"{least} workers with a GPU each are asked for, this machine has {has}: lower num_workers, set use_gpu: "
            "false, or send the job to a cluster (fcn cluster submit)"
        )


def _refuse_silence(address: str) -> None:
    """UserError if nobody listens at HOST:PORT: Ray would wait ten minutes. Other addresses are Ray's to judge."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if not (host and port.isdigit()):
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER_TIMEOUT_S).close()
    except (OSError, OverflowError) as error:
        raise UserError(
            f"RAY_ADDRESS={address}: nobody answers ({error}); give HOST:PORT of a cluster's head, "
            "or unset it for a cluster of this machine alone"
        ) from None


@contextmanager
def _sigterm_calls(function: Callable[[], None]) -> Iterator[None]:
    """Inside, after Ray has set a handler of its own."""
    before = signal.signal(signal.SIGTERM, lambda *_: function())
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _resources(use_gpu: bool, cpus: int) -> dict[str, float]:
    return {"CPU": float(cpus)} | ({"GPU": 1.0} if use_gpu else {})


def _inside_worker(config: dict[str, Any]) -> None:
    context = ray.train.get_context()
    mistake = Path(config["mistake"])
    if mistake.exists():  # the group was started again although that cannot mend what the user has to
        return
    rank = _rank(context.get_world_rank(), context.get_world_size(), config["divided"])
    if rank is None:
        return
    try:
        config["worker"](config["job"], rank)
    except UserError as error:
        mistake.parent.mkdir(parents=True, exist_ok=True)
        mistake.write_text(str(error), encoding="utf-8")
        raise


def _rank(number: int, world_size: int, divided: int | None) -> Rank | None:
    """Where this process works; None if it stands by, because one more worker would not divide the batch evenly."""
    working = max(size for size in range(1, world_size + 1) if divided is None or divided % size == 0)
    if working == world_size:
        return Rank(number, world_size, get_device())
    group = dist.new_group(range(working), timeout=timedelta(seconds=COLLECTIVE_TIMEOUT_S))
    if not isinstance(group, dist.ProcessGroup):
        print(
            f"worker {number} stands by: {divided} images are for {working} workers, not {world_size}",
            flush=True,
        )
        return None
    return Rank(number, working, get_device(), group)


def _mistake_file(storage: Path, name: str) -> Path:
    """Where a worker leaves the message of a mistake that only the user can mend."""
    return storage / name / "mistake.txt"
