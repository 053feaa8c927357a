"""docs/sharing.md with two clones: what one pushed, the other pulls, and computes nothing."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.project_copy import Project, stages_run
from tests.s3_server import s3_server
from tests.test_structure import outs_of, stages

OWN = "../my-photos"  # beside the first project, and not beside the colleague's


@pytest.fixture(params=["folder", pytest.param("s3", marks=pytest.mark.slow)])
def remote(request, tmp_path: Path) -> Iterator[str]:
    if request.param == "folder":
        yield str(tmp_path / "shelf")
    else:
        with s3_server() as bucket:
            yield f"{bucket}/fcn"


@pytest.fixture
def project(remote: str, tmp_path: Path) -> Project:
    """A project of a user's own folder that is pushed. Its outs count as made by its stages."""
    project = Project(tmp_path / "project")
    profile = project.profile("own")
    profile["data"]["source"]["own"] = OWN
    project.use_profile("mine", profile)
    project.run("python", "-m", "stages.source")
    made = outs_of(stages("mine")["source"])
    for out in sorted({out for stage in stages("mine").values() for out in outs_of(stage)} - made):
        path = project.folder / out
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".json":
            path.write_text(json.dumps({"mean_iu": 0.5, "of": out}))
        elif path.suffix:
            path.write_text(out)
        else:
            path.mkdir()
            (path / "file").write_text(out)
    for split in ("train", "val"):
        (project.folder / "data/mine/shards" / split).mkdir()
        (project.folder / "data/mine/shards" / split / "shard-000000.tar").write_text(split)
    (project.folder / "data/mine/inspection/verdict.json").write_text("{}")
    project.run("dvc", "remote", "add", "--default", "shelf", remote)
    project.run("dvc", "commit", "--force", "--quiet")
    project.run("dvc", "push", "--quiet")
    project.run("git", "add", "-A")
    project.run("git", "-c", "user.name=t", "-c", "user.email=t@example.org", "commit", "-qm", "Results")
    return project


def results(folder: Path) -> dict[Path, bytes]:
    tops = ("data", "models", "curves", "metrics", "figures", "reports")
    files = (path for top in tops for path in (folder / top).rglob("*") if path.is_file())
    return {path.relative_to(folder): path.read_bytes() for path in files if "raw" not in path.name}


def test_a_colleagues_clone_has_every_result_and_computes_nothing(project: Project, tmp_path: Path):
    clone = Project.__new__(Project)
    clone.folder = tmp_path / "elsewhere" / "clone"
    project.run("git", "clone", "-q", str(project.folder), str(clone.folder))
    clone.run("dvc", "pull", "--quiet")
    assert results(clone.folder) == results(project.folder)
    assert len(results(clone.folder)) > 20
    log = clone.run("dvc", "repro")
    assert stages_run(log) == []
    assert OWN in log  # the folder that is not here
    changed = json.loads(clone.run("dvc", "status", "--json").splitlines()[-1])
    assert set(changed) <= {"source"}
    assert clone.run("git", "status", "--porcelain") == ""
    assert os.path.exists(clone.folder / "reports/mine/file")

    profile = clone.profile("mine")
    profile["shards"]["seed"] += 1
    clone.use_profile("mine", profile)
    log = clone.run("dvc", "repro", "shard", fails=True)
    assert f"no folder {OWN}" in log
    assert "Traceback" not in log
