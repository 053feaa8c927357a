"""The folder on shared storage that a job works in."""

import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path

import pytest

from pipeline import files
from pipeline.cluster.job_main import configure_without_git, copy_code
from tests.conftest import ROOT


@pytest.fixture
def code(tmp_path) -> Path:
    code = tmp_path / "code"
    for name in ("fcn/__pycache__/model.pyc", "fcn/model.py", "fcn/old.py", "params.yaml", "dvc.lock"):
        (code / name).parent.mkdir(parents=True, exist_ok=True)
        (code / name).write_text("first")
    return code


@pytest.fixture
def folder(tmp_path, code) -> Path:
    folder = tmp_path / "shared" / "fcn"
    folder.parent.mkdir()
    copy_code(code, folder)
    return folder


def names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_the_first_job_brings_the_code_and_nothing_compiled(folder):
    assert names(folder) == {"fcn/model.py", "fcn/old.py", "params.yaml", "dvc.lock", "runs/code.txt"}


def test_the_next_job_replaces_what_changed_and_removes_what_is_gone_and_keeps_results(code, folder):
    (folder / "models").mkdir()
    (folder / "models" / "fcn8s.pt").write_text("a result")
    unchanged = (folder / "params.yaml").stat()
    (code / "fcn" / "model.py").write_text("second")
    (code / "fcn" / "old.py").unlink()
    copy_code(code, folder)
    assert (folder / "fcn" / "model.py").read_text() == "second"
    assert not (folder / "fcn" / "old.py").exists()  # it would count in the run's identity
    assert (folder / "models" / "fcn8s.pt").read_text() == "a result"
    assert (folder / "params.yaml").stat() == unchanged


def test_the_folders_dvc_lock_outlives_the_checkouts(code, folder):
    (folder / "dvc.lock").write_text("of the folder")
    (code / "dvc.lock").write_text("changed")
    copy_code(code, folder)
    (code / "dvc.lock").unlink()
    copy_code(code, folder)
    assert (folder / "dvc.lock").read_text() == "of the folder"


def test_what_a_killed_job_brought_is_removed_by_the_next(code, folder, monkeypatch):
    (code / "fcn" / "brief.py").write_text("for one job")
    (code / "fcn" / "model.py").write_text("second")
    copy_file = files.copy_file

    def killed(source: Path, dest: Path):
        copy_file(source, dest)
        if (folder / "fcn" / "brief.py").exists():
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(files, "copy_file", killed)
        with pytest.raises(KeyboardInterrupt):
            copy_code(code, folder)
    (code / "fcn" / "brief.py").unlink()
    copy_code(code, folder)
    assert names(folder) == names(code) - {"fcn/__pycache__/model.pyc"} | {"runs/code.txt"}


def test_dvc_works_without_git_and_keeps_the_folders_own_settings(folder):
    (folder / ".dvc").mkdir()
    (folder / ".dvc" / "config").touch()
    (folder / ".dvc" / "config.local").write_text("['remote \"store\"']\n    url = s3://bucket\n")
    configure_without_git(folder)
    local = ConfigParser()
    local.read(folder / ".dvc" / "config.local")
    assert local["core"]["no_scm"] == "true"
    assert local["'remote \"store\"'"]["url"] == "s3://bucket"


def test_a_folder_that_is_not_on_the_cluster_is_refused(tmp_path):
    command = [sys.executable, "-m", "pipeline.cluster.job_main", str(tmp_path / "nowhere" / "fcn")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {tmp_path / 'nowhere'} ")
    assert len(done.stderr.splitlines()) == 1
