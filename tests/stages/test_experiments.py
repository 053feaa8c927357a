"""docs/experiments.md with real DVC and MLflow: experiments in copies and in the queue, and one that is applied."""

import json
import time
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from tests.project_copy import Project, stages_run
from tests.stages.test_chain import tiny

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2400)]

RATE = "profiles/tiny.yaml:nets.fcn8s.lr"
COMMIT = ("git", "-c", "user.name=t", "-c", "user.email=t@example.org", "commit", "-qm", "First results")
QUEUE_S = 1200


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project whose first results are committed."""
    project = Project(tmp_path_factory.mktemp("project"))
    project.use_profile("tiny", tiny(project.profile("sample")))
    project.run("dvc", "repro")
    project.run("git", "add", "-f", "dvc.lock", "params.yaml", "profiles")
    project.run(*COMMIT)
    return project


def rates(project: Project) -> dict[float, str]:
    """The names of the finished experiments by their learning rate of FCN-8s."""
    (commits,) = (
        json.loads(line)
        for line in project.run("dvc", "exp", "show", "--json").splitlines()
        if line.startswith("[")
    )
    found = {}
    for commit in commits:
        for experiment in commit.get("experiments") or []:
            for revision in experiment["revs"]:
                if revision["data"]:
                    values: Any = revision["data"]["params"]["profiles/tiny.yaml"]["data"]
                    found[values["nets"]["fcn8s"]["lr"]] = experiment["name"]
    return found


def runs_of_fcn8s(project: Project) -> dict[str, str]:
    """The project's runs of FCN-8s in MLflow that belong to an experiment of DVC: names by experiment."""
    client = MlflowClient(f"sqlite:///{project.folder / 'mlflow.db'}")
    found = client.search_experiments()
    runs = client.search_runs([one.experiment_id for one in found], "tags.dvc_exp LIKE '%'")
    return {
        run.data.tags["dvc_exp"]: run.info.run_name or "" for run in runs if run.data.tags["net"] == "fcn8s"
    }


def results(project: Project) -> dict[str, bytes]:
    tops = ("models", "metrics", "curves", "reports")
    return {
        str(path.relative_to(project.folder)): path.read_bytes()
        for top in tops
        for path in sorted((project.folder / top / "tiny").rglob("*"))
        if path.is_file()
    }


def copies(project: Project) -> list[Path]:
    """What copies of the project are left."""
    folder = project.folder / ".dvc/tmp/exps"
    return [path for path in folder.rglob("dvc.yaml")] if folder.exists() else []


def test_experiments_in_copies_leave_the_project_alone_and_their_runs_are_in_its_mlflow(project: Project):
    before = results(project)
    log = project.run("dvc", "exp", "run", "--temp", "-S", f"{RATE}=0.002")
    assert "train@fcn8s" in stages_run(log)
    assert not {"train@fcn32s", "train@fcn16s", "shard", "inspect"} & set(stages_run(log))

    project.run("dvc", "exp", "run", "--queue", "-S", f"{RATE}=0.003,0.004")
    project.run("dvc", "queue", "start")
    deadline = time.monotonic() + QUEUE_S
    while {0.003, 0.004} - set(rates(project)):
        status = project.run("dvc", "queue", "status")
        assert "Failed" not in status, project.run("dvc", "queue", "logs", status.split()[5])
        assert time.monotonic() < deadline, status
        time.sleep(5)

    assert results(project) == before
    assert project.run("git", "status", "--porcelain") == ""
    names = rates(project)
    assert set(names) == {0.002, 0.003, 0.004}
    assert runs_of_fcn8s(project) == {name: f"fcn8s lr={rate} ({name})" for rate, name in names.items()}
    deadline = time.monotonic() + 60  # the queue's worker removes the last copy after its result is there
    while copies(project):
        assert time.monotonic() < deadline, copies(project)
        time.sleep(1)

    project.run("dvc", "exp", "apply", names[0.003])
    applied = results(project)
    assert applied["models/tiny/fcn32s.pt"] == before["models/tiny/fcn32s.pt"]
    assert applied["models/tiny/fcn8s.pt"] != before["models/tiny/fcn8s.pt"]
    assert project.profile("tiny")["nets"]["fcn8s"]["lr"] == 0.003
    assert project.will_run() == []

    project.run("git", "checkout", "-q", "dvc.lock", "params.yaml", "profiles")
    project.run("dvc", "checkout", "-q")
    assert results(project) == before
