"""Whether shards are what their manifest recorded: all of them, every byte, before anything is learned from them."""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pipeline.progress import bar
from pipeline.shards.manifest import MANIFEST, MEMBERS, Table
from pipeline.storage import Entry, Folder

NAMED = 8  # of many damaged samples, how many are named
QUIET_S = 3.0  # a check that takes no longer shows no bar


class Damage(NamedTuple):
    """What is wrong, in a sentence; `shard`: the one that is there with other bytes."""

    what: str
    shard: str | None = None


def find_damage(
    folder: Folder, header: Mapping[str, Any], cache: Path | None, anew: bool
) -> Iterator[Damage]:
    """Every shard that is missing, too many or not what the header says.

    cache: a folder that keeps, by size and time of change, which shards were found whole; those are not read again
    unless `anew`.
    """
    there = folder.list()
    there.pop(MANIFEST, None)
    expected = {shard["name"]: shard for shard in header["shards"]}
    if lacking := sorted(expected.keys() - there.keys()):
        yield Damage(f"{folder.where}: shards missing: {', '.join(lacking)}")
    if extra := sorted(there.keys() - expected.keys()):
        yield Damage(f"{folder.where}: not in the manifest: {', '.join(extra)}")
    found = {name: there[name] for name in expected if name in there}
    remembered = {} if anew else _recall(cache, folder)
    whole: dict[str, list[Any]] = {}
    with bar(len(found), f"verify {folder.where}", unit="shard", delay_s=QUIET_S) as progress:
        for name, entry in found.items():
            shard = expected[name]
            mark = [entry.size, entry.mtime_ns, shard["sha256"]]
            if remembered.get(name) == mark or not (damage := _damage(folder, shard, entry)):
                whole[name] = mark
            else:
                yield Damage(damage, name)
            progress.update()
    if whole != remembered:
        _remember(cache, folder, whole)


def _damage(folder: Folder, shard: Mapping[str, Any], entry: Entry) -> str | None:
    if entry.size != shard["bytes"]:
        return f"{folder.name(shard['name'])}: {entry.size} bytes, expected {shard['bytes']}"
    if (found := folder.sha256(shard["name"])) != shard["sha256"]:
        return f"{folder.name(shard['name'])}: sha256 {found}, expected {shard['sha256']}"
    return None


def damaged_samples(folder: Folder, table: Table, shard: str) -> str:
    """Which samples of a damaged shard are hurt: their number, and the names of the first members."""
    rows = np.flatnonzero(np.asarray(table["shard"].to_numpy()) == shard).tolist()
    hurt, members = 0, []
    for row in table.take(rows).to_pylist():
        bad = []
        for kind in MEMBERS:
            data = folder.read(shard, row[f"{kind}_offset"], row[f"{kind}_size"])
            if hashlib.sha256(data).digest() != row[f"{kind}_sha256"]:
                bad.append(f"{row['key']}.{kind}")
        hurt += bool(bad)
        members += bad
    more = f" and {len(members) - NAMED} more" if len(members) > NAMED else ""
    return f"{hurt} of {len(rows)} samples damaged" + (
        f": {', '.join(members[:NAMED])}{more}" if hurt else ""
    )


def _recall(cache: Path | None, folder: Folder) -> dict[str, list[Any]]:
    """What is remembered of a folder's shards; nothing, if the file is not there or is not ours."""
    try:
        found = json.loads(_cache_file(cache, folder).read_text(encoding="utf-8")) if cache else {}
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _remember(cache: Path | None, folder: Folder, whole: Mapping[str, list[Any]]) -> None:
    if cache is None:
        return
    cache.mkdir(parents=True, exist_ok=True)
    path = _cache_file(cache, folder)
    partial = path.with_name(f"{path.name}.{os.getpid()}")  # every worker may write it, each the same
    partial.write_text(json.dumps(whole), encoding="utf-8")
    partial.replace(path)


def _cache_file(cache: Path, folder: Folder) -> Path:
    where = folder.where if folder.is_remote else os.path.abspath(folder.where)
    return cache / f"{hashlib.sha256(where.encode()).hexdigest()[:16]}.json"
