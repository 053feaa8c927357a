"""Model files: the net that was saved comes back; a file of another net is refused by name."""

from pathlib import Path

import pytest
import torch

from pipeline.errors import CheckpointError
from pipeline.models import checkpoint
from pipeline.models.model_file import load_model
from tests.tiny_model import CLASSES, OPTIONS, write_model

CPU = torch.device("cpu")


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_saved_model_comes_back_in_evaluation_mode_with_its_metadata(tmp_path, suffix):
    digest = write_model(tmp_path / f"a{suffix}")
    model, about, loaded_digest = load_model(tmp_path / f"a{suffix}", CPU)
    assert not model.training
    assert loaded_digest == digest
    expected = {"model": OPTIONS, "classes": CLASSES, "lineage": {"net": "fcn8s"}}
    assert about == expected | {"trained_on": None}  # missing in files of earlier versions
    state = checkpoint.load(tmp_path / f"a{suffix}", "model")[0]["state_dict"]
    assert list(model.state_dict()) == list(state)
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    ("changes", "fact"),
    [
        ({"model": OPTIONS | {"num_classes": 5}}, "5 classes"),
        ({"model": OPTIONS | {"stride": 16}}, "score_pool3"),
        ({"model": OPTIONS | {"width": 1 / 32}}, "backbone"),
        ({"model": OPTIONS | {"colour": "red"}}, "colour"),
        ({"model": OPTIONS | {"backbone": "vgg61"}}, "vgg61"),
        ({"model": {"num_classes": 3, "stride": 4}}, "stride"),
        ({"classes": ["a"]}, "1 names"),
        ({"state_dict": {}}, "lacks"),
        ({"lineage": None, "classes": None}, "NoneType"),
        (None, "'model'"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_by_name_in_one_line(tmp_path, changes, fact):
    path = tmp_path / "a.pt"
    write_model(path)
    content = checkpoint.load(path, "model")[0]
    checkpoint.save(path, "model", {"state_dict": {}} if changes is None else content | changes)
    with pytest.raises(CheckpointError, match=f"{path} .*{fact}") as caught:
        load_model(path, CPU)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("change", ["missing", "extra", "shape"])
def test_a_state_dict_that_does_not_fit_is_refused_naming_the_layer(tmp_path, change):
    path = tmp_path / "a.safetensors"
    write_model(path)
    content = checkpoint.load(path, "model")[0]
    state, layer = content["state_dict"], "score_pool2.bias" if change == "extra" else "score_fr.bias"
    if change == "missing":
        del state[layer]
    else:
        state[layer] = torch.zeros(7)
    checkpoint.save(path, "model", content)
    with pytest.raises(CheckpointError, match=rf"{path} .*{layer}"):
        load_model(path, CPU)


def test_at_most_four_layers_that_do_not_fit_are_named():
    layers = {f"layer{i}": torch.zeros(1) for i in range(6)}
    assert checkpoint.misfit(layers, layers) == ""
    assert "layer3 and 2 more" in checkpoint.misfit({}, layers)


def test_weights_of_another_program_are_refused(tmp_path: Path):
    torch.save({"conv1.weight": torch.zeros(1)}, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=r"a\.pt .*'fcn/1'"):
        load_model(tmp_path / "a.pt", CPU)
