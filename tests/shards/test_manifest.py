"""pipeline/shards/manifest.py: the seal, and contradictions that no manifest may hold."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import ShardError
from pipeline.shards import manifest
from pipeline.shards.manifest import MANIFEST


def test_every_single_bit_of_the_manifest_counts(whole: Path):
    content = bytearray((whole / MANIFEST).read_bytes())
    assert manifest.is_sealed(content)
    for index in range(len(content)):
        for bit in range(8):
            content[index] ^= 1 << bit
            assert not manifest.is_sealed(content), (index, bit)
            content[index] ^= 1 << bit


def test_the_seal_is_the_sha256_of_the_manifest_with_zeros_in_its_place(whole: Path):
    content = (whole / MANIFEST).read_bytes()
    seal = json.loads(pq.read_metadata(whole / MANIFEST).metadata[b"fcn"])["seal"]
    assert hashlib.sha256(content.replace(seal.encode(), b"0" * 64)).hexdigest() == seal


# --- contradictions, whatever the seal

Change = Callable[[pa.Table, dict], tuple[pa.Table, dict]]


def resealed(whole: Path, tmp_path: Path, change: Change) -> bytes:
    """Return the manifest with other content, sealed as if it had been written so."""
    table, header = manifest.parse((whole / MANIFEST).read_bytes(), "m")
    table = table.replace_schema_metadata(None).cast(manifest.SCHEMA)
    del header["seal"]
    manifest.write(tmp_path / MANIFEST, *change(table, header))
    return (tmp_path / MANIFEST).read_bytes()


def with_first(name: str, value: Any) -> Change:
    """Change a column's first value."""

    def change(table: pa.Table, header: dict) -> tuple[pa.Table, dict]:
        index, field = table.schema.names.index(name), table.schema.field(name)
        values = [value, *table[name].to_pylist()[1:]]
        return table.set_column(index, field, pa.array(values, field.type)), header

    return change


def with_shard_name(name: str) -> Change:
    """Change the name of the header's first shard."""
    return lambda t, h: (t, h | {"shards": [h["shards"][0] | {"name": name}, *h["shards"][1:]]})


CONTRADICTIONS: dict[str, tuple[Change, str]] = {
    "a sample twice": (lambda t, h: (pa.concat_tables([t, t.slice(0, 1)]), h), "7 keys for 8 samples"),
    "a key twice": (lambda t, h: with_first("key", t["key"][1].as_py())(t, h), "6 keys for 7 samples"),
    "a shard without rows": (lambda t, h: (t.slice(3), h), "the shards of its rows"),
    "rows without a shard": (lambda t, h: (t, h | {"shards": h["shards"][1:]}), "the shards of its rows"),
    "a shard listed twice": (lambda t, h: (t, h | {"shards": h["shards"] * 2}), "listed twice"),
    "another split": (lambda t, h: (t, h | {"split": "val"}), "'val'"),
    "a row of another split": (with_first("split", "val"), "'train'"),
    "past the end": (with_first("png_size", 10**6), "a png outside"),
    "before the start": (with_first("jpg_offset", -512), "a jpg outside"),
    "half a sample": (with_first("png_size", 0), "a png outside"),
    "no size": (with_first("png_size", None), "a png outside"),
    "a command": (with_shard_name("pipe:touch /tmp/x"), "'pipe:touch /tmp/x'"),
    "another folder": (with_shard_name("../shard-000000.tar"), "'../shard-000000.tar'"),
    "another format": (lambda t, h: (t, h | {"format": "fcn-shards/0"}), "'fcn-shards/0'"),
}


@pytest.mark.parametrize("name", CONTRADICTIONS)
def test_a_manifest_that_contradicts_itself_is_refused(whole: Path, tmp_path: Path, name: str):
    change, fact = CONTRADICTIONS[name]
    with pytest.raises(ShardError, match=r"^m ") as caught:
        manifest.parse(resealed(whole, tmp_path, change), "m")
    assert fact in str(caught.value)


def test_the_same_content_sealed_again_is_the_same_file(whole: Path, tmp_path: Path):
    assert resealed(whole, tmp_path, lambda table, header: (table, header)) == (whole / MANIFEST).read_bytes()
