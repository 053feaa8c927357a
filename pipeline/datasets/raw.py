"""A profile's raw folder, data/<profile>/raw: the images as their source has them, which shards are made from.

DVC keeps only a record of its content, data/<profile>/raw.json. So shards that a colleague pulls need no images, and a
stage that does need them brings them when they are missing.
"""

import hashlib
import json
import shutil
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from pipeline import paths
from pipeline.config import Data
from pipeline.datasets import linked, local, own, published, synthetic
from pipeline.datasets.copying import refuse_within
from pipeline.download.fetch import fetch_published
from pipeline.errors import DatasetError
from pipeline.files import lock, sha256_file, write_json

STATE = ".raw.json"  # beside the folder: its record, and the sizes and times of its files then


def bring(profile: str, data: Data) -> None:
    """Fill the raw folder of this workspace from the profile's source, and write its record."""
    write_json(paths.raw_record(profile), _fill(profile, data))


def ensure(profile: str, data: Data) -> Path:
    """Return a folder with the images of the record: this workspace's or the project's, else brought again.

    Without a record, which DVC's stages always have, the folder is returned as it is.

    Raises DatasetError if the source has other images now.
    """
    raw, record = paths.raw(profile), paths.raw_record(profile)
    if not record.exists():
        return raw
    wanted = json.loads(record.read_text(encoding="utf-8"))
    for folder in dict.fromkeys((raw, paths.project(Path()) / raw)):
        if folder.is_dir() and _recorded(folder) == wanted:
            return folder
    if _fill(profile, data) != wanted:
        raise DatasetError(
            f"{raw} was filled again, and differs from {record}: its source has changed since; run "
            "`dvc repro -f download`, then `dvc repro`"
        )
    return raw


def _fill(profile: str, data: Data) -> dict[str, Any]:
    """Fill the raw folder, and return its record."""
    source, raw = data.source, paths.raw(profile)
    for key, path in (("local", source.local), ("own", source.own)):
        if path:
            refuse_within(paths.named(path), raw.parent, f"data.source.{key}")
    # The stage of a killed `dvc repro` may still be running
    with lock(raw.with_name(".raw.lock"), "downloads the same data set"):
        shutil.rmtree(raw, ignore_errors=True)
        try:
            _fill_from_source(raw, data)
        except DatasetError as error:
            if source.own:
                raise DatasetError(own.in_the_users_words(str(error), raw, source.own)) from error
            raise
        return _recorded(raw)


def _fill_from_source(raw: Path, data: Data) -> None:
    source = data.source
    if source.shards:  # they hold the images; other ones, or the same elsewhere, are another record
        write_json(raw / "shards.json", linked.fingerprint(source.shards))
    elif source.sample:
        synthetic.draw(raw, **source.sample.model_dump())
    elif source.local:
        local.bring(paths.named(source.local), raw)
    elif source.own:
        own.copy(paths.named(source.own), raw, data.classes, data.map, Path(source.own).expanduser())
    else:
        archives, downloads = source.archives.values(), paths.project(Path()) / paths.DOWNLOADS
        files = [fetch_published(downloads, **archive.model_dump()) for archive in archives]
        published.unpack(files, raw)


def _recorded(raw: Path) -> dict[str, Any]:
    """Return the record of a folder's content. It reads the files only if their sizes or times have changed."""
    files = sorted(path for path in raw.rglob("*") if path.is_file())
    names = [path.relative_to(raw).as_posix() for path in files]
    states = [(path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    state = _digest(f"{name} {size} {time}" for name, (size, time) in zip(names, states, strict=True))
    state_file = raw.with_name(STATE)
    try:
        remembered = json.loads(state_file.read_text(encoding="utf-8"))
        if remembered["state"] == state:
            return remembered["record"]
    except (OSError, ValueError, KeyError, TypeError):
        pass  # missing, or not whole
    with ThreadPoolExecutor() as pool:
        digests = list(pool.map(sha256_file, files))
    lines = (f"{name} {digest}" for name, digest in zip(names, digests, strict=True))
    record = {"num_files": len(files), "sha256": _digest(lines)}
    write_json(state_file, {"state": state, "record": record})
    return record


def _digest(lines: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode(errors="surrogateescape")).hexdigest()
