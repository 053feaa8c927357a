"""pipeline/download/remote.py: files that fsspec reads, from a real store in memory and from the disk."""

import hashlib
import io
import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.registry import known_implementations

from pipeline.download.fetch import fetch
from pipeline.download.mirror import Limits, MirrorError
from pipeline.download.part import Part
from pipeline.download.remote import copy
from pipeline.errors import DownloadError
from pipeline.storage import Folder
from tests.faulty_server import FaultyServer
from tests.s3_server import s3_server

BODY = os.urandom(3 * 2**20 + 17)
QUICK = Limits(tries=3, backoff_s=0.01)
URL = "memory://bucket/a.tar"


@pytest.fixture(autouse=True)
def store() -> Iterator[MemoryFileSystem]:
    """A store that holds a.tar."""
    store = fsspec.filesystem("memory")
    store.pipe("/bucket/a.tar", BODY)
    yield store
    store.rm("/", recursive=True)


@pytest.fixture
def part(tmp_path: Path) -> Part:
    return Part(tmp_path / "a.tar.part", "somewhere", "a.tar")


def bring(folder: Path, *urls: str, **changes: Any) -> bytes:
    checksum = f"md5:{hashlib.md5(BODY).hexdigest()}"
    return fetch(urls, folder / "a.tar", checksum=checksum, limits=replace(QUICK, **changes)).read_bytes()


def refused(folder: Path, *urls: str, **options: Any) -> str:
    with pytest.raises(DownloadError) as caught:
        bring(folder, *urls, **options)
    assert not (folder / "a.tar").exists()
    return str(caught.value)


def break_off(store: MemoryFileSystem, monkeypatch: pytest.MonkeyPatch, num_times: int) -> list[int]:
    """Lose the connection after one chunk of the first readings; return the list of where each reading began."""
    began: list[int] = []

    class Breaking(io.BytesIO):
        def seek(self, position: int, *_: int) -> int:
            began.append(position)
            return super().seek(position)

        def read(self, size: int | None = -1) -> bytes:
            if len(began) <= num_times and self.tell() > began[-1]:
                raise ConnectionResetError("reset by peer")
            return super().read(size)

    monkeypatch.setattr(type(store), "open", lambda *_: Breaking(BODY))
    return began


def test_a_file_of_a_store_is_copied_and_verified(tmp_path):
    assert bring(tmp_path, URL) == BODY
    assert not list(tmp_path.glob("*.part"))


def test_a_reading_that_breaks_off_goes_on_where_it_was(tmp_path, store, monkeypatch):
    began = break_off(store, monkeypatch, 2)
    assert bring(tmp_path, URL) == BODY
    assert began == [0, 2**20, 2 * 2**20]


def test_a_later_run_goes_on_where_the_earlier_one_ended(tmp_path, store, monkeypatch):
    began = break_off(store, monkeypatch, 1)
    monkeypatch.setattr(
        "pipeline.download.fetch.time.sleep", lambda _: (_ for _ in ()).throw(KeyboardInterrupt)
    )
    with pytest.raises(KeyboardInterrupt):
        bring(tmp_path, URL)
    assert bring(tmp_path, URL) == BODY
    assert began == [0, 2**20]


def test_a_file_that_has_changed_since_is_read_from_its_beginning(store, part):
    part.begin(store.ukey("/bucket/a.tar"), len(BODY))
    part.path.write_bytes(b"of another version")
    time.sleep(0.01)
    store.pipe("/bucket/a.tar", BODY[::-1])
    assert copy(URL, part, 2**30) == 0
    assert part.path.read_bytes() == BODY[::-1]


def test_a_connection_that_never_holds_is_given_up(tmp_path, store, monkeypatch):
    monkeypatch.setattr(
        type(store), "open", lambda *_: (_ for _ in ()).throw(ConnectionResetError("reset by peer"))
    )
    assert "reset by peer; gave up after 3 tries" in refused(tmp_path, URL)


@pytest.mark.parametrize(
    ("url", "cause"),
    [
        ("memory://bucket/nothing.tar", "no such file"),
        ("memory://bucket", "directory"),
        ("nostore://bucket/a.tar", "nostore"),
        ("simplecache::memory://bucket/a.tar", "not a URL"),
        ("bucket/a.tar", "is not a URL"),
        ("file:///nowhere/a.tar", "no such file"),
    ],
)
def test_what_cannot_be_read_is_named_and_the_next_mirror_asked(tmp_path, url: str, cause: str):
    assert cause in refused(tmp_path, url)
    assert bring(tmp_path, url, URL) == BODY


def test_a_store_whose_package_is_not_installed_names_the_package(tmp_path, monkeypatch):
    monkeypatch.setitem(
        known_implementations,
        "s9",
        {"class": "s9fs.S9FileSystem", "err": "Install s9fs to access S9"},
    )
    assert "s9://bucket/a.tar: " in (message := refused(tmp_path, "s9://bucket/a.tar"))
    assert "Install s9fs to access S9" in message


def test_a_file_larger_than_expected_is_not_begun(tmp_path):
    message = refused(tmp_path, URL, max_bytes=1000)
    assert f"{len(BODY)} bytes, more than the 1000 " in message


def test_a_file_that_grows_beyond_the_maximum_is_cut_off(store, part, monkeypatch):
    info = store.info("/bucket/a.tar")
    monkeypatch.setattr(type(store), "info", lambda *_: info | {"size": None})
    with pytest.raises(MirrorError, match="more than the 1000 bytes"):
        copy(URL, part, 1000)
    assert part.size() == 0


def test_a_store_and_a_server_are_mirrors_of_each_other(tmp_path):
    with FaultyServer(BODY) as server:
        assert bring(tmp_path, "memory://bucket/nothing.tar", server.url) == BODY


def test_a_file_in_a_bucket_is_fetched_and_resumed_with_no_package_but_the_projects_own(tmp_path, part):
    with s3_server() as bucket:
        (tmp_path / "finished").write_bytes(BODY)
        Folder(f"{bucket}/archives").put(tmp_path / "finished", "a.tar")
        assert "no such file" in refused(tmp_path, f"{bucket}/archives/b.tar")
        assert bring(tmp_path, f"{bucket}/archives/a.tar") == BODY
        assert copy(f"{bucket}/archives/a.tar", part, 2**30) == 0
        with part.path.open("r+b") as file:
            file.truncate(2**20)
        assert copy(f"{bucket}/archives/a.tar", part, 2**30) == 2**20
        assert part.path.read_bytes() == BODY
