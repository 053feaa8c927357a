"""Which commit the code is from."""

import subprocess

import pytest

from pipeline import git


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    monkeypatch.delenv(git.COMMIT, raising=False)
    for name in ("a", "dvc.lock"):
        (tmp_path / name).write_text("1")
    git_command = ["git", "-C", str(tmp_path), "-c", "user.name=t", "-c", "user.email=t@example.org"]
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "one"]):
        subprocess.run([*git_command, *command], check=True)
    return tmp_path


def test_a_checkout_says_its_commit_and_whether_files_differ(checkout):
    head = (checkout / ".git" / "HEAD").read_text().split()[1]
    expected = (checkout / ".git" / head).read_text().strip()
    assert git.find_commit(checkout) == (expected, False)
    (checkout / "a").write_text("2")
    assert git.find_commit(checkout) == (expected, True)


def test_a_lock_file_that_the_run_itself_writes_is_no_difference(checkout):
    (checkout / "dvc.lock").write_text("2")
    assert not git.find_commit(checkout).is_dirty


def test_a_job_is_told_the_commit_of_the_checkout_it_came_from(checkout, tmp_path_factory, monkeypatch):
    (checkout / "a").write_text("2")
    found = git.find_commit(checkout)
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    assert git.find_commit(elsewhere) is None
    for name, value in found.environment().items():
        monkeypatch.setenv(name, value)
    assert git.find_commit(elsewhere) == found
