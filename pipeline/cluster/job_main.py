"""What a job runs on a cluster: python -m pipeline.cluster.job_main FOLDER [NET...].

The code that came with the job is put into FOLDER, on storage that all nodes share, beside the data, checkpoints and
results of earlier jobs; there `dvc repro` does what is left to do. So paths are the same on every node, and a job that
died goes on when it is submitted again.
"""

import configparser
import os
import shutil
import sys
from pathlib import Path

from pipeline import paths
from pipeline.errors import UserError, exit_cleanly

CODE = Path(__file__).parent.parent.parent
LISTING = paths.RUNS / "code.txt"  # the files that the last job brought
KEPT = "dvc.lock"  # says what the folder holds, not what the checkout held


def main() -> None:
    folder, nets = Path(sys.argv[1]), sys.argv[2:]
    if not folder.parent.is_dir():
        raise UserError(
            f"{folder.parent} is not there on the cluster; --folder must lie on storage all nodes share"
        )
    bring(CODE, folder)
    use_without_git(folder)
    # The stages' `python` is this one, whatever the node's PATH says
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    os.chdir(folder)
    targets = [f"{stage}@{net}" for net in nets for stage in ("train", "evaluate")]
    os.execve(sys.executable, [sys.executable, "-m", "dvc", "repro", *targets], os.environ | {"PATH": path})


def bring(code: Path, folder: Path) -> None:
    """Makes the folder's code that of `code`: replaces what differs, removes what earlier jobs brought and is gone."""
    names = {path.relative_to(code).as_posix() for path in code.rglob("*") if path.is_file()}
    names = {name for name in names if "__pycache__" not in name}
    listing = folder / LISTING
    listing.parent.mkdir(parents=True, exist_ok=True)
    earlier = set(listing.read_text("utf-8").splitlines()) if listing.exists() else set()
    listing.write_text(
        "\n".join(sorted(names | earlier)), "utf-8"
    )  # if this is stopped, the next one removes all
    for name in names:
        source, dest = code / name, folder / name
        if name == KEPT and dest.exists():
            continue
        if not dest.is_file() or dest.read_bytes() != source.read_bytes():
            dest.parent.mkdir(parents=True, exist_ok=True)
            partial = dest.with_name(f".{dest.name}.partial")
            shutil.copyfile(source, partial)
            partial.replace(dest)
    for name in earlier - names - {KEPT}:
        (folder / name).unlink(missing_ok=True)
    listing.write_text("\n".join(sorted(names)), "utf-8")


def use_without_git(folder: Path) -> None:
    """Lets DVC work in a folder that is no git checkout, keeping what else its local configuration says."""
    if (folder / ".git").exists():
        return
    path = folder / ".dvc" / "config.local"
    local = configparser.ConfigParser()
    local.read(path, "utf-8")
    local.read_dict({"core": {"no_scm": "true"}})
    with path.open("w", encoding="utf-8") as file:
        local.write(file)


if __name__ == "__main__":
    exit_cleanly(main)
