"""The manifest of a set of shards: a Parquet table with a row a sample, and a header that says what each shard is.

It is sealed: it holds the sha256 of its own bytes, since Parquet's checksums leave out the part that says what the
rest means. Columns stay Arrow's from here on: a million rows are a few hundred MB, as Python objects many times that.
"""

import hashlib
import json
import mmap
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import Table

from pipeline.errors import ShardError

MANIFEST = "manifest.parquet"
LOCATION = "location"  # beside a manifest whose shards lie elsewhere: where
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
_SHARD_NAME = re.compile(r"shard-\d{6,}\.tar")  # nothing that leads elsewhere or that a shell would run
_BLANK = b'"seal": "' + b"0" * 64 + b'"'  # how the seal reads in the header while the digest is taken
_SEAL = re.compile(rb'"seal": "([0-9a-f]{64})"')


def table_of(rows: Sequence[dict[str, Any]]) -> Table:
    """The rows of one shard; a million of them are better put together column by column."""
    return Table.from_pylist(list(rows), SCHEMA)


def joined(tables: Sequence[Table]) -> Table:
    return pa.concat_tables([table.replace_schema_metadata(None) for table in tables])


def write(path: Path, table: Table, header: dict[str, Any]) -> None:
    """Writes the table of SCHEMA and the header to path; the same content gives the same bytes."""
    # Without Arrow's own schema, which would repeat the header in another coding: the seal is to be there once
    with pq.ParquetWriter(
        path,
        SCHEMA,
        compression="zstd",
        write_page_checksum=True,
        store_schema=False,
        use_dictionary=_REPETITIVE,  # pyright: ignore[reportArgumentType]  # its stub knows only true and false
    ) as file:
        file.write_table(table.cast(SCHEMA))
        file.add_key_value_metadata({"fcn": json.dumps(header | {"seal": "0" * 64}, sort_keys=True)})
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as data:
        place = data.rfind(_BLANK)
        assert place == data.find(_BLANK) >= 0
        data[place : place + len(_BLANK)] = b'"seal": "' + hashlib.sha256(data).hexdigest().encode() + b'"'


def parse(manifest: bytes, where: str) -> tuple[Table, dict[str, Any]]:
    """(table, header) of a manifest's bytes; ShardError, which begins with `where`, unless they are those written."""
    if not is_sealed(manifest):  # before a parser sees it
        raise ShardError(f"{where} is damaged: its bytes do not match the sha256 in it")
    try:
        file = pq.ParquetFile(pa.BufferReader(manifest), read_dictionary=_REPETITIVE)
        table = file.read(use_threads=False)  # which cost a small table more than they give a large one
        header = json.loads((table.schema.metadata or {})[b"fcn"])
    except (OSError, pa.ArrowException, KeyError, ValueError) as error:
        raise ShardError(f"{where} is damaged ({error})") from error
    if header.get("format") != FORMAT:
        raise ShardError(f"{where} has format {header.get('format')!r}, expected {FORMAT!r}")
    if contradiction := _contradiction(table, header):
        raise ShardError(f"{where} contradicts itself: {contradiction}")
    return table, header


def is_sealed(manifest: bytes | bytearray) -> bool:
    """Whether a manifest's bytes are those that were written."""
    seals, content = list(_SEAL.finditer(manifest)), memoryview(manifest)
    if len(seals) != 1:
        return False
    digest = hashlib.sha256(content[: seals[0].start()])
    digest.update(_BLANK)
    digest.update(content[seals[0].end() :])
    return digest.hexdigest().encode() == seals[0][1]


def _contradiction(table: Table, header: dict[str, Any]) -> str | None:
    """What cannot be in a manifest that was written here, whatever its seal says."""
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
    if (distinct := len(table["key"].unique())) != table.num_rows:
        return f"{distinct} keys for {table.num_rows} samples"
    column = table["shard"].unify_dictionaries().combine_chunks()
    limit = np.array([size_of[name] for name in column.dictionary.to_pylist()])[column.indices.to_numpy()]
    for kind in MEMBERS:
        offset, size = table[f"{kind}_offset"].to_numpy(), table[f"{kind}_size"].to_numpy()
        if not ((offset > 0) & (size > 0) & (offset + size <= limit)).all():
            return f"a {kind} outside its shard"
    return None
