"""Data sets that lie on this machine already, unpacked or as archives."""

from pathlib import Path

from pipeline.datasets import published
from pipeline.datasets.copying import copy
from pipeline.errors import DatasetError

KEY = "data.source.local"
TOPS = (
    "VOCdevkit",
    "TrainVal",
    "benchmark_RELEASE",
)  # what the archives of VOC (2011: TrainVal) and SBD hold
ARCHIVES = (".tar", ".tgz", ".tar.gz", ".tar.bz2")


def bring(local: Path, raw: Path) -> None:
    """Fills raw, all or nothing, from a folder as the archives unpack, or else with archives in it, or one archive.

    Archives published under that name are held against their checksum before they are unpacked.
    """
    if local.is_file():
        published.unpack_local([local], raw)
        return
    if not local.is_dir():
        raise DatasetError(
            f"{KEY}: no folder or archive {local}; it must hold {_any_of(TOPS)}, or their archives"
        )
    found = [top for top in TOPS if (local / top).is_dir()]
    archives = sorted(path for path in local.iterdir() if path.name.endswith(ARCHIVES) and path.is_file())
    if found:
        for path in archives:
            print(f"{KEY}: {', '.join(found)} copied, {path} not unpacked", flush=True)
        copy({top: local / top for top in found}, raw, KEY)
    elif archives:
        published.unpack_local(archives, raw)
    else:
        there = ", ".join(sorted(path.name for path in local.iterdir())[:8]) or "nothing"
        raise DatasetError(
            f"{KEY}: {local} holds {there}; expected {_any_of(TOPS)} as the archives unpack, or the archives"
        )


def _any_of(names: tuple[str, ...]) -> str:
    return f"{', '.join(names[:-1])} or {names[-1]}"
