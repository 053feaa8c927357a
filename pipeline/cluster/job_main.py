"""The entry point of a job on a cluster: python -m pipeline.cluster.job_main FOLDER [NET...].

Copies the code that came with the job into FOLDER and runs `dvc repro` there. FOLDER lies on storage that all nodes
share and holds the data, checkpoints and results of earlier jobs. So paths are the same on every node, and a job that
died continues when it is submitted again.
"""

import os
import subprocess
import sys
from pathlib import Path

from pipeline import files, paths
from pipeline.errors import UserError
from pipeline.surroundings import run_command

CODE = Path(__file__).parents[2]
LISTING = paths.RUNS / "code.txt"  # names of the files that the last job copied
LOCK_FILE = "dvc.lock"  # describes the results in the folder, so the checkout's must not replace it


def main() -> None:
    folder, nets = Path(sys.argv[1]), sys.argv[2:]
    if not folder.parent.is_dir():
        raise UserError(
            f"{folder.parent} does not exist on the cluster; --folder must lie on storage that all nodes share"
        )
    copy_code(CODE, folder)
    if not (folder / ".git").exists():
        configure_without_git(folder)
    # Stages run `python`, which must be this one, whatever the node's PATH
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    os.chdir(folder)
    targets = [f"{stage}@{net}" for net in nets for stage in ("train", "evaluate")]
    os.execve(sys.executable, [sys.executable, "-m", "dvc", "repro", *targets], os.environ | {"PATH": path})


def copy_code(code: Path, folder: Path) -> None:
    """Copy changed files of `code` into the folder, and remove those that earlier jobs copied and `code` lacks."""
    names = {path.relative_to(code).as_posix() for path in code.rglob("*") if path.is_file()}
    names = {name for name in names if "__pycache__" not in name}
    listing = folder / LISTING
    earlier = set(listing.read_text("utf-8").splitlines()) if listing.exists() else set()
    # If this copy is interrupted, the next one can remove all of its files
    files.write_text(listing, "\n".join(sorted(names | earlier)))
    for name in names:
        source, dest = code / name, folder / name
        if name == LOCK_FILE and dest.exists():
            continue
        if not dest.is_file() or dest.read_bytes() != source.read_bytes():
            files.copy_file(source, dest)
    for name in earlier - names - {LOCK_FILE}:
        (folder / name).unlink(missing_ok=True)
    files.write_text(listing, "\n".join(sorted(names)))


def configure_without_git(folder: Path) -> None:
    """Let DVC work in a folder that is not a git checkout."""
    command = [sys.executable, "-m", "dvc", "config", "--quiet", "--local", "core.no_scm", "true"]
    subprocess.run(command, cwd=folder, check=True)


if __name__ == "__main__":
    run_command(main)
