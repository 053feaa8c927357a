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

# Loggers of Ray Train's controller and workers, which import this file, up to which level they say nothing: stacks of
# what they call expected or safe to ignore (lost workers that do not leave their group, an autoscaler that is slow to
# answer), and of every error of a worker, which `Workers` below shows
QUIET = {
    "callbacks.backend_setup": logging.WARNING,
    "execution.scaling_policy.autoscaling_coordinator_client": logging.WARNING,
    "execution.scaling_policy.elastic": logging.WARNING,
    "util": logging.ERROR,
}
for module, level in QUIET.items():  # by filters, because Ray Train resets the levels
    logging.getLogger(f"ray.train.v2._internal.{module}").addFilter(
        lambda record, level=level: record.levelno > level
    )


def _print_but_separations(data: dict[str, Any], *arguments: Any, **options: Any) -> None:
    """Print lines that Ray sends from other nodes, but for the stack of one that was cut off: `watch` names it."""
    if data.get("pid") not in ("raylet", "gcs_server") or not nodes.is_separation("\n".join(data["lines"])):
        _print(data, *arguments, **options)


_print = ray_worker.print_to_stdstream  # Ray has no setting for it
ray_worker.print_to_stdstream = _print_but_separations

INTERVAL_S = 2.0
END_S = 5.0  # Ray answers no longer than this when its head is gone


class Workers(UserCallback):
    """Prints why workers ended. An error that is not known to come from a lost process or node keeps its stack.

    known: errors of workers that end the run with their message.
    """

    def __init__(self, name: str, known: type[Exception]):
        self.name, self.known = name, known

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:  # noqa: ARG002
        for number, error in sorted(worker_exceptions.items()):
            raised = getattr(error, "_base_exc", None)  # Ray wraps what a worker's function raises
            if not isinstance(raised, self.known):
                print(f"{self.name}  worker {number} {_describe(error, raised)}", flush=True)


def _describe(error: BaseException, raised: BaseException | None) -> str:
    text = " ".join(str(raised or error).split())
    if raised is None:  # Ray reports on a worker that no longer answers
        because = re.search(r"The actor (?:died|is dead) because (.*)", text)
        return f"is gone: {because[1] if because else text}"
    if re.search(r"/gloo/|NCCL|ProcessGroup", text):
        reason = re.sub(r"^\[\S*\] ", "", text).partition(". ")[0]  # without gloo's file, line and advice
        return f"has lost the others: {reason}"
    return f"failed: {error}"


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
