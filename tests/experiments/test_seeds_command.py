"""`fcn seeds` as a user runs it, with real Ray, DVC and MLflow: killed, and run again."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient

from tests.project_copy import Project
from tests.stages.test_chain import tiny

COMMAND = [sys.executable, "-m", "pipeline.cli.main", "seeds", "tiny", "--num", "2", "--net", "fcn16s"]


def start(project: Project) -> subprocess.Popen:
    inherited = {k: v for k, v in os.environ.items() if k not in ("RAY_ADDRESS", "MLFLOW_TRACKING_URI")}
    with (project.folder / "log").open("a") as log:
        return subprocess.Popen(
            COMMAND, cwd=project.folder, env=inherited, stdout=log, stderr=log, start_new_session=True
        )


def wait_for(path: Path, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 600
    while not path.exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.slow
@pytest.mark.parametrize("stop", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_a_stopped_command_goes_on_and_disturbs_nothing_of_dvc(tmp_path, stop):
    project = Project(tmp_path)
    profile = tiny(project.profile("sample"))
    # More than the CPUs of this machine: they must fit into the session of Ray that the seeds share
    profile["evaluate"]["num_workers"] = (os.cpu_count() or 1) + 1
    project.use_profile("tiny", profile)
    project.run("dvc", "repro", "inspect")
    status = project.run("dvc", "status", "--json")

    process = start(project)
    (group,) = _wait_for_one(project.folder / "runs" / "tiny", "seeds-*", process)
    first = group / "seed 1337"
    wait_for(first / "metrics" / "tiny" / "fcn32s.json", process)
    model = first / "models" / "tiny" / "fcn32s.pt"
    before = model.stat().st_mtime_ns
    os.killpg(process.pid, stop)
    process.wait(60)
    log = (project.folder / "log").read_text()
    assert ("stopped; run the same command again" in log) == (stop != signal.SIGKILL)
    if stop != signal.SIGKILL:
        assert process.returncode == 130
        assert "Traceback" not in log

    assert start(project).wait(900) == 0, (project.folder / "log").read_text()[-4000:]
    assert model.stat().st_mtime_ns == before
    for seed in (1337, 1338):
        for net in ("fcn32s", "fcn16s"):
            assert (group / f"seed {seed}" / "metrics" / "tiny" / f"{net}.json").exists()
    assert (group / "index.html").exists()
    assert project.run("dvc", "status", "--json") == status

    client = MlflowClient(f"sqlite:///{project.folder / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("fcn-tiny")
    (parent,) = client.search_runs([experiment.experiment_id], "tags.seeds = '2'")
    children = client.search_runs(
        [experiment.experiment_id], f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'"
    )
    names = sorted(run.info.run_name for run in children)
    assert names == [f"{net} seed {seed}" for net in ("fcn16s", "fcn32s") for seed in (1337, 1338)]
    assert {run.info.status for run in (parent, *children)} == {"FINISHED"}


def _wait_for_one(folder: Path, pattern: str, process: subprocess.Popen) -> list[Path]:
    deadline = time.monotonic() + 600
    while not list(folder.glob(pattern)):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return list(folder.glob(pattern))
