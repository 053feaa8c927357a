"""Says in a line each what a run on a cluster loses, and what it waits for. Ray says it in pages, or not at all."""

import logging
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray.exceptions import RayActorError
from ray.train import UserCallback

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
            cause = getattr(error, "_base_exc", error)  # Ray wraps what a worker's function raises
            if not isinstance(cause, self.known):
                print(f"{self.name}  worker {number} {describe(error, cause)}", flush=True)


def describe(error: BaseException, cause: BaseException) -> str:
    text = " ".join(str(cause).split())
    if isinstance(cause, RayActorError):
        because = re.search(r"because (.*)", text)
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
