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
    """Return the bytes that can still be allocated, also within a container's limit; infinity except on Linux."""
    if not MEMINFO.exists():
        return math.inf
    line = next(line for line in MEMINFO.read_text().splitlines() if line.startswith("MemAvailable"))
    return min([int(line.split()[1]) * 1024, *_left_in_groups()])


def _left_in_groups() -> Iterator[int]:
    """Yield what is left of each memory limit around this process, as containers, Slurm and systemd set them."""
    for line in GROUPS.read_text().splitlines() if GROUPS.exists() else []:
        _, controllers, group = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        top = CGROUPS / "memory" if controllers else CGROUPS
        names = ("limit_in_bytes", "usage_in_bytes", "total_inactive_file")  # cgroups v1
        limit_file, usage_file, cache = names if controllers else ("max", "current", "inactive_file")
        folder = top / group.lstrip("/")
        # A container sees its own group as the top one, whatever the name
        for path in {top, *(each for each in (folder, *folder.parents) if top in each.parents)}:
            limit = _read(path / f"memory.{limit_file}")
            if not limit.isdecimal():  # "max"
                continue
            used = int(_read(path / f"memory.{usage_file}") or 0)
            stat = dict(line.split() for line in _read(path / "memory.stat").splitlines())
            # The kernel drops inactive pages of files before it refuses memory
            yield max(0, int(limit) - used + int(stat.get(cache, 0)))


def _read(path: Path) -> str:
    """Return the text of a file, "" if a group has no such file."""
    try:
        return path.read_text().strip()
    except OSError:
        return ""
