"""The commit that code comes from: of the git checkout it is in, or was copied from to run on a cluster."""

import os
import subprocess
from pathlib import Path
from typing import NamedTuple

# Environment variables of a cluster's job, which runs outside any checkout
COMMIT, DIRTY = "FCN_GIT_COMMIT", "FCN_GIT_DIRTY"


class Commit(NamedTuple):
    """A git commit.

    sha: 40 hex digits.
    is_dirty: whether tracked files differ from it. dvc.lock does not count, because every stage changes it.
    """

    sha: str
    is_dirty: bool

    def tags(self) -> dict[str, str]:
        return {"git_commit": self.sha, "git_dirty": str(self.is_dirty).lower()}

    def environment(self) -> dict[str, str]:
        """Return environment variables for a process that runs the same code outside the checkout."""
        return {COMMIT: self.sha, DIRTY: str(self.is_dirty).lower()}


def find_commit(root: Path) -> Commit | None:
    """Return the commit of the code in `root`, or None outside a git checkout."""
    if sha := os.environ.get(COMMIT):
        return Commit(sha, os.environ.get(DIRTY) == "true")
    try:
        changes = _git(
            root, "status", "--porcelain", "--untracked-files=no", "--", ":/", ":(exclude,top)dvc.lock"
        )
        return Commit(_git(root, "rev-parse", "HEAD"), bool(changes))
    except (OSError, subprocess.CalledProcessError):
        return None


def read_committed(root: Path, name: Path) -> str | None:
    """Return the text of a file in `root` as the checkout's commit has it; None if there is none."""
    try:
        return _git(root, "show", f"HEAD:./{name.as_posix()}")
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(root: Path, *arguments: str) -> str:
    command = ["git", "-C", str(root), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
