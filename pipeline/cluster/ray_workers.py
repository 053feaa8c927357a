"""Runs functions on Ray workers, on this machine or on the cluster that RAY_ADDRESS names."""

import math
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from datetime import timedelta
from functools import partial
from itertools import islice
from pathlib import Path
from textwrap import shorten
from typing import Any

# First, because it has settings that Ray reads when it is imported
from pipeline.cluster.connection import session, sigterm_calls

# isort: split

import ray
import ray.train
import torch
import torch.distributed as dist
from ray.exceptions import RayError, RayTaskError
from ray.train import FailureConfig, LoggingConfig, RunConfig, ScalingConfig, TrainingFailedError
from ray.train.torch import TorchConfig, TorchTrainer, get_device
from ray.train.torch.config import _TorchBackend

from pipeline import files
from pipeline.cluster import addresses, losses, nodes
from pipeline.distributed.rank import COLLECTIVE_TIMEOUT_S, Rank
from pipeline.errors import UserError

Worker = Callable[[Any, Rank], None]


class _Trainer(TorchTrainer):
    """A trainer that, on a cluster of this machine alone, does not watch over its placement group.

    Such a cluster ends with its driver, and the placement group with it. Ray's watcher asks the dashboard, which does
    not run there, so the end of each net waits up to 12 s for an answer: 17% of the sample's `dvc repro`. If Ray
    renames what this overrides, the watcher is back.
    """

    def _create_default_callbacks(self) -> list[Any]:
        callbacks = super()._create_default_callbacks()
        if nodes.cluster_address():
            return callbacks
        return [each for each in callbacks if type(each).__name__ != "PlacementGroupCleanerCallback"]


class _Backend(_TorchBackend):
    """Joins workers over the interface of their Ray node's address.

    gloo would take the address that the machine's name leads to, which on Debian and Ubuntu is 127.0.1.1, and NCCL the
    first interface, which may be a container bridge.
    """

    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        worker_group.execute(_name_interface)
        super().on_start(worker_group, backend_config)


class _TorchConfig(TorchConfig):
    @property
    def backend_cls(self) -> type[_Backend]:
        return _Backend


def _name_interface() -> None:
    if interface := addresses.interface(ray.util.get_node_ip_address()):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
        os.environ.setdefault("NCCL_SOCKET_IFNAME", f"={interface}")  # this one, not all that begin so


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
    batch_size: int | None = None,
    on_sigterm: Callable[[], None] | None = None,
) -> None:
    """Run worker(job, rank) on several processes joined in a torch process group, until all have returned.

    If a worker dies, all of them start again.

    worker: a function that can be pickled, or is importable on the nodes.
    job: can be pickled.
    name: of the run; Ray's files go to storage/name.
    storage: absolute path, shared by all nodes.
    num_workers: number of processes.
    use_gpu: give each worker a GPU, and use NCCL instead of gloo.
    cpus_per_worker: CPUs that each worker reserves.
    max_failures: how many times the workers start again.
    min_workers: the smallest number to start with if the cluster is busy; all start again when there is more room.
        None: wait until there is room for all.
    batch_size: samples that the workers share; extra workers stand by if the batch does not divide evenly. None: all
        work.
    on_sigterm: called on SIGTERM, which then does not end this process; not in a `session` of the caller.

    Raises UserError if a worker raised one, or the workers failed too often.
    """
    least = min(min_workers or num_workers, num_workers)
    if use_gpu and not ray.is_initialized():
        _require_gpus(least)
    error_file = storage / name / "user-error.txt"
    error_file.unlink(missing_ok=True)
    with session(num_workers * cpus_per_worker) as is_own:
        if num_workers == 1 and not is_own and _has_reserved(cpus_per_worker, use_gpu):
            worker(job, Rank(0, 1, torch.device("cuda", 0) if use_gpu else torch.device("cpu")))
            return
        trainer = _Trainer(
            _run_worker,
            train_loop_config={
                "worker": worker,
                "job": job,
                "batch_size": batch_size,
                "error_file": error_file,
            },
            torch_config=_TorchConfig(backend="nccl" if use_gpu else "gloo", timeout_s=COLLECTIVE_TIMEOUT_S),
            scaling_config=ScalingConfig(
                num_workers=num_workers if least == num_workers else (least, num_workers),
                use_gpu=use_gpu,
                resources_per_worker={"CPU": float(cpus_per_worker)} | ({"GPU": 1.0} if use_gpu else {}),
            ),
            run_config=RunConfig(
                name=name,
                storage_path=str(storage),
                failure_config=FailureConfig(max_failures=max_failures),
                callbacks=[losses.Workers(name)],
                # Ray's lines of level INFO have stacks of lost workers, about which the callback has a line each. Of
                # several runs in one session, its warnings would not say which they are about
                logging_config=LoggingConfig(log_level="WARNING" if is_own else "ERROR"),
            ),
        )
        try:
            with (
                sigterm_calls(on_sigterm) if on_sigterm and is_own else nullcontext(),
                _watch(least, cpus_per_worker, use_gpu=use_gpu)
                if is_own and nodes.cluster_address()
                else nullcontext(),
            ):
                trainer.fit()
        except TrainingFailedError as error:
            if not error_file.exists():
                for failure in getattr(error, "worker_failures", {}).values():
                    if isinstance(failure, UserError):
                        raise failure from None
                raise UserError(
                    f"{name}: the workers failed too often; their output is above: {shorten(str(error), 400)}"
                ) from error
        except SystemExit as stop:  # Ray raises it after Ctrl-C
            raise KeyboardInterrupt from stop
    if error_file.exists():
        raise UserError(error_file.read_text(encoding="utf-8"))


def _run_worker(config: dict[str, Any]) -> None:
    error_file = config["error_file"]
    if error_file.exists():  # Ray has started the workers again, which does not help against a user's mistake
        return
    context = ray.train.get_context()
    rank = _make_rank(context.get_world_rank(), context.get_world_size(), config["batch_size"])
    if rank is None:
        return
    try:
        config["worker"](config["job"], rank)
    except UserError as error:
        # Where the disk is full, Ray starts the workers again, and gives up with the same error
        with suppress(UserError):
            files.write_text(error_file, str(error), is_shared=True)
        raise


def _make_rank(number: int, num_processes: int, batch_size: int | None) -> Rank | None:
    """Return this process's rank among the workers, or None if it stands by so that the batch divides evenly."""
    world_size = next(
        size for size in range(num_processes, 0, -1) if batch_size is None or batch_size % size == 0
    )
    if world_size == num_processes:
        return Rank(number, world_size, get_device())
    group = dist.new_group(range(world_size), timeout=timedelta(seconds=COLLECTIVE_TIMEOUT_S))
    if number < world_size:
        assert isinstance(group, dist.ProcessGroup)
        return Rank(number, world_size, get_device(), group)
    print(
        f"worker {number} stands by: {batch_size} images are for {world_size} workers, not {num_processes}",
        flush=True,
    )
    return None


def _has_reserved(num_cpus: int, use_gpu: bool) -> bool:
    """Return whether this process is an actor of Ray that has reserved what one worker needs, and so can be it.

    The start of another process would take longer than many a trial of a sweep.
    """
    context = ray.get_runtime_context()
    if context.get_actor_id() is None:
        return False
    reserved = context.get_assigned_resources()
    return reserved.get("CPU", 0) >= num_cpus and reserved.get("GPU", 0) >= int(use_gpu)


def capacity(num_workers: int, cpus_per_worker: int, *, use_gpu: bool) -> int:
    """Return how many calls of `run_workers` the cluster of this session has room for at once, at least 1.

    Raises UserError if this machine has too few GPUs for one.
    """
    if use_gpu:
        _require_gpus(num_workers)
    return max(1, _num_fitting(cpus_per_worker, use_gpu=use_gpu) // num_workers)


def _num_fitting(cpus_per_worker: int, *, use_gpu: bool) -> int:
    """Return how many workers the cluster of this session has room for, if nothing else runs there."""
    num_fitting = 0
    for node in ray.nodes():
        has = node["Resources"] if node["Alive"] else {}
        num_fitting += int(
            min(has.get("CPU", 0) / cpus_per_worker, has.get("GPU", 0) if use_gpu else math.inf)
        )
    return num_fitting


def _watch(num_workers: int, cpus_per_worker: int, *, use_gpu: bool) -> AbstractContextManager[None]:
    def missing() -> str:
        number = num_workers - _num_fitting(cpus_per_worker, use_gpu=use_gpu)
        gpus = f" and {number} more GPU" if use_gpu else ""
        return f"{number * cpus_per_worker} more CPU{gpus}" if number > 0 else ""

    return losses.watch(missing, ray.get_runtime_context().gcs_address)


@contextmanager
def tasks(
    num_workers: int, cpus_per_call: int = 1, on_error: Callable[[Any, UserError], Any] | None = None
) -> Iterator[Callable[[Callable[[Any], Any], Iterable[Any]], Iterator[Any]]]:
    """Yield a function like `map` that makes up to num_workers calls at once, each in its own process.

    Results come in the order in which the calls end. A UserError of a call is raised here; a process that dies is one.

    cpus_per_call: CPUs that each call reserves; 0 for calls that wait for workers of their own.
    on_error: takes an item and its error, and returns the item's result; the other calls go on. None: it is raised.
    """
    with session(num_workers * cpus_per_call):
        yield partial(_map, num_workers, cpus_per_call, on_error)


def _map(
    num_workers: int,
    cpus_per_call: int,
    on_error: Callable[[Any, UserError], Any] | None,
    function: Callable[[Any], Any],
    items: Iterable[Any],
) -> Iterator[Any]:
    @ray.remote(
        num_cpus=cpus_per_call
    )  # a local function, so that workers do not import this module with Ray Train and torch
    def call(function: Callable[[Any], Any], item: Any) -> Any:
        try:
            return function(item)
        except UserError as error:  # raised, it would get the worker's stack into its message
            return error

    shared, waiting = ray.put(function), iter(items)
    running = {call.remote(shared, item): item for item in islice(waiting, num_workers)}
    while running:
        (done,), _ = ray.wait(list(running))
        item = running.pop(done)
        try:
            result = ray.get(done)
        except RayTaskError:
            raise
        except RayError as error:  # after Ray's own retries
            result = UserError(
                f"a worker process died: {error}; run the same command again, with fewer workers"
            )
        if isinstance(result, UserError):
            if on_error is None:
                raise result
            result = on_error(item, result)
        running |= {call.remote(shared, item): item for item in islice(waiting, 1)}
        yield result


def _require_gpus(number: int) -> None:
    """Raise UserError if work runs on this machine and it has fewer GPUs. Ray would wait for them forever."""
    available = torch.cuda.device_count()
    if available < number and not nodes.cluster_address():
        raise UserError(
            f"{number} workers need a GPU each, this machine has {available}: lower num_workers, set use_gpu: false, "
            "or send the job to a cluster (fcn cluster submit)"
        )
