"""The manifest of a split's shards: a Parquet table with one row per sample, and a header that lists the shards.

A manifest is sealed: it contains the sha256 of its own bytes, because Parquet's checksums do not cover its metadata.
Columns stay in Arrow: a million rows take a few hundred MB, and many times that as Python objects.
"""

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import Table

from pipeline.errors import ShardError
from pipeline.files import whole

MANIFEST = "manifest.parquet"
LOCATION = "location"  # the file beside a manifest that names the folder of its shards, where that is another
FORMAT = "fcn-shards/1"
MEMBERS = ("jpg", "png")
SCHEMA = pa.schema(
    [("key", pa.string()), ("split", pa.string()), ("shard", pa.string())]
    + [(f"{kind}_{what}", pa.int64()) for kind in MEMBERS for what in ("offset", "size")]
    + [(f"{kind}_sha256", pa.binary(32)) for kind in MEMBERS]
    + [("height", pa.int32()), ("width", pa.int32()), ("mode", pa.string()), ("pixel_sha256", pa.binary(32))]
    + [("class_pixels", pa.list_(pa.int64())), ("void_pixels", pa.int64())]
)

_REPETITIVE = ["split", "shard", "mode"]  # columns of few values: an index a row, in the file and in memory
_SHARD_NAME = re.compile(r"shard-\d{6,}\.tar")  # neither a path that leads elsewhere nor a command
_BLANK = b'"seal": "' + b"0" * 64 + b'"'  # the seal in the header while the digest is taken
_SEAL = re.compile(rb'"seal": "([0-9a-f]{64})"')


def table_of(rows: Sequence[dict[str, Any]]) -> Table:
    """Return the table of one shard's rows."""
    return Table.from_pylist(list(rows), SCHEMA)


def joined(tables: Sequence[Table]) -> Table:
    """Return the rows of all tables; without a copy, so that a million samples fit."""
    return pa.concat_tables([table.replace_schema_metadata(None) for table in tables])


def write(path: Path, table: Table, header: dict[str, Any]) -> None:
    """Write a sealed manifest, whole or not at all; the same content gives the same bytes.

    table: of SCHEMA.
    header: format, split, classes, shards and refused; other keys are kept.
    """
    buffer = pa.BufferOutputStream()
    with pq.ParquetWriter(
        buffer,
        SCHEMA,
        compression="zstd",
        write_page_checksum=True,
        store_schema=False,  # Arrow's own schema would repeat the header, and with it the seal
        use_dictionary=_REPETITIVE,  # pyright: ignore[reportArgumentType]  # its stub accepts only a bool
    ) as file:
        file.write_table(table.cast(SCHEMA))
        file.add_key_value_metadata({"fcn": json.dumps(header | {"seal": "0" * 64}, sort_keys=True)})
    content = buffer.getvalue().to_pybytes()
    assert content.count(_BLANK) == 1
    seal = f'"seal": "{hashlib.sha256(content).hexdigest()}"'
    with whole(path, is_shared=True) as file:
        file.write(content.replace(_BLANK, seal.encode()))


def parse(manifest: bytes, where: str) -> tuple[Table, dict[str, Any]]:
    """Return table and header of a manifest's bytes; ShardError unless they are sealed and consistent.

    where: the manifest's name in messages.
    """
    if not is_sealed(manifest):  # checked before any parser reads the bytes
        raise ShardError(f"{where} is damaged: its bytes do not match the sha256 in it")
    try:
        file = pq.ParquetFile(pa.BufferReader(manifest), read_dictionary=_REPETITIVE)
        table = file.read(use_threads=False)  # threads cost a small table more than they save a large one
        header = json.loads((table.schema.metadata or {})[b"fcn"])
    except (OSError, pa.ArrowException, KeyError, ValueError) as error:
        raise ShardError(f"{where} is damaged ({error})") from error
    if header.get("format") != FORMAT:
        raise ShardError(f"{where} has format {header.get('format')!r}, expected {FORMAT!r}")
    if contradiction := _contradiction(table, header):
        raise ShardError(f"{where} contradicts itself: {contradiction}")
    return table, header


def is_sealed(manifest: bytes | bytearray) -> bool:
    """Return whether a manifest's bytes match the sha256 in it."""
    seals, content = list(_SEAL.finditer(manifest)), memoryview(manifest)
    if len(seals) != 1:
        return False
    digest = hashlib.sha256(content[: seals[0].start()])
    digest.update(_BLANK)
    digest.update(content[seals[0].end() :])
    return digest.hexdigest().encode() == seals[0][1]


def _contradiction(table: Table, header: dict[str, Any]) -> str | None:
    """Return the first inconsistency that no manifest written here can have, whatever its seal."""
    if table.schema.names != SCHEMA.names:
        return f"columns {', '.join(table.schema.names)}"
    size_of = {shard["name"]: shard["bytes"] for shard in header["shards"]}
    strange = [name for name in size_of if not _SHARD_NAME.fullmatch(name)]
    if strange or len(size_of) != len(header["shards"]):
        return f"shards named {strange[0]!r}" if strange else "a shard listed twice"
    if set(table["shard"].unique().to_pylist()) != set(size_of):
        return "the shards of its rows are not those of its header"
    if set(table["split"].unique().to_pylist()) - {header["split"]}:
        return f"rows of other splits than {header['split']!r}"
    if (num_keys := len(table["key"].unique())) != table.num_rows:
        return f"{num_keys} keys for {table.num_rows} samples"
    column = table["shard"].unify_dictionaries().combine_chunks()
    limit = np.array([size_of[name] for name in column.dictionary.to_pylist()])[column.indices.to_numpy()]
    for kind in MEMBERS:
        offset, size = table[f"{kind}_offset"].to_numpy(), table[f"{kind}_size"].to_numpy()
        if not ((offset > 0) & (size > 0) & (offset + size <= limit)).all():
            return f"a {kind} outside its shard"
    return None
