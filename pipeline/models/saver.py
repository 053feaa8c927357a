"""Working checkpoints, written by a thread while training goes on."""

from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from torch import Tensor

from pipeline.errors import CheckpointError, UserError
from pipeline.models import checkpoint


class Saver:
    """Writes a run's checkpoints one after the other; training waits for the copy of its tensors alone.

    An error in the thread is raised by the next `save` or `wait`, or at the end of the `with` block.

    folder: of the run.
    kept_step: the step whose checkpoint stays when newer ones are written; 0: none.
    """

    def __init__(self, folder: Path, kept_step: int = 0):
        self._folder, self._kept_step = folder, kept_step
        self._thread = ThreadPoolExecutor(1)
        self._writing: Future[None] | None = None

    def save(self, step: int, content: Mapping[str, Any]) -> None:
        """Write the checkpoint of a step. Waits for the previous one, so that memory holds one copy at a time."""
        self.wait()
        self._writing = self._thread.submit(self._write, step, copied(content))

    def wait(self) -> None:
        """Wait until the last checkpoint is on disk."""
        if writing := self._writing:
            self._writing = None
            writing.result()

    def _write(self, step: int, content: Mapping[str, Any]) -> None:
        try:
            checkpoint.save_step(self._folder, step, content, self._kept_step)
        except UserError as error:
            raise CheckpointError(f"checkpoint of step {step}: {error}; earlier ones are kept") from error

    def __enter__(self) -> "Saver":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._thread.shutdown(wait=True)  # a run that failed leaves its last good checkpoint, too
        if kind is None:
            self.wait()


def copied(value: Any) -> Any:
    """Return nested dicts, lists and tuples with every tensor copied to the CPU."""
    match value:
        case Tensor():
            return value.detach().to("cpu", copy=True)
        case Mapping():
            return {key: copied(item) for key, item in value.items()}
        case list() | tuple():
            return type(value)(copied(item) for item in value)
    return value
