"""Numbers averaged through the memory of one machine, whose workers gloo would have talk over its network."""

import mmap
import os

import torch
from torch import Tensor

from pipeline.distributed.meeting import Meeting, meeting
from pipeline.distributed.rank import Place

# Bytes a worker shows at a time: so few that they stay in caches, so many that to wait costs nothing
CHUNK = 2**23


class SharedMemory:
    """Two halves, with a chunk for every worker in each."""

    def __init__(self, place: Place, meeting: Meeting, memory: mmap.mmap):
        self._place = place
        self._meeting = meeting
        self._chunks = torch.frombuffer(memory, dtype=torch.uint8).view(2, place.world, -1)
        self._half = 0

    def average(self, value: Tensor) -> None:
        """Puts the workers' mean in the place of each one's value: (n,), any floating dtype, the same on all.

        All must call it. All get the same bits.
        """
        for part in value.split(self._chunks.shape[2] // value.element_size()):
            shown = self._chunks[self._half].view(value.dtype)[:, : len(part)]
            torch.div(part, self._place.world, out=shown[self._place.rank])
            self._meeting.wait()  # all have shown theirs
            torch.add(shown[0], shown[1], out=part)
            for further in shown[2:]:
                part += further
            # Who still reads this half is not at the next meeting, after which nobody does
            self._half ^= 1


def shared_memory(place: Place) -> SharedMemory | None:
    """What the workers of a group share, if all are on one machine and compute on its CPUs. All must call it.

    The memory has no name and is gone with the last of its processes, however they end. Linux; elsewhere None.
    """
    if place.device.type != "cpu":
        return None
    machines = place.gather(_machine())
    if machines[0] is None or machines != machines[:1] * place.world:
        return None
    met = meeting(place)
    if met is None:
        return None
    size = 2 * place.world * CHUNK
    made = _make(size) if place.is_first else None
    paths = place.gather(f"/proc/{os.getpid()}/fd/{made}")
    memory = _mapped(paths[0], size)
    missing = place.total(torch.tensor(float(memory is None)))
    if made is not None:
        os.close(made)
    return None if memory is None or missing else SharedMemory(place, met, memory)


def _machine() -> str | None:
    """The same for processes that can see each other by number, and for no others; None where no memory is shared."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as boot:
            return f"{boot.read().strip()} {os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return None


def _make(size: int) -> int | None:
    """A file in memory, not in /dev/shm, which containers keep small."""
    try:
        made = os.memfd_create("gradients")
        os.ftruncate(made, size)
    except (OSError, AttributeError):  # forbidden, or a Python made on an old Linux
        return None
    return made


def _mapped(path: str, size: int) -> mmap.mmap | None:
    try:
        opened = os.open(path, os.O_RDWR)
        try:
            return mmap.mmap(opened, size)
        finally:
            os.close(opened)
    except OSError:  # of another user, behind a wall, or no memory left
        return None
