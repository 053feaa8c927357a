"""The download stage on archives in the published layout, from a real HTTP server on loopback."""

import functools
import hashlib
import http.server
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.datasets import sample
from tests.conftest import ROOT
from tests.project_copy import yaml


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def drawn(tmp_path: Path) -> Path:
    """A drawn data set, which has the archives' layout."""
    sample.draw(tmp_path / "drawn", num_train=2, num_val=2, image_size=48, seed=1)
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


def run_stage(root: Path, host: str, checksums: dict[str, str]) -> subprocess.CompletedProcess[str]:
    profile = yaml.load((ROOT / "profiles" / "sample.yaml").read_text("utf-8"))
    profile["data"]["source"] = {
        "archives": {
            name.partition(".")[0]: {
                "urls": [f"{host}/nowhere/{name}", f"{host}/{name}"],
                "checksum": checksum,
            }
            for name, checksum in checksums.items()
        }
    }
    (root / "profiles").mkdir(parents=True, exist_ok=True)
    (root / "params.yaml").write_text("profile: served\n")
    with (root / "profiles" / "served.yaml").open("w") as file:
        yaml.dump(profile, file)
    command = [sys.executable, "-m", "stages.download"]
    return subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=120, check=False)


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def checksums(tmp_path: Path) -> dict[str, str]:
    digests = {
        path.name: hashlib.md5(path.read_bytes()).hexdigest() for path in (tmp_path / "served").iterdir()
    }
    return {name: f"md5:{digest}" for name, digest in digests.items()}


def test_archives_come_from_the_mirror_that_has_them_and_unpack_side_by_side(tmp_path, drawn, host):
    done = run_stage(tmp_path / "project", host, checksums(tmp_path))
    assert done.returncode == 0, done.stderr
    assert content(tmp_path / "project" / "data" / "served" / "raw") == content(drawn)


def test_an_archive_whose_checksum_is_wrong_is_refused_and_nothing_is_unpacked(tmp_path, host):
    wrong = checksums(tmp_path) | {"sbd.tgz": "md5:" + "0" * 32}
    done = run_stage(tmp_path / "project", host, wrong)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "0" * 32 in done.stderr
    assert not (tmp_path / "project" / "data" / "served" / "raw").exists()


def test_verified_archives_are_not_fetched_again(tmp_path, drawn, host):
    given = checksums(tmp_path)
    assert run_stage(tmp_path / "project", host, given).returncode == 0
    for path in (tmp_path / "served").iterdir():
        path.unlink()
    assert run_stage(tmp_path / "project", host, given).returncode == 0
    assert content(tmp_path / "project" / "data" / "served" / "raw") == content(drawn)
