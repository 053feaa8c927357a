"""pipeline/download/checksum.py: published checksums, and the sha256 recorded when a file was first verified."""

import hashlib
import json
from pathlib import Path

import pytest

from pipeline.download import fetch as fetch_module
from pipeline.download.checksum import Checksum, digests
from pipeline.download.fetch import fetch
from pipeline.errors import DownloadError
from tests.faulty_server import FaultyServer, redirect, serve, status

BODY = b"an archive" * 1000
MD5 = hashlib.md5(BODY).hexdigest()
OLDER = b"last year's archive"
SHA256 = hashlib.sha256(BODY).hexdigest()


def bring(folder: Path, *urls: str, checksum: str = f"md5:{MD5}") -> Path:
    return fetch(urls, folder / "a.tar", checksum=checksum)


def record(folder: Path) -> dict[str, object]:
    return json.loads((folder / "a.tar.verified.json").read_text())


def forge(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on, other bytes have the same md5: what a forger would have made."""
    monkeypatch.setattr(fetch_module, "digests", lambda path: digests(path) | {"md5": MD5})


def test_both_digests_of_a_file_are_those_of_hashlib(tmp_path):
    (tmp_path / "file").write_bytes(BODY)
    assert digests(tmp_path / "file") == {"md5": MD5, "sha256": SHA256}


@pytest.mark.parametrize(
    ("text", "fits"),
    [
        (f"md5:{MD5}", True),
        (f"sha256:{SHA256}", True),
        (f"sha256:{SHA256[:8]}", True),
        ("md5:" + "0" * 32, False),
        (f"sha256:{SHA256[:63]}" + ("0" if SHA256[63] != "0" else "1"), False),
    ],
)
def test_a_file_fits_the_checksum_or_its_first_digits(tmp_path, text: str, fits: bool):
    (tmp_path / "file").write_bytes(BODY)
    assert Checksum.parse(text).fits(digests(tmp_path / "file")) is fits


def test_the_first_verified_copy_leaves_its_sha256_size_and_source_without_secrets(tmp_path):
    with FaultyServer(BODY) as server:
        bring(tmp_path, f"{server.url}?token=hunter2")
        assert record(tmp_path) == {
            "checksum": f"md5 {MD5}",
            "sha256": SHA256,
            "bytes": len(BODY),
            "source": server.url,
        }


def test_a_file_placed_by_hand_is_recorded_as_such(tmp_path):
    (tmp_path / "a.tar").write_bytes(BODY)
    bring(tmp_path)
    assert (record(tmp_path)["sha256"], record(tmp_path)["source"]) == (SHA256, None)


def test_a_copy_that_comes_later_keeps_the_first_record(tmp_path):
    with FaultyServer(BODY) as server, FaultyServer(BODY) as mirror:
        bring(tmp_path, server.url)
        (tmp_path / "a.tar").unlink()
        bring(tmp_path, mirror.url)
        assert record(tmp_path)["source"] == server.url


def test_a_file_exchanged_for_one_of_the_same_md5_is_refused_with_both_sha256(tmp_path, monkeypatch):
    (tmp_path / "a.tar").write_bytes(BODY)
    bring(tmp_path)
    forge(monkeypatch)
    (tmp_path / "a.tar").write_bytes(b"forged")
    with pytest.raises(DownloadError) as caught:
        bring(tmp_path)
    for fact in (MD5, hashlib.sha256(b"forged").hexdigest(), SHA256, "remove", "a.tar.verified.json"):
        assert fact in str(caught.value)
    assert (tmp_path / "a.tar").read_bytes() == b"forged"


def test_a_mirror_with_another_file_of_the_same_md5_gives_way_to_the_next(tmp_path, monkeypatch):
    (tmp_path / "a.tar").write_bytes(BODY)
    bring(tmp_path)
    (tmp_path / "a.tar").unlink()
    forge(monkeypatch)
    with FaultyServer(b"forged") as forger, FaultyServer(BODY) as honest:
        with pytest.raises(DownloadError, match=SHA256):
            bring(tmp_path, forger.url)
        assert not (tmp_path / "a.tar").exists()
        assert bring(tmp_path, forger.url, honest.url).read_bytes() == BODY


def test_a_new_published_checksum_means_a_new_record(tmp_path):
    (tmp_path / "a.tar").write_bytes(OLDER)
    bring(tmp_path, checksum=f"md5:{hashlib.md5(OLDER).hexdigest()}")
    with FaultyServer(BODY) as server:
        bring(tmp_path, server.url)
    assert record(tmp_path)["sha256"] == SHA256


@pytest.mark.parametrize("content", ["", "[1, ", "[]", "{}", '{"sha256": "0"}'])
def test_a_damaged_record_is_named_with_the_remedy(tmp_path, content: str):
    (tmp_path / "a.tar").write_bytes(BODY)
    (tmp_path / "a.tar.verified.json").write_text(content)
    with pytest.raises(DownloadError, match=r"a\.tar\.verified\.json is damaged; remove it"):
        bring(tmp_path)


def test_nothing_is_recorded_of_a_file_that_did_not_verify(tmp_path):
    with FaultyServer(b"wrong") as server:
        server.script = [redirect("/other"), serve(), status(404)]
        with pytest.raises(DownloadError):
            bring(tmp_path, server.url)
    assert list(tmp_path.glob("*.verified.json")) == []
