"""Connects this process to Ray, on this machine or on the cluster that RAY_ADDRESS names.

Imported before Ray, because it holds settings that Ray reads when it is imported.
"""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from textwrap import shorten

from pipeline.cluster import nodes

_SETTINGS = nodes.EVERYWHERE | {
    "RAY_DEDUP_LOGS": "0",  # else lines that differ in their numbers alone are dropped
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",  # else every line of a worker is shown twice
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # delay at the end of a run; default 2
    "RAY_gcs_server_port_wait_time_s": "120",  # to start on a busy machine; default 20
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "300",  # the same for workers; default 60
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # the coming default, which Ray warns about
}
if not nodes.cluster_address():  # preemption happens only on a cluster
    _SETTINGS["RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"] = "0"
os.environ.update(_SETTINGS | dict(os.environ))

import ray
from ray.exceptions import AuthenticationError

from pipeline.errors import UserError


@contextmanager
def session(num_cpus: int) -> Iterator[bool]:
    """Connect this process to Ray during the block, unless it is connected. Yield whether the block connected it.

    Calls in the block share the connection, whose start takes seconds. A process of Ray is always connected. SIGTERM is
    like Ctrl-C in the block; Ray would print stacks of C++.

    num_cpus: that the cluster has at least, where one is started on this machine.
    """
    if ray.is_initialized():
        yield False
        return
    _connect(num_cpus)
    is_main = threading.current_thread() is threading.main_thread()
    try:
        with sigterm_calls(_interrupt) if is_main else nullcontext():
            yield True
    finally:
        ray.shutdown()


def _interrupt() -> None:
    raise KeyboardInterrupt


def _connect(num_cpus: int) -> None:
    """Connect to the cluster that RAY_ADDRESS names, else start one on this machine with at least num_cpus CPUs."""
    address = nodes.cluster_address()
    if not address:
        nodes.ensure_token()
        try:
            ray.init(
                address="local",  # not a cluster that happens to run on this machine
                num_cpus=max(num_cpus, os.cpu_count() or 1),
                include_dashboard=False,  # ten processes
                # Without the dashboard a helper of Ray Train warns every second that it cannot query it
                logging_config=ray.LoggingConfig(log_level="ERROR"),
            )
        except Exception as error:  # Ray raises even the base class
            reason = shorten(str(error), 400)
            raise UserError(
                f"Ray does not start on this machine: {reason}; `fcn doctor` names what is in the way"
            ) from error
        return
    if address.startswith("http"):
        raise UserError(
            f"RAY_ADDRESS={address} is a job server: submit a job to it (fcn cluster submit --address {address} ...), "
            "or give the head's HOST:PORT to run this command itself on the cluster"
        )
    nodes.require_token()
    _require_listener(address)
    try:
        ray.init(address=address)
    except (ConnectionError, AuthenticationError, RuntimeError) as error:
        raise UserError(f"RAY_ADDRESS={address}: {' '.join(str(error).split())}") from None


def _require_listener(address: str) -> None:
    """Raise UserError if nothing listens at HOST:PORT. Ray would wait ten minutes. Other addresses pass."""
    place = address.rpartition("://")[2]
    host, _, port = place.rpartition(":")
    if not (host and port.isdigit()):
        return
    try:
        nodes.reach(place)
    except OSError as error:
        raise UserError(
            f"RAY_ADDRESS={address}: no answer ({error}); give HOST:PORT of a cluster's head, or unset it for a "
            "cluster of this machine alone"
        ) from None


@contextmanager
def sigterm_calls(function: Callable[[], None]) -> Iterator[None]:
    """Call the function on SIGTERM. To be entered after Ray has set its own handler."""
    before = signal.signal(signal.SIGTERM, lambda *_: function())
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
