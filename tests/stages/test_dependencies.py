"""Which edits of the code train a net again, by real `dvc status`."""

import json

import pytest

from tests.project_copy import Project
from tests.test_structure import outs_of, stages


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Project:
    """A project whose stages count as run: every out is there, and dvc.lock records it."""
    project = Project(tmp_path_factory.mktemp("project"))
    for out in sorted({out for stage in stages().values() for out in outs_of(stage)}):
        path = project.folder / out
        if path.suffix:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("{}")
        else:
            path.mkdir(parents=True)
            (path / "file").write_text(out)
    shards = project.folder / "data/sample/shards"
    for split in ("train", "val"):
        (shards / split).mkdir()
        (shards / split / "manifest.parquet").write_text(split)
    (project.folder / "data/sample/inspection/verdict.json").write_text("{}")
    project.run("dvc", "commit", "--force", "--quiet")
    return project


def changed_stages(project: Project) -> set[str]:
    output = project.run("dvc", "status", "--json")
    return set(json.loads(output.splitlines()[-1])) - {"source"}  # which always runs


def changed_by_editing(project: Project, *names: str) -> set[str]:
    before = {name: (project.folder / name).read_text("utf-8") for name in names}
    for name, text in before.items():
        (project.folder / name).write_text(text + "\n# edited\n")
    try:
        return changed_stages(project)
    finally:
        for name, text in before.items():
            (project.folder / name).write_text(text)


def test_editing_progress_bar_tracker_or_report_trains_no_net(project):
    assert changed_stages(project) == set()
    shows = ("pipeline/progress.py", "pipeline/tracking/__init__.py", "pipeline/report/plots.py")
    assert not {stage for stage in changed_by_editing(project, *shows) if stage.startswith("train")}


@pytest.mark.parametrize("name", ["fcn/loss.py", "fcn/backbones/vgg.py", "pipeline/loading/sampler.py"])
def test_editing_loss_backbone_or_sampler_trains_every_net_again(project, name):
    assert {"train@fcn32s", "train@fcn16s", "train@fcn8s"} <= changed_by_editing(project, name)
