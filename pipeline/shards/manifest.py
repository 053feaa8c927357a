"""The manifest of a split's shards: a Parquet table with one row per sample, and a header that lists the shards.

A manifest is sealed: it contains the sha256 of its own bytes, because Parquet's checksums do not cover its metadata.
Columns stay in Arrow: a million rows take a few hundred MB, and many times that as Python objects.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import Table

from pipeline.errors import ShardError
from pipeline.files import whole
from pipeline.shards.images import JPG, PNG

MANIFEST = "manifest.parquet"
LOCATION = "location"  # the file beside a manifest that names the folder of its shards, where that is another
FORMAT, FORMAT_WITH_PNG = "fcn-shards/1", "fcn-shards/2"  # the second has the column PHOTO
MEMBERS = ("jpg", "png")  # a sample's photo and label in the names of columns
LABEL = "png"  # the label's member of a shard; the photo's is images.JPG or images.PNG
PHOTO = "photo"
SCHEMA = pa.schema(
    [("key", pa.string()), ("split", pa.string()), ("shard", pa.string())]
    + [(f"{kind}_{what}", pa.int64()) for kind in MEMBERS for what in ("offset", "size")]
    + [(f"{kind}_sha256", pa.binary(32)) for kind in MEMBERS]
    + [("height", pa.int32()), ("width", pa.int32()), ("mode", pa.string()), ("pixel_sha256", pa.binary(32))]
    + [("class_pixels", pa.list_(pa.int64())), ("void_pixels", pa.int64())]
)
SCHEMA_WITH_PNG = SCHEMA.append(pa.field(PHOTO, pa.string()))
SCHEMAS = {FORMAT: SCHEMA, FORMAT_WITH_PNG: SCHEMA_WITH_PNG}

_REPETITIVE = ["split", "shard", "mode"]  # columns of few values: an index a row, in the file and in memory
SHARD_NAME = re.compile(r"[^/\x00-\x1f]+\.tar")  # no path that leads elsewhere
_BLANK = b'"seal": "' + b"0" * 64 + b'"'  # the seal in the header while the digest is taken
_SEAL = re.compile(rb'"seal": "([0-9a-f]{64})"')


def table_of(rows: Sequence[dict[str, Any]]) -> Table:
    """Return the table of one shard's rows; it has the column PHOTO only where a photo is a PNG."""
    has_png = any(row[PHOTO] != JPG for row in rows)
    return Table.from_pylist(list(rows), SCHEMA_WITH_PNG if has_png else SCHEMA)


def joined(tables: Sequence[Table]) -> Table:
    """Return the rows of all tables; without a copy, so that a million samples fit."""
    tables = [table.replace_schema_metadata(None) for table in tables]
    if any(PHOTO in table.schema.names for table in tables):
        tables = [table if PHOTO in table.schema.names else _with_photos(table) for table in tables]
        tables = [table.cast(SCHEMA_WITH_PNG) for table in tables]
    return pa.concat_tables(tables)


def _with_photos(table: Table) -> Table:
    return table.append_column(PHOTO, pa.array([JPG] * len(table), pa.string()))


def format_of(table: Table) -> str:
    """Return the format of a manifest with this table."""
    return FORMAT_WITH_PNG if PHOTO in table.schema.names else FORMAT


def members_of(row: Mapping[str, Any], header: Mapping[str, Any]) -> dict[str, str]:
    """Return a sample's members of the shard by the name in columns: {"jpg": "jpg" or "image.png", "png": "png"}.

    header: the manifest's; that of anyone's tars names their members.
    """
    members = header.get("members", (row.get(PHOTO, JPG), LABEL))
    return dict(zip(MEMBERS, members, strict=True))


def write(path: Path, table: Table, header: dict[str, Any]) -> None:
    """Write a sealed manifest, whole or not at all; the same content gives the same bytes.

    table: of SCHEMA or SCHEMA_WITH_PNG.
    header: format, split, classes, shards and refused; other keys are kept.
    """
    schema = SCHEMAS[format_of(table)]
    buffer = pa.BufferOutputStream()
    with pq.ParquetWriter(
        buffer,
        schema,
        compression="zstd",
        write_page_checksum=True,
        store_schema=False,  # Arrow's own schema would repeat the header, and with it the seal
        use_dictionary=_REPETITIVE,  # pyright: ignore[reportArgumentType]  # its stub accepts only a bool
    ) as file:
        file.write_table(table.cast(schema))
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
    if header.get("format") not in SCHEMAS:
        raise ShardError(f"{where} has format {header.get('format')!r}, expected {' or '.join(SCHEMAS)}")
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
    if table.schema.names != SCHEMAS[header["format"]].names:
        return f"columns {', '.join(table.schema.names)}"
    size_of = {shard["name"]: shard["bytes"] for shard in header["shards"]}
    strange = [name for name in size_of if not SHARD_NAME.fullmatch(name)]
    if strange or len(size_of) != len(header["shards"]):
        return f"shards named {strange[0]!r}" if strange else "a shard listed twice"
    if set(table["shard"].unique().to_pylist()) != set(size_of):
        return "the shards of its rows are not those of its header"
    if set(table["split"].unique().to_pylist()) - {header["split"]}:
        return f"rows of other splits than {header['split']!r}"
    if (num_keys := len(table["key"].unique())) != table.num_rows:
        return f"{num_keys} keys for {table.num_rows} samples"
    if PHOTO in table.schema.names and set(table[PHOTO].unique().to_pylist()) - {JPG, PNG}:
        return f"photos that are neither {JPG} nor {PNG}"
    column = table["shard"].unify_dictionaries().combine_chunks()
    limit = np.array([size_of[name] for name in column.dictionary.to_pylist()])[column.indices.to_numpy()]
    for kind in MEMBERS:
        offset, size = table[f"{kind}_offset"].to_numpy(), table[f"{kind}_size"].to_numpy()
        if not ((offset > 0) & (size > 0) & (offset + size <= limit)).all():
            return f"a {kind} outside its shard"
    return None
