"""Small shards on this machine and in a bucket."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import s3_server
from tests.small_shards import write


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An intact folder, for tests that only read or restore what they change."""
    return write(tmp_path_factory.mktemp("whole") / "train")


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    """An intact folder, for tests that damage it."""
    return Path(shutil.copytree(whole, tmp_path / "train"))


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    with s3_server.s3_server() as url:
        yield url
