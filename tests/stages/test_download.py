"""The download stage on archives in the published layout, from a real HTTP server on loopback."""

import functools
import hashlib
import http.server
import json
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.datasets import synthetic
from tests.stage_runs import NAME, run_stage, sample_profile, write_profile


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def drawn(tmp_path: Path) -> Path:
    """A drawn data set, which has the archives' layout."""
    synthetic.draw(tmp_path / "drawn", num_train=2, num_val=2, image_size=48, seed=1)
    return tmp_path / "drawn"


@pytest.fixture
def host(tmp_path: Path, drawn: Path) -> Iterator[str]:
    """The URL of a server that has the drawn data set as VOC's tar and SBD's tgz."""
    served = tmp_path / "served"
    served.mkdir()
    for top, name in (("VOCdevkit", "voc.tar"), ("benchmark_RELEASE", "sbd.tgz")):
        with tarfile.open(served / name, "w:gz" if name.endswith("gz") else "w") as tar:
            tar.add(drawn / top, top)
    handler = functools.partial(QuietHandler, directory=served)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def download(root: Path, source: dict[str, Any]) -> subprocess.CompletedProcess[str]:
    profile = sample_profile()
    profile["data"]["source"] = source
    write_profile(root, profile)
    return run_stage(root, "stages.download")


def from_host(root: Path, host: str, checksums: dict[str, str]) -> subprocess.CompletedProcess[str]:
    source = {
        "archives": {
            name.partition(".")[0]: {
                "urls": [f"{host}/nowhere/{name}", f"{host}/{name}"],
                "checksum": checksum,
            }
            for name, checksum in checksums.items()
        }
    }
    return download(root, source)


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def checksums(tmp_path: Path) -> dict[str, str]:
    digests = {
        path.name: hashlib.md5(path.read_bytes()).hexdigest() for path in (tmp_path / "served").iterdir()
    }
    return {name: f"md5:{digest}" for name, digest in digests.items()}


def test_archives_come_from_the_mirror_that_has_them_and_unpack_side_by_side(tmp_path, drawn, host):
    done = from_host(tmp_path / "project", host, checksums(tmp_path))
    assert done.returncode == 0, done.stderr
    assert content(tmp_path / "project" / "data" / NAME / "raw") == content(drawn)


def test_an_archive_whose_checksum_is_wrong_is_refused_and_nothing_is_unpacked(tmp_path, host):
    wrong = checksums(tmp_path) | {"sbd.tgz": "md5:" + "0" * 32}
    done = from_host(tmp_path / "project", host, wrong)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "0" * 32 in done.stderr
    assert not (tmp_path / "project" / "data" / NAME / "raw").exists()


def test_verified_archives_are_not_fetched_again(tmp_path, drawn, host):
    given = checksums(tmp_path)
    assert from_host(tmp_path / "project", host, given).returncode == 0
    for path in (tmp_path / "served").iterdir():
        path.unlink()
    assert from_host(tmp_path / "project", host, given).returncode == 0
    assert content(tmp_path / "project" / "data" / NAME / "raw") == content(drawn)


def test_a_local_folder_is_copied(tmp_path, drawn):
    done = download(tmp_path / "project", {"local": str(drawn)})
    assert done.returncode == 0, done.stderr
    assert content(tmp_path / "project" / "data" / NAME / "raw") == content(drawn)


def test_local_archives_are_unpacked_with_a_word_on_their_checksum(tmp_path, drawn, host):
    assert host
    done = download(tmp_path / "project", {"local": str(tmp_path / "served")})
    assert done.returncode == 0, done.stderr
    assert content(tmp_path / "project" / "data" / NAME / "raw") == content(drawn)
    assert done.stdout.count("no checksum is published for that name; sha256 ") == 2


def test_two_stages_at_once_do_not_mix_their_files(tmp_path, drawn):
    """As when `dvc repro` is killed, its stage lives on, and `dvc repro` runs again."""
    project = tmp_path / "project"
    profile = sample_profile()
    profile["data"]["source"] = {"local": str(drawn)}
    write_profile(project, profile)
    command = [sys.executable, "-m", "stages.download"]
    both = [subprocess.Popen(command, cwd=project, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    complaints = [one.communicate(timeout=120)[1] for one in both]
    assert [one.returncode for one in both] == [0, 0], complaints
    assert content(project / "data" / NAME / "raw") == content(drawn)
    assert sorted(path.name for path in (project / "data" / NAME).iterdir()) == [".raw.lock", "raw"]


@pytest.mark.parametrize("key", ["local", "own"])
def test_a_source_among_the_results_is_refused_before_anything_is_removed(tmp_path, drawn, key):
    raw = tmp_path / "project" / "data" / NAME / "raw"
    raw.parent.mkdir(parents=True)
    drawn.rename(raw)
    before = content(raw)
    done = download(tmp_path / "project", {key: str(raw)})
    assert done.returncode == 2
    assert f"error: data.source.{key}: {raw} lies in data/{NAME}, whose content is removed" in done.stderr
    assert content(raw) == before


def test_a_folder_of_ones_own_whose_classes_are_others_is_refused(tmp_path):
    mine = tmp_path / "mine"
    for name in ("images", "masks", "splits"):
        (mine / name).mkdir(parents=True)
    (mine / "classes.txt").write_text("background\ncat\n")
    done = download(tmp_path / "project", {"own": str(mine)})
    assert done.returncode == 2
    assert "classes.txt names 2 classes, [background, cat], and the profile's data.classes 5" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_archive_exchanged_since_it_was_verified_is_refused(tmp_path, host):
    project, given = tmp_path / "project", checksums(tmp_path)
    assert from_host(project, host, given).returncode == 0
    record = project / "downloads" / "voc.tar.verified.json"
    before = json.loads(record.read_text())
    record.write_text(json.dumps(before | {"sha256": "0" * 64}))
    done = from_host(project, host, given)
    assert done.returncode == 2
    assert before["sha256"] in done.stderr
    assert "0" * 64 in done.stderr
