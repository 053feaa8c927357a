"""stages/download.py on archives in the published layout, from a real HTTP server on loopback, and on local folders."""

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
def archives(tmp_path: Path, drawn: Path) -> Path:
    """A folder with the drawn data set as VOC's tar and SBD's tgz."""
    folder = tmp_path / "archives"
    folder.mkdir()
    for top, name in (("VOCdevkit", "voc.tar"), ("benchmark_RELEASE", "sbd.tgz")):
        with tarfile.open(folder / name, "w:gz" if name.endswith("gz") else "w") as tar:
            tar.add(drawn / top, top)
    return folder


@pytest.fixture
def host(archives: Path) -> Iterator[str]:
    """The URL of a server that has the archives."""
    handler = functools.partial(QuietHandler, directory=archives)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture
def project(tmp_path: Path) -> Path:
    return tmp_path / "project"


def use(project: Path, source: dict[str, Any]) -> None:
    profile = sample_profile()
    profile["data"]["source"] = source
    write_profile(project, profile)


def download(project: Path, source: dict[str, Any]) -> subprocess.CompletedProcess[str]:
    use(project, source)
    return run_stage(project, "stages.download")


def source_of(host: str, archives: Path, **checksums: str) -> dict[str, Any]:
    """Return a profile's source: each archive with a mirror that lacks it and one that has it."""
    entries = {}
    for path in archives.iterdir():
        urls = [f"{host}/nowhere/{path.name}", f"{host}/{path.name}"]
        checksum = checksums.get(path.stem) or f"md5:{hashlib.md5(path.read_bytes()).hexdigest()}"
        entries[path.stem] = {"urls": urls, "checksum": checksum}
    return {"archives": entries}


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def raw(project: Path) -> Path:
    return project / "data" / NAME / "raw"


def test_archives_come_from_the_mirror_that_has_them_once_and_unpack_side_by_side(
    project, drawn, archives, host
):
    source = source_of(host, archives)
    done = download(project, source)
    assert done.returncode == 0, done.stderr
    assert content(raw(project)) == content(drawn)
    for path in archives.iterdir():
        path.unlink()
    assert download(project, source).returncode == 0
    assert content(raw(project)) == content(drawn)


def test_an_archive_whose_checksum_is_wrong_is_refused_and_nothing_is_unpacked(project, archives, host):
    done = download(project, source_of(host, archives, sbd="md5:" + "0" * 32))
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "0" * 32 in done.stderr
    assert not raw(project).exists()


def test_an_archive_exchanged_since_it_was_verified_is_refused(project, archives, host):
    source = source_of(host, archives)
    assert download(project, source).returncode == 0
    record = project / "downloads" / "voc.tar.verified.json"
    before = json.loads(record.read_text())
    record.write_text(json.dumps(before | {"sha256": "0" * 64}))
    done = download(project, source)
    assert done.returncode == 2
    assert before["sha256"] in done.stderr
    assert "0" * 64 in done.stderr


@pytest.mark.parametrize("kind", ["drawn", "archives"])
def test_a_local_folder_is_copied_or_its_archives_unpacked(project, drawn, request, kind):
    done = download(project, {"local": str(request.getfixturevalue(kind))})
    assert done.returncode == 0, done.stderr
    assert content(raw(project)) == content(drawn)


def test_two_stages_at_once_do_not_mix_their_files(project, drawn):
    """As when `dvc repro` is killed, its stage lives on, and `dvc repro` runs again."""
    use(project, {"local": str(drawn)})
    command = [sys.executable, "-m", "stages.download"]
    stages = [subprocess.Popen(command, cwd=project, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    errors = [stage.communicate(timeout=120)[1] for stage in stages]
    assert [stage.returncode for stage in stages] == [0, 0], errors
    assert content(raw(project)) == content(drawn)
    assert sorted(path.name for path in raw(project).parent.iterdir()) == [
        ".raw.json",
        ".raw.lock",
        "raw",
        "raw.json",
    ]


@pytest.mark.parametrize("key", ["local", "own"])
def test_a_source_among_the_results_is_refused_before_anything_is_removed(project, drawn, key):
    raw(project).parent.mkdir(parents=True)
    drawn.rename(raw(project))
    before = content(raw(project))
    done = download(project, {key: str(raw(project))})
    assert done.returncode == 2
    for fact in (f"data.source.{key}", str(raw(project)), f"data/{NAME}"):
        assert fact in done.stderr
    assert content(raw(project)) == before


def test_a_users_own_folder_with_other_classes_is_refused(project, tmp_path):
    mine = tmp_path / "mine"
    for name in ("images", "masks", "splits"):
        (mine / name).mkdir(parents=True)
    (mine / "classes.txt").write_text("background\ncat\n")
    done = download(project, {"own": str(mine)})
    assert done.returncode == 2
    assert "[background, cat]" in done.stderr
    assert "Traceback" not in done.stderr
