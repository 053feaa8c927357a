"""From a score or a model back to what made it, and what is said when a file does not know."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.errors import CheckpointError, ResultError
from pipeline.evaluation.explain import LACKING, explain
from pipeline.models import checkpoint

ORIGIN = {
    "git": {"git_commit": "c0ffee", "git_dirty": "true"},
    "versions": {"python": "3.11.4", "torch": "2.11.0"},
    "hardware": {"workers": 2, "device": "CPU"},
    "recipe": {"lr": 1e-3, "iterations": 100},
}


def write(folder: Path, net: str, parent: tuple[str, str] | None, **changes: Any) -> str:
    """A model's file, or a backbone's; its sha256."""
    state: dict[str, Any] = {"state_dict": {"w": torch.zeros(1)}}
    if parent is None:
        return checkpoint.save(folder / f"{net}.pt", "backbone", {"source": "vgg16.pth"} | state)
    content = {
        "model": {"backbone": "vgg16", "stride": 8},
        "lineage": {
            "net": net,
            "parent": parent[0],
            "parent_sha256": parent[1],
            "data_digest": "da7a",
            "identity": f"{net}-1",
        },
        "trained_on": [{"split": "train", "digest": "da7a", "keys": ["a", "b"], "pixel_sha256": ""}],
        "origin": ORIGIN,
    }
    return checkpoint.save(folder / f"{net}.pt", "model", content | changes | state)


@pytest.fixture
def models(tmp_path, monkeypatch) -> Path:
    """backbone -> fcn32s -> fcn16s"""
    monkeypatch.chdir(tmp_path)
    folder = Path("models") / "small"
    coarse = write(folder, "fcn32s", ("backbone", write(folder, "backbone", None)))
    write(folder, "fcn16s", ("fcn32s", coarse))
    return folder


def story(what: Path | str, tmp_path: Path) -> list[tuple[str, dict[str, str]]]:
    return [(part.title, dict(part.facts)) for part in explain(str(what), tmp_path)]


def test_a_model_leads_back_to_its_parents_and_to_what_made_each(models, tmp_path):
    parts = story(models / "fcn16s.pt", tmp_path)
    assert [Path(title).stem for title, _ in parts] == ["fcn16s", "fcn32s", "backbone"]
    (_, fine), (_, coarse), (_, backbone) = parts
    assert fine["git commit"] == "c0ffee, with uncommitted changes"
    assert fine["recipe"] == "lr 0.001, iterations 100"
    assert fine["versions"] == "python 3.11.4, torch 2.11.0"
    assert fine["hardware"] == "workers 2, device CPU"
    assert (fine["data digest"], fine["run"]) == ("da7a", "fcn16s-1")
    assert fine["trained on"] == "train: 2 images"
    assert fine["parent"] == f"fcn32s, sha256 {coarse['sha256']}"
    assert coarse["parent"] == f"backbone, sha256 {backbone['sha256']}"
    assert backbone["weights"] == "vgg16.pth"


def test_what_a_file_does_not_say_is_said_to_be_lacking(models, tmp_path):
    write(models, "old", ("gone", ""), origin=None, trained_on=None, lineage={}, model={})
    ((_, facts),) = story(models / "old.pt", tmp_path)
    unknown = ("git commit", "run", "network", "recipe", "data digest", "trained on", "versions", "hardware")
    assert {facts[what] for what in (*unknown, "parent")} == {LACKING}


def test_a_parent_that_was_made_anew_is_told_and_not_followed_further(models, tmp_path):
    coarse = checkpoint.load(models / "fcn32s.pt", "model")[1]
    write(models, "fcn32s", ("backbone", "0" * 64), origin=None)
    parts = story(models / "fcn16s.pt", tmp_path)
    assert [Path(title).stem for title, _ in parts] == ["fcn16s", "fcn32s"]
    assert parts[1][1]["mismatch"].startswith(f"the one that was used has sha256 {coarse};")


def test_a_parent_that_is_gone_or_damaged_is_told(models, tmp_path):
    (models / "fcn32s.pt").write_bytes(b"nonsense")
    assert "cannot be loaded as weights" in story(models / "fcn16s.pt", tmp_path)[1][1]["not read"]
    (models / "fcn32s.pt").unlink()
    assert story(models / "fcn16s.pt", tmp_path)[1][1]["not here"].startswith("no such file")


def scores(model: str | None) -> dict[str, Any]:
    values = {
        "pixel_acc": 0.9,
        "mean_acc": 0.7,
        "mean_iu": 0.6,
        "fw_iu": 0.8,
        "class_iu": {},
        "num_images": 4,
    }
    more = {"mean_iu_low": 0.55, "mean_iu_high": 0.65, "val_digest": "e7a1", "num_leaked": 0}
    return values | (more | {"profile": "small", "net": "fcn16s", "model_sha256": model} if model else {})


def test_a_score_leads_to_the_very_model_it_is_of(models, tmp_path):
    digest = checkpoint.load(models / "fcn16s.pt", "model")[1]
    path = Path("metrics/small/fcn16s.json")
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(scores(digest)))
    for what in ("small/fcn16s", path):
        parts = story(what, tmp_path)
        assert parts[0][0] == str(what)
        assert len(parts) == 4
        assert parts[0][1]["mean IU"] == "0.600 [0.550, 0.650]"
        assert (parts[0][1]["model"], parts[0][1]["its data digest"]) == (digest, "e7a1")
        assert "mismatch" not in parts[1][1]
    path.write_text(json.dumps(scores("0" * 64)))
    parts = story(path, tmp_path)
    assert len(parts) == 2
    assert "0" * 64 in parts[1][1]["mismatch"]


def test_a_score_of_before_it_knew_its_model_says_so(tmp_path):
    path = tmp_path / "old.json"
    path.write_text(json.dumps(scores(None)))
    ((_, facts),) = story(path, tmp_path)
    assert {facts[what] for what in ("model", "its data digest", "of these, trained on")} == {LACKING}


def test_what_is_not_there_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"none\.pt is missing"):
        story(tmp_path / "none.pt", tmp_path)
    with pytest.raises(ResultError, match=r"none\.json is missing"):
        story(tmp_path / "none.json", tmp_path)


def test_the_command_prints_it_all_and_refuses_in_one_sentence(models):
    command = [sys.executable, "-m", "pipeline.cli.main", "explain"]
    done = subprocess.run([*command, str(models / "fcn16s.pt")], capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert lines[0] == str(models / "fcn16s.pt")
    assert "  git commit   c0ffee, with uncommitted changes" in lines
    assert lines[-1].split() == ["weights", "vgg16.pth"]
    done = subprocess.run([*command, "none.pt"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == "error: none.pt is missing; `dvc repro` makes it\n"
