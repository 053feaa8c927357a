"""pipeline/shards/manifest.py: the seal, and what no manifest may say."""

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
from tests.small_shards import write


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A good folder, for tests that only read."""
    return write(tmp_path_factory.mktemp("whole") / "train")


def test_every_single_bit_of_the_manifest_counts(whole: Path):
    content = bytearray((whole / MANIFEST).read_bytes())
    assert manifest.is_sealed(content)
    for place in range(len(content)):
        for bit in range(8):
            content[place] ^= 1 << bit
            assert not manifest.is_sealed(content), (place, bit)
            content[place] ^= 1 << bit


def test_the_seal_is_the_sha256_of_the_manifest_with_noughts_in_its_place(whole: Path):
    content = (whole / MANIFEST).read_bytes()
    seal = json.loads(pq.read_metadata(whole / MANIFEST).metadata[b"fcn"])["seal"]
    assert hashlib.sha256(content.replace(seal.encode(), b"0" * 64)).hexdigest() == seal


# --- what no manifest may say, whatever its seal


def resealed(whole: Path, tmp_path: Path, change: Callable[[pa.Table, dict], tuple[pa.Table, dict]]) -> bytes:
    """The manifest with another content, sealed as if it had been written so."""
    table, header = manifest.parse((whole / MANIFEST).read_bytes(), "m")
    table = table.replace_schema_metadata(None).cast(manifest.SCHEMA)
    del header["seal"]
    manifest.write(tmp_path / MANIFEST, *change(table, header))
    return (tmp_path / MANIFEST).read_bytes()


def column(table: pa.Table, name: str, change: Callable[[list], list]) -> pa.Table:
    index, field = table.schema.names.index(name), table.schema.field(name)
    return table.set_column(index, field, pa.array(change(table[name].to_pylist()), field.type))


def shard(header: dict, **changes: Any) -> dict:
    """The header with its first shard changed."""
    first, *rest = header["shards"]
    return header | {"shards": [first | changes, *rest]}


CONTRADICTIONS: dict[str, tuple[Callable[[pa.Table, dict], tuple[pa.Table, dict]], str]] = {
    "a sample twice": (lambda t, h: (pa.concat_tables([t, t.slice(0, 1)]), h), "7 keys for 8 samples"),
    "a key twice": (lambda t, h: (column(t, "key", lambda k: [k[1], *k[1:]]), h), "6 keys for 7 samples"),
    "a shard without rows": (lambda t, h: (t.slice(3), h), "the shards of its rows"),
    "rows without a shard": (lambda t, h: (t, h | {"shards": h["shards"][1:]}), "the shards of its rows"),
    "a shard listed twice": (lambda t, h: (t, h | {"shards": h["shards"] * 2}), "a shard listed twice"),
    "another split": (lambda t, h: (t, h | {"split": "val"}), "rows of other splits than 'val'"),
    "a row of another split": (
        lambda t, h: (column(t, "split", lambda s: ["val", *s[1:]]), h),
        "other splits",
    ),
    "past the end": (lambda t, h: (column(t, "png_size", lambda s: [10**6, *s[1:]]), h), "a png outside"),
    "before the start": (
        lambda t, h: (column(t, "jpg_offset", lambda o: [-512, *o[1:]]), h),
        "a jpg outside",
    ),
    "half a sample": (lambda t, h: (column(t, "png_size", lambda s: [0, *s[1:]]), h), "a png outside"),
    "no size": (lambda t, h: (column(t, "png_size", lambda s: [None, *s[1:]]), h), "a png outside"),
    "a command": (lambda t, h: (t, shard(h, name="pipe:touch /tmp/x")), "shards named 'pipe:touch /tmp/x'"),
    "another folder": (lambda t, h: (t, shard(h, name="../shard-000000.tar")), "shards named '../shard"),
    "another format": (lambda t, h: (t, h | {"format": "fcn-shards/0"}), "has format 'fcn-shards/0'"),
}


@pytest.mark.parametrize("name", CONTRADICTIONS)
def test_a_manifest_that_contradicts_itself_is_refused(whole: Path, tmp_path: Path, name: str):
    change, words = CONTRADICTIONS[name]
    with pytest.raises(ShardError) as caught:
        manifest.parse(resealed(whole, tmp_path, change), "m")
    assert str(caught.value).startswith(f"m {'has' if 'format' in name else 'contradicts itself:'}")
    assert words in str(caught.value)


def test_the_same_content_sealed_again_is_the_same_file(whole: Path, tmp_path: Path):
    assert resealed(whole, tmp_path, lambda table, header: (table, header)) == (whole / MANIFEST).read_bytes()
