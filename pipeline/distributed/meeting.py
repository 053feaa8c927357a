"""Workers of one machine wait for each other, sooner than through its network."""

import os
from multiprocessing import Pipe
from multiprocessing.connection import Connection

import torch

from pipeline.distributed.rank import COLLECTIVE_TIMEOUT_S, Place


class Meeting:
    """A pipe from every worker to every other.

    The kernel orders memory: what a worker wrote before it came, all others read after they went on.
    """

    def __init__(self, senders: list[Connection], receivers: list[Connection]):
        self._senders = senders
        self._receivers = receivers

    def wait(self) -> None:
        """Ends when all workers have called it. RuntimeError if one has gone, or does not come."""
        try:
            for sender in self._senders:
                sender.send_bytes(b".")
            for receiver in self._receivers:
                if not receiver.poll(COLLECTIVE_TIMEOUT_S):
                    raise RuntimeError(f"a worker did not come within {COLLECTIVE_TIMEOUT_S} s: it hangs")
                receiver.recv_bytes()
        except (EOFError, OSError) as error:
            raise RuntimeError(f"another worker has gone: {error!r}") from error


def meeting(place: Place) -> Meeting | None:
    """Of a group on one machine, through its /proc. All must call it; None if one of them is not let in."""
    others = [rank for rank in range(place.world) if rank != place.rank]
    pipes = {rank: Pipe(duplex=False) for rank in others}
    mine = {rank: f"/proc/{os.getpid()}/fd/{sender.fileno()}" for rank, (_, sender) in pipes.items()}
    offered = place.gather(mine)
    senders = [_opened(offered[rank][place.rank]) for rank in others]
    missing = place.total(torch.tensor(float(None in senders)))
    for _, sender in pipes.values():
        sender.close()  # the other has its own, whose end is then seen
    if missing:
        return None
    return Meeting([sender for sender in senders if sender], [receiver for receiver, _ in pipes.values()])


def _opened(path: str) -> Connection | None:
    try:
        return Connection(os.open(path, os.O_WRONLY), readable=False)
    except OSError:  # of another user, or behind a wall
        return None
