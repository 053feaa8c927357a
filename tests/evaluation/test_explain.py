"""From a score or a model back to its origin, and what is reported when a file lacks a fact."""

from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.errors import CheckpointError
from pipeline.evaluation.explain import MISSING, FileFacts, explain_model, explain_result
from pipeline.evaluation.results import Result
from pipeline.models import checkpoint

ORIGIN = {
    "git": {"git_commit": "c0ffee", "git_dirty": "true"},
    "versions": {"python": "3.11.4", "torch": "2.11.0"},
    "hardware": {"workers": 2, "device": "CPU"},
    "recipe": {"lr": 1e-3, "iterations": 100},
}

KEPT = {"keep": "best", "step": 40, "last_step": 60, "iterations": 100, "best_by": "loss", "score": 0.25}
KEPT |= {"split": "val", "num_images": 20, "ema": 0.99}


def write(folder: Path, net: str, parent: tuple[str, str] | None, **changes: Any) -> str:
    """Write a model file, or a backbone's if it has no parent; return its sha256."""
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
            "kept": KEPT,
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


def names(parts: list[FileFacts]) -> list[str]:
    return [Path(part.title).stem for part in parts]


def test_a_model_leads_back_to_its_parents_and_the_origin_of_each(models):
    parts = list(explain_model(models / "fcn16s.pt"))
    assert names(parts) == ["fcn16s", "fcn32s", "backbone"]
    fine, coarse, backbone = (dict(part.facts) for part in parts)
    assert fine["git commit"] == "c0ffee, with uncommitted changes"
    assert fine["recipe"] == "lr 0.001, iterations 100"
    assert fine["versions"] == "python 3.11.4, torch 2.11.0"
    assert fine["hardware"] == "workers 2, device CPU"
    assert (fine["data digest"], fine["run"]) == ("da7a", "fcn16s-1")
    assert fine["trained on"] == "train: 2 images"
    for fact in ("step 40 of 60", "best (loss 0.2500 on 20 images of val)", "step 100", "0.99"):
        assert fact in fine["kept"]
    assert fine["parent"] == f"fcn32s, sha256 {coarse['sha256']}"
    assert coarse["parent"] == f"backbone, sha256 {backbone['sha256']}"
    assert backbone["weights"] == "vgg16.pth"


def test_facts_that_a_file_does_not_hold_are_reported_as_missing(models):
    write(models, "old", ("gone", ""), origin=None, trained_on=None, lineage={}, model={})
    (part,) = explain_model(models / "old.pt")
    missing = {name for name, value in part.facts if value == MISSING}
    assert missing == {name for name, _ in part.facts} - {"sha256"}
    assert len(missing) == 10


def test_a_parent_that_was_replaced_is_a_mismatch_and_not_followed_further(models):
    _, coarse = checkpoint.load(models / "fcn32s.pt", "model")
    write(models, "fcn32s", ("backbone", "0" * 64), origin=None)
    parts = list(explain_model(models / "fcn16s.pt"))
    assert names(parts) == ["fcn16s", "fcn32s"]
    assert coarse in dict(parts[1].facts)["mismatch"]


def test_a_parent_that_is_gone_or_damaged_is_reported(models):
    (models / "fcn32s.pt").write_bytes(b"nonsense")
    assert "fcn32s.pt" in dict(list(explain_model(models / "fcn16s.pt"))[1].facts)["unreadable"]
    (models / "fcn32s.pt").unlink()
    assert "missing" in dict(list(explain_model(models / "fcn16s.pt"))[1].facts)


def result(**values: Any) -> Result:
    return Result("run", {"pixel_acc": 0.9, "mean_iu": 0.6, "class_iu": {}, "num_images": 4} | values, None)


def test_a_score_leads_to_the_very_model_that_it_is_of(models):
    _, digest = checkpoint.load(models / "fcn16s.pt", "model")
    scored = {"profile": "small", "net": "fcn16s", "val_digest": "e7a1", "num_leaked": 0}
    scored |= {"mean_iu_low": 0.55, "mean_iu_high": 0.65}
    score, model, *parents = explain_result(result(**scored, model_sha256=digest))
    facts = dict(score.facts)
    assert facts["mean IU"] == "0.600 [0.550, 0.650]"
    assert (facts["model"], facts["val data digest"], facts["num leaked"]) == (digest, "e7a1", "0")
    assert "mismatch" not in dict(model.facts)
    assert len(parents) == 2
    _, replaced = explain_result(result(**scored, model_sha256="0" * 64))
    assert "0" * 64 in dict(replaced.facts)["mismatch"]


def test_a_score_that_does_not_hold_its_model_is_reported_so():
    (part,) = explain_result(result())
    facts = dict(part.facts)
    assert {facts[name] for name in ("model", "val data digest", "num leaked")} == {MISSING}


def test_a_missing_model_file_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"none\.pt"):
        list(explain_model(tmp_path / "none.pt"))
