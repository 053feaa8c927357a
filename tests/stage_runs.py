"""One stage, run as DVC runs it, in a folder that holds nothing but a profile."""

import subprocess
from contextlib import chdir, redirect_stderr, redirect_stdout
from importlib import import_module
from io import StringIO
from pathlib import Path
from typing import Any
from unittest.mock import patch

from pipeline.surroundings import run_command
from tests.conftest import ROOT
from tests.project_copy import yaml

NAME = "small"


def sample_profile() -> dict[str, Any]:
    """The committed sample profile, to be changed."""
    return yaml.load((ROOT / "profiles" / "sample.yaml").read_text("utf-8"))


def write_profile(root: Path, values: dict[str, Any]) -> None:
    """Makes it the profile of the project in `root`, under NAME."""
    (root / "profiles").mkdir(parents=True, exist_ok=True)
    (root / "params.yaml").write_text(f"profile: {NAME}\n", encoding="utf-8")
    with (root / "profiles" / f"{NAME}.yaml").open("w", encoding="utf-8") as file:
        yaml.dump(values, file)


def edit_profile(root: Path, *keys: str, value: object) -> None:
    """Set one value, found by its keys, in the profile of the project in `root`."""
    profile = section = yaml.load((root / "profiles" / f"{NAME}.yaml").read_text("utf-8"))
    for key in keys[:-1]:
        section = section[key]
    section[keys[-1]] = value
    write_profile(root, profile)


def run_stage(root: Path, module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """What becomes of `python -m stages.<...>` there, run in this process, because a new one imports for seconds."""
    code, out, err = 0, StringIO(), StringIO()
    with chdir(root), redirect_stdout(out), redirect_stderr(err), patch("sys.argv", [module, *arguments]):
        try:
            run_command(import_module(module).main)
        except SystemExit as end:
            code = end.code
    return subprocess.CompletedProcess([module, *arguments], code, out.getvalue(), err.getvalue())
