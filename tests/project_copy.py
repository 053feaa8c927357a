"""A copy of the project in a folder of its own, where a test may run `dvc repro` on a profile it wrote."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from tests.conftest import ROOT

yaml = YAML(typ="safe", pure=True)


class Project:
    """The files git tracks or would track, under a git repository of their own, without results."""

    def __init__(self, folder: Path):
        self.folder = folder
        listed = subprocess.run(
            ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
        for name in listed.stdout.split():
            if (ROOT / name).is_file() and not name.startswith("tests/") and name != "dvc.lock":
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(ROOT / name, folder / name)
        self.run("git", "init", "-q")
        self.run("git", "add", "-A")
        self.run("git", "-c", "user.name=t", "-c", "user.email=t@example.org", "commit", "-qm", "copy")

    def use_profile(self, name: str, values: dict[str, Any]) -> None:
        with (self.folder / "profiles" / f"{name}.yaml").open("w", encoding="utf-8") as file:
            yaml.dump(values, file)
        (self.folder / "params.yaml").write_text(f"profile: {name}\n", encoding="utf-8")

    def profile(self, name: str) -> dict[str, Any]:
        return yaml.load((self.folder / "profiles" / f"{name}.yaml").read_text("utf-8"))

    def json(self, path: str) -> Any:
        return json.loads((self.folder / path).read_text("utf-8"))

    def run(self, *command: str, fails: bool = False, **environment: str) -> str:
        """Both outputs of a command in the project's folder, which must succeed, or must fail."""
        here = str(Path(sys.executable).parent)
        inherited = {k: v for k, v in os.environ.items() if k not in ("RAY_ADDRESS", "MLFLOW_TRACKING_URI")}
        done = subprocess.run(
            command,
            cwd=self.folder,
            env=inherited | {"PATH": f"{here}{os.pathsep}{os.environ['PATH']}"} | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert (done.returncode != 0) == fails, done.stdout[-6000:]
        return done.stdout

    def will_run(self) -> list[str]:
        """The stages `dvc repro` would run now, in order, without `source`, which always runs."""
        output = self.run("dvc", "repro", "--dry")
        return stages_run(output)


def stages_run(log: str) -> list[str]:
    """The stages that a log of DVC names as run, in order, without `source`, which always runs."""
    stages = [line.split("'")[1] for line in log.splitlines() if line.startswith("Running stage")]
    return [stage for stage in stages if stage != "source"]
