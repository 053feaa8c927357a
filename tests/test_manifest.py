"""pipeline/manifest.py: the seal, and what no manifest may say."""

import hashlib
import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipeline import manifest
from pipeline.manifest import MANIFEST
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
