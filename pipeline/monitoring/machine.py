"""The cores and the memory that this process may use."""

import math
import os
from collections.abc import Iterator
from pathlib import Path

MEMINFO, CGROUPS = Path("/proc/meminfo"), Path("/sys/fs/cgroup")
GROUPS = Path("/proc/self/cgroup")


def num_cores() -> int:
    """Return how many CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def available_memory() -> float:
    """Return the bytes that can still be allocated, at most a container's limit; infinity except on Linux."""
    if not MEMINFO.exists():
        return math.inf
    line = next(line for line in MEMINFO.read_text().splitlines() if line.startswith("MemAvailable"))
    return min([int(line.split()[1]) * 1024, *_limits()])


def _limits() -> Iterator[int]:
    """Yield the memory limits around this process, as containers, Slurm and systemd set them."""
    for line in GROUPS.read_text().splitlines() if GROUPS.exists() else []:
        _, controllers, group = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        top = CGROUPS / "memory" if controllers else CGROUPS
        file = "memory.limit_in_bytes" if controllers else "memory.max"
        folder = top / group.lstrip("/")
        # A container sees its own group as the top one, whatever the name
        for path in {top, *(each for each in (folder, *folder.parents) if top in each.parents)}:
            try:
                limit = (path / file).read_text().strip()
            except OSError:
                continue
            if limit.isdecimal():  # not "max"
                yield int(limit)
