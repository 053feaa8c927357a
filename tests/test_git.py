"""The commit that code comes from."""

import subprocess
from pathlib import Path

import pytest

from pipeline import git


@pytest.fixture
def checkout(tmp_path, monkeypatch) -> Path:
    monkeypatch.delenv(git.COMMIT, raising=False)
    for name in ("a", "dvc.lock"):
        (tmp_path / name).write_text("1")
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "one"]):
        subprocess.run(["git", "-C", str(tmp_path), *identity, *command], check=True)
    return tmp_path


def test_a_checkout_is_dirty_if_a_tracked_file_differs_other_than_dvc_lock(checkout):
    branch = (checkout / ".git" / "HEAD").read_text().split()[1]
    sha = (checkout / ".git" / branch).read_text().strip()
    assert git.find_commit(checkout) == (sha, False)
    (checkout / "dvc.lock").write_text("2")  # every stage writes it
    (checkout / "untracked").touch()
    assert git.find_commit(checkout) == (sha, False)
    (checkout / "a").write_text("2")
    assert git.find_commit(checkout) == (sha, True)


def test_outside_a_checkout_and_without_git_there_is_no_commit(checkout, tmp_path_factory, monkeypatch):
    assert git.find_commit(tmp_path_factory.mktemp("elsewhere")) is None
    monkeypatch.setenv("PATH", "")
    assert git.find_commit(checkout) is None


def test_a_job_has_the_commit_of_the_checkout_it_came_from(checkout, tmp_path_factory, monkeypatch):
    commit = git.find_commit(checkout)
    for name, value in commit.environment().items():
        monkeypatch.setenv(name, value)
    assert git.find_commit(tmp_path_factory.mktemp("elsewhere")) == commit
