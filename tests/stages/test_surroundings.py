"""A net is trained, with real Ray and MLflow, wherever a project lies and in whatever environment."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow import MlflowClient

from pipeline.surroundings import plain
from tests.project_copy import Project
from tests.stages.test_chain import tiny

LONG = "a" * 60
PROXY = "http://127.0.0.1:9"  # where nothing answers


def checkout(folder: Path) -> Project:
    """A copy of the project with an environment in it, whose packages are those of this one."""
    folder.mkdir(parents=True)
    project = Project(folder)
    project.use_profile("tiny", tiny(project.profile("sample")))
    project.run(sys.executable, "-m", "venv", "--without-pip", ".venv")
    packages = Path("lib", f"python{sys.version_info[0]}.{sys.version_info[1]}", "site-packages")
    (folder / ".venv" / packages).rmdir()
    (folder / ".venv" / packages).symlink_to(Path(sys.prefix) / packages)
    return project


def train(project: Project, *prefix: str, **environment: str) -> None:
    """Run the stages up to the first net, each by the project's own environment."""
    for stage in ("source", "download", "shard", "inspect", "backbone", "train fcn32s"):
        command = [".venv/bin/python", "-m", *f"stages.{stage}".split()]
        project.run(*prefix, *command, **environment)
    assert (project.folder / "models/tiny/fcn32s.pt").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["my proj", 'we?ird #1 100% é"x y\\$HOME', "it's"])
def test_in_a_path_with_any_characters_and_a_long_tmpdir_past_a_proxy_without_locale(tmp_path, name):
    project = checkout(tmp_path / name)
    (tmp_path / LONG).mkdir()
    proxies = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), PROXY)
    train(project, TMPDIR=str(tmp_path / LONG), LC_ALL="C", TZ="Asia/Kathmandu", **proxies)
    assert (project.folder / "mlflow.db").exists()
    client = MlflowClient(f"sqlite:///{plain(project.folder)}/mlflow.db")
    experiment = client.get_experiment_by_name("fcn-tiny")
    (run,) = client.search_runs([experiment.experiment_id], "attributes.run_name = 'fcn32s'")
    assert [point.step for point in client.get_metric_history(run.info.run_id, "loss")] == [1, 2, 3, 4]


@pytest.mark.slow
def test_with_one_core_256_open_files_and_a_network_of_loopback_alone(tmp_path):
    if os.getuid() or subprocess.run(["unshare", "-n", "true"], check=False).returncode:
        pytest.skip("needs root and network namespaces")
    script = 'ip link set lo up && ulimit -n 256 && exec taskset -c 0 "$@"'
    train(checkout(tmp_path / "project"), "unshare", "-n", "sh", "-c", script, "sh")


@pytest.mark.slow
def test_two_projects_side_by_side(tmp_path):
    projects = [checkout(tmp_path / name) for name in ("first", "second")]
    stages = ("source", "download", "shard", "inspect", "backbone", "train fcn32s")
    script = " && ".join(f".venv/bin/python -m stages.{stage}" for stage in stages)
    running = [
        subprocess.Popen(["sh", "-c", f"cd {shlex.quote(str(project.folder))} && {script}"])
        for project in projects
    ]
    assert [process.wait() for process in running] == [0, 0]
    models = [(project.folder / "models/tiny/fcn32s.pt").read_bytes() for project in projects]
    assert models[0]
    assert models[1]


def test_an_archive_of_the_code_without_git_works_after_make_setup(tmp_path):
    project = checkout(tmp_path / "archive")
    subprocess.run(["rm", "-rf", ".git"], cwd=project.folder, check=True)
    (project.folder / ".venv" / "bin" / "uv").touch()
    (project.folder / ".venv" / "synced").write_text(f"{project.folder.resolve()}\n")
    project.run("make", "setup")
    project.run("dvc", "repro", "source")
    project.run("git", "init", "-q")
    project.run("make", "setup")
    assert "no_scm" not in (project.folder / ".dvc" / "config.local").read_text()
