"""WebDataset tars with a Parquet manifest: written byte for byte the same each time, read back from any sample.

A shard holds <key>.jpg and <key>.png for each sample, one after the other. manifest.parquet has a row a sample, in
the shards' order, and in its metadata what every shard must weigh and hash to. It is sealed: it holds the sha256 of
its own bytes, since Parquet's checksums leave out the part that says what the rest means.
"""

import hashlib
import json
import os
import re
import tarfile
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from tqdm import tqdm
from webdataset.writer import TarWriter

from fcn import IGNORE_LABEL
from pipeline.datasets import Sample
from pipeline.datasets.files import encode_label, image_facts
from pipeline.errors import ShardError
from pipeline.progress import bar

MANIFEST = "manifest.parquet"
FORMAT = "fcn-shards/1"
MEMBERS = ("jpg", "png")
REMEDY = "run `dvc repro -f shard` to write it again"
_BLANK = '"seal": "' + "0" * 64 + '"'  # how the seal reads in the header while the digest is taken
_SEAL = re.compile(rb'"seal": "([0-9a-f]{64})"')


def write_shards(
    keys: Sequence[str],
    load: Callable[[str], Sample],
    dest: Path,
    *,
    split: str,
    classes: Sequence[str],
    samples_per_shard: int,
    seed: int,
) -> None:
    """Writes the samples of `keys`, in an order shuffled by `seed`, to dest/shard-000000.tar ... and the manifest.

    load: gives the sample of a key; called once for each. Everything is written beside dest and renamed at the end.
    The same keys, samples and seed give the same bytes.
    """
    assert len(set(keys)) == len(keys) > 0, len(keys)
    order = np.random.Generator(np.random.PCG64(seed)).permutation(len(keys))
    ordered = [sorted(keys)[i] for i in order]
    dest.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{dest.name}.", dir=dest.parent) as scratch:
        building = Path(scratch, "new")
        building.mkdir()
        rows: list[dict[str, Any]] = []
        shards: list[dict[str, Any]] = []
        with bar(len(ordered), f"shard {split}") as progress:
            for start in range(0, len(ordered), samples_per_shard):
                path = building / f"shard-{len(shards):06d}.tar"
                part = ordered[start : start + samples_per_shard]
                rows += _write_shard(path, part, load, len(classes), progress)
                shards.append({"name": path.name, "bytes": path.stat().st_size, "sha256": _sha256_of(path)})
        header = {"format": FORMAT, "split": split, "classes": list(classes), "shards": shards}
        _write_manifest(building / MANIFEST, rows, header)
        if dest.exists():
            dest.rename(Path(scratch, "old"))
        building.rename(dest)


def _write_shard(
    path: Path, keys: Sequence[str], load: Callable[[str], Sample], num_classes: int, progress: "tqdm[Any]"
) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    with path.open("wb") as file, TarWriter(file, encoder=False, mtime=0) as tar:
        for key in keys:
            sample = load(key)
            members = {"jpg": sample.jpeg, "png": encode_label(sample.label)}
            tar.write({"__key__": key, **members})
            height, width = sample.label.shape
            mode, pixels = image_facts(sample.jpeg, key)
            counts = np.bincount(sample.label.ravel(), minlength=IGNORE_LABEL + 1)
            rows.append(
                {"key": key, "shard": path.name, "height": height, "width": width}
                | {"mode": mode, "pixel_sha256": pixels}
                | {"class_pixels": counts[:num_classes].tolist(), "void_pixels": int(counts[IGNORE_LABEL])}
                | {f"{kind}_sha256": hashlib.sha256(data).digest() for kind, data in members.items()}
            )
            progress.update()
    # Offsets are read off the finished tar, not worked out: what is recorded is what is there
    with tarfile.open(path) as tar:
        members = {member.name: member for member in tar}
    for row in rows:
        for kind in MEMBERS:
            member = members[f"{row['key']}.{kind}"]
            row |= {f"{kind}_offset": member.offset_data, f"{kind}_size": member.size}
    return rows


def _write_manifest(path: Path, rows: list[dict[str, Any]], header: dict[str, Any]) -> None:
    schema = pa.schema(
        [("key", pa.string()), ("split", pa.string()), ("shard", pa.string())]
        + [(f"{kind}_{what}", pa.int64()) for kind in MEMBERS for what in ("offset", "size")]
        + [(f"{kind}_sha256", pa.binary(32)) for kind in MEMBERS]
        + [
            ("height", pa.int32()),
            ("width", pa.int32()),
            ("mode", pa.string()),
            ("pixel_sha256", pa.binary(32)),
        ]
        + [("class_pixels", pa.list_(pa.int64())), ("void_pixels", pa.int64())]
    )
    table = pa.Table.from_pylist([row | {"split": header["split"]} for row in rows], schema)
    # Without Arrow's own schema, which would repeat the header in another coding: the seal is to be there once
    with pq.ParquetWriter(
        path, schema, compression="zstd", write_page_checksum=True, store_schema=False
    ) as file:
        file.write_table(table)
        file.add_key_value_metadata({"fcn": json.dumps(header | {"seal": "0" * 64}, sort_keys=True)})
    data = path.read_bytes()
    assert data.count(_BLANK.encode()) == 1
    seal = f'"seal": "{hashlib.sha256(data).hexdigest()}"'
    path.write_bytes(data.replace(_BLANK.encode(), seal.encode()))


def _is_sealed(manifest: bytes | bytearray) -> bool:
    """Whether a manifest's bytes are those that were written."""
    seals = _SEAL.findall(manifest)
    blank = _SEAL.sub(_BLANK.encode(), manifest)
    return [hashlib.sha256(blank).hexdigest().encode()] == seals


@dataclass(frozen=True)
class Shards:
    """A folder of verified shards: the manifest in memory, the samples a read away. Safe to use after a fork."""

    folder: Path
    table: pa.Table
    header: dict

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple(self.header["classes"])

    @cached_property
    def keys(self) -> list[str]:
        """In the shards' order."""
        return self.table["key"].to_pylist()

    def __len__(self) -> int:
        return self.table.num_rows

    @property
    def class_pixels(self) -> torch.Tensor:
        """(num_classes,) int64: how many pixels of all labels are of each class."""
        return torch.tensor(self.table["class_pixels"].to_pylist()).sum(0)

    @cached_property
    def digest(self) -> str:
        """sha256 of the manifest's content, and so of every image and label in it."""
        shards = [(shard["name"], shard["sha256"]) for shard in self.header["shards"]]
        return hashlib.sha256(json.dumps([self.classes, shards]).encode()).hexdigest()

    def read(self, index: int) -> tuple[bytes, bytes]:
        """(jpg, png) bytes of sample `index`; ShardError if they are not those that were written."""
        columns = self._columns
        path = self.folder / columns["shard"][index]
        parts = []
        try:
            with path.open("rb") as shard:
                for kind in MEMBERS:
                    size, offset = columns[f"{kind}_size"][index], columns[f"{kind}_offset"][index]
                    parts.append(os.pread(shard.fileno(), size, offset))
        except OSError as error:
            raise ShardError(f"{path} cannot be read: {error.strerror}; {REMEDY}") from error
        for kind, data in zip(MEMBERS, parts, strict=True):
            if hashlib.sha256(data).digest() != columns[f"{kind}_sha256"][index]:
                name = f"{self.keys[index]}.{kind}"
                raise ShardError(f"{path}: {name} is not what the manifest recorded; {REMEDY}")
        return parts[0], parts[1]

    @cached_property
    def _columns(self) -> dict[str, list]:
        names = ["shard"] + [f"{kind}_{what}" for kind in MEMBERS for what in ("offset", "size", "sha256")]
        return {name: self.table[name].to_pylist() for name in names}


def open_shards(folder: Path) -> Shards:
    """Opens a folder that write_shards made, checking that every shard is there with its size and sha256."""
    path = folder / MANIFEST
    if not path.is_file():
        raise ShardError(f"{path} is missing; run `dvc repro shard` first")
    manifest = path.read_bytes()
    if not _is_sealed(manifest):  # before a parser sees it
        raise ShardError(f"{path} is damaged: its bytes do not match the sha256 in it; {REMEDY}")
    try:
        table = pq.read_table(pa.BufferReader(manifest))
        header = json.loads((table.schema.metadata or {})[b"fcn"])
    except (OSError, pa.ArrowException, KeyError, ValueError) as error:
        raise ShardError(f"{path} is damaged ({error}); {REMEDY}") from error
    if header.get("format") != FORMAT:
        raise ShardError(f"{path} has format {header.get('format')!r}, expected {FORMAT!r}; {REMEDY}")
    _verify(folder, header["shards"])
    return Shards(folder, table, header)


def _verify(folder: Path, expected: Sequence[dict]) -> None:
    there = {path.name for path in folder.iterdir()} - {MANIFEST}
    listed = {shard["name"] for shard in expected}
    if there != listed:
        lacking, extra = sorted(listed - there), sorted(there - listed)
        raise ShardError(
            f"{folder}: shards missing: {lacking or 'none'}, not in the manifest: {extra or 'none'}; {REMEDY}"
        )
    for shard in expected:
        path = folder / shard["name"]
        if (size := path.stat().st_size) != shard["bytes"]:
            raise ShardError(f"{path}: {size} bytes, expected {shard['bytes']}; {REMEDY}")
        if (found := _sha256_of(path)) != shard["sha256"]:
            raise ShardError(f"{path}: sha256 {found}, expected {shard['sha256']}; {REMEDY}")


def _sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
