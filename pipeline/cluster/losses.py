"""Says in a line each what a run on a cluster loses, and what it waits for. Ray says it in pages, or not at all."""

import logging
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray._private import worker as ray_worker
from ray.train import UserCallback

from pipeline.cluster import nodes

INTERVAL_S = 2.0
END_S = 5.0  # Ray answers no longer than this when its head is gone
LOST_OTHERS = re.compile(r"\[\S*/gloo/transport/\S*\] |.*ncclRemoteError")  # how a worker's error begins
OWN_ERROR = "\npipeline.errors."

# Loggers of Ray Train's controller and workers, which import this file. They say nothing of what they call expected or
# safe to ignore, with stacks (lost workers that do not leave their group, an autoscaler that is slow to answer), nor of
# errors that have a message or a line of their own. These are filters because Ray Train resets the loggers' levels


def _is_error(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR


def _is_unknown(record: logging.LogRecord) -> bool:
    stack = record.getMessage()
    return OWN_ERROR not in stack and not LOST_OTHERS.search(stack)


FILTERS = {
    "callbacks.backend_setup": _is_error,
    "execution.scaling_policy.autoscaling_coordinator_client": _is_error,
    "execution.scaling_policy.elastic": _is_error,
    "util": _is_unknown,
}
for module, function in FILTERS.items():
    logging.getLogger(f"ray.train.v2._internal.{module}").addFilter(function)


def _print_but_separations(data: dict[str, Any], *arguments: Any, **options: Any) -> None:
    """Print what Ray sends from nodes, but for the pages about one that was lost: `watch` names it."""
    words = "\n".join(data["lines"])
    is_known = any(each in words for each in nodes.SEPARATIONS) and not nodes.unknown_errors(words)
    if data.get("pid") not in ("raylet", "gcs_server") or not is_known:
        _print(data, *arguments, **options)


_print = ray_worker.print_to_stdstream  # Ray has no setting for it
ray_worker.print_to_stdstream = _print_but_separations


class Workers(UserCallback):
    """Prints a line about each worker that was lost. Of other errors the worker itself has printed the stack."""

    def __init__(self, name: str):
        self.name = name

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:  # noqa: ARG002
        for number, error in sorted(worker_exceptions.items()):
            text = " ".join(str(error).split())
            if start := LOST_OTHERS.match(text):
                reason = text[start.end() :].partition(". ")[0]  # without advice
                print(f"{self.name}  worker {number} has lost the others: {reason}", flush=True)
            elif type(error).__module__.startswith("ray."):  # it no longer answers
                because = re.search(r"The actor (?:died|is dead) because (.*)", text)
                print(f"{self.name}  worker {number} is gone: {because[1] if because else text}", flush=True)


@contextmanager
def watch(missing: Callable[[], str], head: str) -> Iterator[None]:
    """Say during the block which nodes come and go, and what the run waits for.

    missing: returns what the cluster lacks, such as "2 more CPU", or "".
    head: HOST:PORT, for the remedy.
    """
    ended = threading.Event()
    thread = threading.Thread(target=_watch, args=(missing, head, ended), daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(END_S)


def _watch(missing: Callable[[], str], head: str, ended: threading.Event) -> None:
    seen: dict[str, str] = {}
    lacking = ""
    while not ended.wait(INTERVAL_S):
        present = {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}
        changes = [f"node {address} lost" for node, address in seen.items() if node not in present]
        changes += [
            f"node {address} joined" for node, address in present.items() if seen and node not in seen
        ]
        before, lacking = lacking, missing()
        if lacking and (changes or lacking != before):
            changes.append(f"waiting for {lacking}; join it again: fcn cluster join {head}")
        if changes:
            print(", ".join(changes), flush=True)
        seen = present
