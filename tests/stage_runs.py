"""One stage, run as DVC runs it, in a folder that holds nothing but a profile."""

import subprocess
import sys
from pathlib import Path
from typing import Any

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


def run_stage(root: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """What becomes of `python -m stages.<...>` there."""
    return subprocess.run(
        [sys.executable, "-m", *command], cwd=root, capture_output=True, text=True, timeout=120, check=False
    )
