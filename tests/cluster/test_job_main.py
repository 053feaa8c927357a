"""The folder on shared storage that a job works in."""

import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path

import pytest

from pipeline.cluster.job_main import bring, use_without_git
from tests.conftest import ROOT


@pytest.fixture
def code(tmp_path) -> Path:
    code = tmp_path / "code"
    (code / "fcn" / "__pycache__").mkdir(parents=True)
    (code / "fcn" / "__pycache__" / "model.pyc").write_text("compiled")
    (code / "fcn" / "model.py").write_text("one")
    (code / "fcn" / "old.py").write_text("old")
    (code / "params.yaml").write_text("profile: sample\n")
    (code / "dvc.lock").write_text("of the checkout")
    return code


@pytest.fixture
def folder(tmp_path, code) -> Path:
    folder = tmp_path / "shared" / "fcn"
    folder.parent.mkdir()
    bring(code, folder)
    return folder


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_the_first_job_brings_the_code_and_nothing_compiled(folder):
    assert files(folder) == {"fcn/model.py", "fcn/old.py", "params.yaml", "dvc.lock", "runs/code.txt"}


def test_the_next_job_replaces_what_changed_and_removes_what_is_gone(code, folder):
    (folder / "models").mkdir()
    (folder / "models" / "fcn8s.pt").write_text("a result")
    unchanged = (folder / "params.yaml").stat()
    (code / "fcn" / "model.py").write_text("two")
    (code / "fcn" / "old.py").unlink()
    bring(code, folder)
    assert (folder / "fcn" / "model.py").read_text() == "two"
    assert not (folder / "fcn" / "old.py").exists()  # it would count in the run's identity
    assert (folder / "models" / "fcn8s.pt").read_text() == "a result"
    assert (folder / "params.yaml").stat() == unchanged


def test_the_folders_record_of_what_was_done_outlives_the_checkouts(code, folder):
    (folder / "dvc.lock").write_text("of the folder")
    (code / "dvc.lock").write_text("changed")
    bring(code, folder)
    assert (folder / "dvc.lock").read_text() == "of the folder"
    (code / "dvc.lock").unlink()
    bring(code, folder)
    assert (folder / "dvc.lock").read_text() == "of the folder"


def test_what_a_stopped_job_brought_is_removed_by_the_next(code, folder, monkeypatch):
    (code / "fcn" / "brief.py").write_text("for one job")

    def stopped(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", stopped)
        with pytest.raises(KeyboardInterrupt):
            bring(code, folder)
    (folder / "fcn" / "brief.py").write_text("for one job")
    (code / "fcn" / "brief.py").unlink()
    bring(code, folder)
    assert not (folder / "fcn" / "brief.py").exists()


def test_dvc_works_without_git_and_keeps_the_folders_own_settings(folder):
    (folder / ".dvc").mkdir()
    (folder / ".dvc" / "config.local").write_text("['remote \"store\"']\n    secret = 1\n")
    use_without_git(folder)
    local = ConfigParser()
    local.read(folder / ".dvc" / "config.local")
    assert local["core"]["no_scm"] == "true"
    assert local["'remote \"store\"'"]["secret"] == "1"


def test_a_git_checkout_is_left_as_it_is(folder):
    (folder / ".dvc").mkdir()
    (folder / ".git").mkdir()
    use_without_git(folder)
    assert not (folder / ".dvc" / "config.local").exists()


def test_a_folder_that_is_nowhere_on_the_cluster_ends_in_one_sentence(tmp_path):
    command = [sys.executable, "-m", "pipeline.cluster.job_main", str(tmp_path / "nowhere" / "fcn")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == (
        f"error: {tmp_path / 'nowhere'} is not there on the cluster; "
        "--folder must lie on storage all nodes share\n"
    )
