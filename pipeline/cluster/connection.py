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

os.environ.update(nodes.CLIENT | dict(os.environ))
if not nodes.cluster_address():  # preemption happens only on a cluster
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")

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
