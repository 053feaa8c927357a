"""Verification: a folder's shards, every byte of them, against their manifest, before anything is trained on them."""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from pyarrow import fs

from pipeline.errors import ShardError
from pipeline.files import and_more, write_json
from pipeline.progress import bar
from pipeline.shards.manifest import MANIFEST, MEMBERS, Table, members_of
from pipeline.storage import Folder

QUIET_S = 3.0  # a shorter check shows no progress bar


class Damage(NamedTuple):
    """A difference between a folder and its manifest.

    message: names file and difference.
    shard: the shard's name if it is there with other bytes, else None.
    """

    message: str
    shard: str | None = None


def find_damage(
    folder: Folder,
    header: Mapping[str, Any],
    cache: Path | None = None,
    *,
    verify_all: bool = False,
    hashes: bool = True,
) -> Iterator[Damage]:
    """Yield every shard that is missing, unlisted or different from the manifest's header.

    cache: a folder that records intact shards by size and time of change, so that they are not read again.
    verify_all: read every shard, whatever the cache holds.
    hashes: whether sha256 is compared, too; otherwise only what a listing shows, of a server without listings nothing.
    """
    if not hashes and not folder.can_list:
        return
    listed = {shard["name"]: shard for shard in header["shards"]}
    if folder.can_list:
        present = folder.list()
    else:  # each is there until it is read
        present = {name: fs.FileInfo(name, size=shard["bytes"]) for name, shard in listed.items()}
    present.pop(MANIFEST, None)
    if missing := sorted(listed.keys() - present.keys()):
        yield Damage(f"{folder.where}: shards missing: {and_more(missing)}")
    is_ours = "members" not in header  # beside the tars of others may lie anything
    if is_ours and (unlisted := sorted(present.keys() - listed.keys())):
        yield Damage(f"{folder.where}: not in the manifest: {and_more(unlisted)}")
    names = [name for name in listed if name in present]
    if not hashes:
        for name in names:
            if message := _other_size(folder, listed[name], present[name].size):
                yield Damage(message, name)
        return
    cache_file = cache and _cache_file(cache, folder)
    remembered = _read_cache(cache_file) if cache_file and not verify_all else {}
    intact: dict[str, list[Any]] = {}
    with bar(len(names), f"verify {folder.where}", unit="shard", delay_s=QUIET_S) as progress:
        for name in names:
            shard, file = listed[name], present[name]
            state = [file.size, file.mtime_ns, shard["sha256"]]
            if remembered.get(name) == state or not (damage := _difference(folder, shard, file.size)):
                intact[name] = state
            else:
                yield damage
            progress.update()
    if cache_file and intact != remembered:
        write_json(cache_file, intact, indent=None, is_shared=True)


def _other_size(folder: Folder, shard: Mapping[str, Any], size: int) -> str | None:
    if size != shard["bytes"]:
        return f"{folder.name(shard['name'])}: {size} bytes, expected {shard['bytes']}"
    return None


def _difference(folder: Folder, shard: Mapping[str, Any], size: int) -> Damage | None:
    name = shard["name"]
    if message := _other_size(folder, shard, size):
        return Damage(message, name)
    try:
        digest = folder.sha256(name)
    except ShardError as error:
        return Damage(str(error))
    if digest != shard["sha256"]:
        return Damage(f"{folder.name(name)}: sha256 {digest}, expected {shard['sha256']}", name)
    return None


def damaged_samples(folder: Folder, table: Table, header: Mapping[str, Any], shard: str) -> str:
    """Return how many samples of a damaged shard are damaged, and the names of the first members."""
    rows = np.flatnonzero(np.asarray(table["shard"].to_numpy()) == shard).tolist()
    members = [
        (row["key"], members_of(row, header)[kind])
        for row in table.take(rows).to_pylist()
        for kind in MEMBERS
        if hashlib.sha256(folder.read(shard, row[f"{kind}_offset"], row[f"{kind}_size"])).digest()
        != row[f"{kind}_sha256"]
    ]
    num_samples = len({key for key, _ in members})
    names = and_more([f"{key}.{kind}" for key, kind in members])
    return f"{num_samples} of {len(rows)} samples damaged" + (f": {names}" if names else "")


def _cache_file(cache: Path, folder: Folder) -> Path:
    where = folder.where if folder.is_remote else os.path.abspath(folder.where)
    return cache / f"{hashlib.sha256(where.encode()).hexdigest()[:16]}.json"


def _read_cache(path: Path) -> dict[str, list[Any]]:
    """Return the remembered shards; none if the file is missing or damaged, so that they are read again."""
    try:
        remembered = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return remembered if isinstance(remembered, dict) else {}
