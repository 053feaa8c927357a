"""Working checkpoints written while training goes on."""

from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from torch import Tensor

from pipeline.errors import CheckpointError
from pipeline.models import checkpoint


class Saver:
    """Writes a run's checkpoints one after the other in a thread; training waits for the copy alone.

    What goes wrong in the thread is raised by the next `save` or `wait`, or at the end of the `with`.
    """

    def __init__(self, folder: Path):
        self._folder = folder
        self._thread = ThreadPoolExecutor(1)
        self._writing: Future[None] | None = None

    def save(self, done: int, content: Mapping[str, Any]) -> None:
        """Has the checkpoint of a step written. Waits for the one before it, so that there is one copy at a time."""
        self.wait()
        self._writing = self._thread.submit(self._write, done, copied(content))

    def wait(self) -> None:
        """Until what was to be written is on disk."""
        if writing := self._writing:
            self._writing = None
            writing.result()

    def _write(self, done: int, content: Mapping[str, Any]) -> None:
        try:
            checkpoint.save_step(self._folder, done, content)
        except OSError as error:
            raise CheckpointError(
                f"the checkpoint of step {done} cannot be written to {self._folder}: {error.strerror}; "
                "those before it are kept"
            ) from error

    def __enter__(self) -> "Saver":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._thread.shutdown(wait=True)  # also what fails may leave its last good checkpoint
        if kind is None:
            self.wait()


def copied(value: Any) -> Any:
    """Nested dicts, lists and tuples with every tensor copied to the CPU, so that training may change its own."""
    match value:
        case Tensor():
            return value.detach().to("cpu", copy=True)
        case Mapping():
            return {key: copied(item) for key, item in value.items()}
        case list() | tuple():
            return type(value)(copied(item) for item in value)
    return value
