"""The commit that code is from, where it is a git checkout, or was copied from one to run on a cluster."""

import os
import subprocess
from pathlib import Path
from typing import NamedTuple

COMMIT, DIRTY = (
    "FCN_GIT_COMMIT",
    "FCN_GIT_DIRTY",
)  # in the environment of a job, which runs outside any checkout


class Commit(NamedTuple):
    """is_dirty: files differ from it, dvc.lock aside, which every stage that ends writes to."""

    commit: str
    is_dirty: bool

    def environment(self) -> dict[str, str]:
        """What tells `of` about it elsewhere."""
        return {COMMIT: self.commit, DIRTY: str(self.is_dirty).lower()}


def of(root: Path) -> Commit | None:
    """The commit of the code in a folder; None outside a git checkout."""
    if told := os.environ.get(COMMIT):
        return Commit(told, os.environ.get(DIRTY) == "true")

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    try:
        changes = git("status", "--porcelain", "--untracked-files=no", "--", ":/", ":(exclude,top)dvc.lock")
        return Commit(git("rev-parse", "HEAD"), bool(changes))
    except (OSError, subprocess.CalledProcessError):
        return None
