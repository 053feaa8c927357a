"""pipeline/training/provenance.py: what a model's file says it was trained on."""

import hashlib
import io
from pathlib import Path

import pytest
import torch
from PIL import Image

from pipeline.models import checkpoint
from pipeline.training import provenance
from tests.drawn_shards import photo, shards_of


def digest_of(content: int) -> str:
    image = Image.open(io.BytesIO(photo(content)))
    return hashlib.sha256(f"{image.height} {image.width} ".encode() + image.tobytes()).hexdigest()


@pytest.fixture
def shards(tmp_path: Path):
    return shards_of(tmp_path / "train", {"b": 2, "a": 1})


def test_a_record_has_sorted_ids_and_the_digests_of_their_pixels_in_that_order(shards):
    (record,) = provenance.records(shards, [])
    assert record == {
        "split": "train",
        "digest": shards.digest,
        "keys": ["a", "b"],
        "pixel_sha256": digest_of(1) + digest_of(2),
    }


def test_a_chain_on_one_data_set_has_one_record_and_on_two_has_two(shards, tmp_path: Path):
    parent = {"trained_on": provenance.records(shards, [])}
    assert provenance.inherited("model", parent, "ab", shards) == []
    other = shards_of(tmp_path / "other", {"c": 3})
    records = provenance.records(other, provenance.inherited("model", parent, "ab", other))
    assert [record["keys"] for record in records] == [["c"], ["a", "b"]]


def test_a_classifier_that_says_nothing_saw_none_of_ours_and_a_model_that_says_nothing_saw_anything(shards):
    assert provenance.inherited("backbone", {"source": "vgg16-397923af.pth"}, "ab", shards) == []
    for kind, content in (("model", {"lineage": {}}), ("backbone", {"trained_on": None})):
        (record,) = provenance.inherited(kind, content, "ab", shards)
        assert (record["digest"], record["keys"]) == ("ab", None)


@pytest.mark.parametrize("name", ["model.pt", "model.safetensors"])
def test_a_models_file_of_either_kind_keeps_the_records(shards, tmp_path: Path, name: str):
    silent = provenance.inherited("model", {}, "ab", shards)
    records = provenance.records(shards, silent)
    content = {"state_dict": {"weight": torch.ones(2)}, "trained_on": records}
    checkpoint.save(tmp_path / name, "model", content)
    assert checkpoint.load(tmp_path / name, "model")[0]["trained_on"] == records


def test_images_that_settings_are_chosen_on_are_recorded_once_in_a_chain(shards, tmp_path: Path):
    tuning = shards_of(tmp_path / "tuning", {"t": 3}, split="tuning")
    first = provenance.records(shards, provenance.with_tuning(tuning, []))
    assert [(record["split"], record["keys"]) for record in first] == [
        ("train", ["a", "b"]),
        ("tuning", ["t"]),
    ]
    inherited = provenance.inherited("model", {"trained_on": first}, "ab", shards)
    assert provenance.records(shards, provenance.with_tuning(tuning, inherited)) == first
