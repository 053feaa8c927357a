"""train.start: which net a stage takes, in this process; and which stages run again, by real DVC."""

import json
from pathlib import Path

import pytest
import torch

from fcn.model import FCN
from pipeline.errors import CheckpointError
from pipeline.files import sha256_file
from pipeline.models import checkpoint
from stages import source
from tests.project_copy import Project, stages_run
from tests.stages.test_chain import tiny

CLASSES = ["background", "disc", "sky"]


@pytest.fixture
def net(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file to start from, below the current folder."""
    monkeypatch.chdir(tmp_path)
    path = Path("models/other/fcn8s.pt")
    path.parent.mkdir(parents=True)
    path.write_bytes(b"a net")
    return path


def fingerprint(start: str | None) -> dict:
    source.write_start("mine", start)
    return json.loads(Path("models/mine/start.json").read_text("utf-8"))


def test_the_fingerprint_is_that_of_the_file_or_of_none(net: Path):
    assert fingerprint(None) == {"start": None, "sha256": None}
    assert fingerprint(str(net)) == {"start": str(net), "sha256": sha256_file(net)}
    before = fingerprint(str(net))
    net.write_bytes(b"another net")
    assert fingerprint(str(net)) != before


def test_without_the_file_its_copy_is_used_and_no_other_files_copy(net: Path):
    before = fingerprint(str(net))
    net.unlink()
    with pytest.raises(CheckpointError, match=r"train\.start: .*fcn8s\.pt is missing"):
        fingerprint(str(net))  # no stage has copied it yet
    Path("models/mine/backbone.pt").write_bytes(b"its copy")
    assert fingerprint(str(net)) == before
    with pytest.raises(CheckpointError, match=r"train\.start: .*typo\.pt is missing"):
        fingerprint("models/other/typo.pt")


def test_a_profile_cannot_start_from_what_it_writes(net: Path):
    own = Path("models/mine/fcn8s.pt")
    own.parent.mkdir()
    own.write_bytes(net.read_bytes())
    for start in (str(own), str(own.absolute())):
        with pytest.raises(CheckpointError, match=r"train\.start: this profile writes .*fcn8s\.pt itself"):
            fingerprint(start)


def write_net(path: Path, model: dict, seed: int) -> None:
    torch.manual_seed(seed)
    options = model | {"num_classes": len(CLASSES), "stride": 8}
    content = {"model": options, "classes": CLASSES, "lineage": {}, "trained_on": []}
    checkpoint.save(path, "model", content | {"state_dict": FCN(**options).state_dict()})


@pytest.mark.slow
def test_the_backbone_is_made_again_when_the_net_changes(tmp_path: Path):
    project = Project(tmp_path)
    profile, net = tiny(project.profile("sample")), tmp_path / "models/other/fcn8s.pt"
    backbone = tmp_path / "models/tiny/backbone.pt"

    def repro(start: str | None) -> list[str]:
        profile["train"].pop("start", None)
        if start:
            profile["train"]["start"] = start
        project.use_profile("tiny", profile)
        return stages_run(project.run("dvc", "repro", "backbone"))

    assert repro(None) == ["backbone"]
    random = backbone.read_bytes()
    write_net(net, profile["model"], seed=1)
    assert repro("models/other/fcn8s.pt") == ["backbone"]
    first = backbone.read_bytes()
    assert checkpoint.load(backbone, "backbone")[0]["classes"] == CLASSES
    assert repro("models/other/fcn8s.pt") == []
    write_net(net, profile["model"], seed=2)
    assert repro("models/other/fcn8s.pt") == ["backbone"]
    assert backbone.read_bytes() not in (first, random)
    repro(None)  # DVC may take it from its run cache
    assert backbone.read_bytes() == random
