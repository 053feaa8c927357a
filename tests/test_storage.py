"""pipeline/storage.py: the same methods on a local folder and on a bucket of a real S3 server."""

import hashlib
import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.errors import ShardError
from pipeline.storage import Folder
from tests import s3_server


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    with s3_server.s3_server() as url:
        yield url


@pytest.fixture(params=["local", "s3"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Folder:
    """A folder that does not exist yet."""
    if request.param == "local":
        return Folder(str(tmp_path / "folder"))
    return Folder(f"{request.getfixturevalue('bucket')}/{tmp_path.name}/folder")


def put(folder: Folder, name: str, data: bytes, tmp_path: Path) -> None:
    (tmp_path / "finished").write_bytes(data)
    folder.put(tmp_path / "finished", name)
    assert not (tmp_path / "finished").exists()


def test_a_file_that_is_put_is_listed_read_hashed_and_removed(folder: Folder, tmp_path: Path):
    assert folder.list() == {}
    data = os.urandom(3_000_000)
    put(folder, "a.tar", data, tmp_path)
    put(folder, "b.tar", b"other", tmp_path)
    assert {name: entry.size for name, entry in folder.list().items()} == {"a.tar": 3_000_000, "b.tar": 5}
    assert folder.read("a.tar") == data
    assert folder.read("a.tar", 1000, 17) == data[1000:1017]
    assert folder.read("b.tar", 3, 100) == b"er"
    assert folder.sha256("a.tar") == hashlib.sha256(data).hexdigest()
    folder.remove("b.tar")
    assert list(folder.list()) == ["a.tar"]


def test_a_folder_of_a_bucket_replaces_another_and_leaves_nothing_of_it(bucket: str, tmp_path: Path):
    folder, new = Folder(f"{bucket}/dest"), Folder(f"{bucket}/dest.new")
    for name in ("a", "old", "manifest"):
        put(folder, name, b"old", tmp_path)
    for name in ("manifest", "a", "z"):
        put(new, name, b"new", tmp_path)
    new.move_to(folder, last="manifest")
    assert {name: folder.read(name) for name in folder.list()} == dict.fromkeys(
        ("a", "manifest", "z"), b"new"
    )
    assert new.list() == {}


def test_in_a_bucket_the_file_that_readers_look_for_first_leaves_first_and_comes_last(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """So a reader finds all of the old files, or no such file, or all of the new ones."""
    dest, new = Folder(f"{bucket}/order/dest"), Folder(f"{bucket}/order/new")
    for folder, data in ((dest, b"old"), (new, b"new")):
        for name in ("a", "manifest", "z"):
            put(folder, name, data, tmp_path)
    remove = Folder.remove

    def killed_after(folder: Folder, name: str) -> None:
        remove(folder, name)
        raise KeyboardInterrupt

    monkeypatch.setattr(Folder, "remove", killed_after)
    with pytest.raises(KeyboardInterrupt):
        new.move_to(dest, last="manifest")
    monkeypatch.setattr(Folder, "remove", remove)
    assert sorted(dest.list()) == ["a", "z"]
    new.move_to(dest, last="manifest")
    assert {name: dest.read(name) for name in dest.list()} == dict.fromkeys(("a", "manifest", "z"), b"new")


@pytest.mark.parametrize("method", [Folder.read, Folder.sha256])
def test_a_missing_file_is_named_with_the_reason(folder: Folder, tmp_path: Path, method):
    put(folder, "a", b"a", tmp_path)
    with pytest.raises(ShardError, match=f"^{folder.where}/none cannot be read: No such file or directory$"):
        method(folder, "none")


@pytest.mark.usefixtures("bucket")
def test_a_missing_bucket_is_named_and_the_file_stays(tmp_path: Path):
    (tmp_path / "x").write_bytes(b"x")
    with pytest.raises(ShardError, match=r"s3://nowhere/p/x cannot be written: .*[Bb]ucket"):
        Folder("s3://nowhere/p").put(tmp_path / "x", "x")
    assert (tmp_path / "x").exists()


def test_a_server_that_is_down_is_reported_within_seconds(monkeypatch: pytest.MonkeyPatch):
    with monkeypatch.context() as patch:
        s3_server.point_to("http://127.0.0.1:9", patch)
        with pytest.raises(ShardError, match=r"s3://shelf/p cannot be listed: .*connect"):
            Folder("s3://shelf/p").list()
    s3_server.forget()


def test_a_name_that_no_file_can_have_is_an_error_of_the_same_kind(tmp_path: Path):
    with pytest.raises(ShardError, match="cannot be read"):
        Folder(f"{tmp_path}/a\0b").read("x")


@pytest.mark.skipif(importlib.util.find_spec("huggingface_hub") is not None, reason="the package is there")
def test_a_store_whose_package_is_not_installed_is_an_error_that_names_it():
    with pytest.raises(ShardError, match="huggingface_hub"):
        Folder("hf://datasets/user/name").list()
