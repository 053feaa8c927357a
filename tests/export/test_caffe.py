"""Caffe's files into model files, and back."""

import os
from pathlib import Path

import pytest
import torch
from ruamel.yaml import YAML

from fcn import voc
from fcn.caffe.caffemodel import Layer, write_caffemodel
from fcn.caffe.write import to_layers
from fcn.model import FCN
from pipeline.errors import CheckpointError, UserError
from pipeline.export.caffe import export_caffe, import_caffemodel
from pipeline.models import checkpoint
from pipeline.models.model_file import load_model
from tests.caffe_nets import NETS, SMALL, caffemodel, random_net


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """The .caffemodel of FCN-32s with 3 classes."""
    path = tmp_path / "net.caffemodel"
    path.write_bytes(caffemodel("fcn32s"))
    return path


def save_model(path: Path, options: dict) -> FCN:
    model = random_net(**options)
    content = {"model": options, "classes": ["a", "b", "c"], "lineage": {}, "state_dict": model.state_dict()}
    checkpoint.save(path, "model", content)
    return model


@pytest.mark.parametrize("backbone", ["vgg16", "caffenet"])
def test_an_imagenet_classifier_becomes_a_backbone_without_its_last_layer(backbone: str, tmp_path: Path):
    """As VGG_ILSVRC_16_layers.caffemodel: fully connected matrices, every shape filled up to four."""
    before, layers = random_net(**SMALL, backbone=backbone).backbone, []
    for name, module in before.named_children():
        if isinstance(module, torch.nn.Conv2d):
            weight, bias = module.weight.detach(), module.bias.detach()
            if name.startswith("fc"):
                weight = weight.reshape(1, 1, len(weight), -1)
            layers.append(Layer(name, "InnerProduct", (weight, bias.reshape(1, 1, 1, -1))))
    fc8 = Layer("fc8", "InnerProduct", (torch.zeros(1, 1, 1000, 64), torch.zeros(1, 1, 1, 1000)))
    (tmp_path / "net.caffemodel").write_bytes(write_caffemodel("classifier", [*layers, fc8]))
    kind, options = import_caffemodel(tmp_path / "net.caffemodel", tmp_path / "backbone.pt")
    assert (kind, options["backbone"], options["pixels"]) == ("backbone", backbone, "caffe")
    content, _ = checkpoint.load(tmp_path / "backbone.pt", "backbone")
    assert content["source"] == "net.caffemodel"
    after = FCN(**SMALL, backbone=backbone).backbone
    after.load_state_dict(content["state_dict"])
    for name, tensor in before.state_dict().items():
        assert torch.equal(after.state_dict()[name], tensor), name


def test_a_model_file_goes_to_caffe_and_back(tmp_path: Path):
    before = save_model(tmp_path / "fcn8s.pt", NETS["fcn8s"])
    paths = export_caffe(tmp_path / "fcn8s.pt", tmp_path / "out" / "fcn8s.v2", 375, 500)
    assert [path.name for path in paths] == ["fcn8s.v2.caffemodel", "fcn8s.v2.prototxt"]
    assert sorted((tmp_path / "out").iterdir()) == sorted(paths)
    assert "dim: 375" in paths[1].read_text(encoding="utf-8")
    kind, _ = import_caffemodel(paths[0], tmp_path / "back.pt", classes=["a", "b", "c"])
    assert kind == "model"
    after, info, _ = load_model(tmp_path / "back.pt", torch.device("cpu"))
    assert info["classes"] == ["a", "b", "c"]
    assert info["lineage"]["parent"] == "fcn8s.v2.caffemodel"
    image = torch.randint(0, 256, (1, 3, 50, 41), dtype=torch.uint8)
    with torch.inference_mode():
        assert torch.equal(after(image), before(image))


def test_arguments_overrule_the_file(file: Path, tmp_path: Path):
    _, options = import_caffemodel(
        file, tmp_path / "a.pt", classes="abc", padding="tight", pixels="torchvision"
    )
    assert (options["padding"], options["pixels"]) == ("tight", "torchvision")


def test_21_classes_are_voc_by_default(tmp_path: Path, root: Path):
    profile = YAML(typ="safe").load((root / "profiles" / "voc.yaml").read_text(encoding="utf-8"))
    layers = to_layers(random_net(**(SMALL | {"num_classes": 21, "stride": 32})))
    (tmp_path / "net.caffemodel").write_bytes(write_caffemodel("net", layers))
    import_caffemodel(tmp_path / "net.caffemodel", tmp_path / "net.pt")
    classes = checkpoint.load(tmp_path / "net.pt", "model")[0]["classes"]
    assert classes == list(voc.CLASSES) == profile["data"]["classes"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "3 classes.* 0 names"),
        ({"classes": ["a", "b"]}, "3 classes.* 2 names"),
        ({"classes": "abc", "pixels": "bgr"}, "'bgr'"),
        ({"classes": "abc", "padding": "loose"}, "'loose'"),
    ],
)
def test_a_missing_or_unknown_argument_is_refused(file: Path, tmp_path: Path, options: dict, message: str):
    with pytest.raises(CheckpointError, match=message):
        import_caffemodel(file, tmp_path / "net.pt", **options)
    assert not (tmp_path / "net.pt").exists()


def test_a_file_that_is_missing_too_large_or_damaged_is_named(tmp_path: Path):
    path, dest = tmp_path / "net.caffemodel", tmp_path / "net.pt"
    with pytest.raises(CheckpointError, match=r"net\.caffemodel .*No such file"):
        import_caffemodel(path, dest)
    path.write_bytes(caffemodel("fcn32s")[:-100])
    with pytest.raises(CheckpointError, match=r"net\.caffemodel: .*truncated"):
        import_caffemodel(path, dest)
    with path.open("wb") as file:
        file.truncate(2**32)  # sparse: takes no room
    with pytest.raises(CheckpointError, match=r"net\.caffemodel .*4294967296 bytes"):
        import_caffemodel(path, dest)
    assert not dest.exists()


@pytest.mark.parametrize("full_at", [0, 1])
def test_a_full_disk_leaves_neither_of_the_two_files(tmp_path: Path, monkeypatch, full_at: int):
    save_model(tmp_path / "net.pt", NETS["fcn32s"])
    calls = iter(range(100))

    def fsync(_):
        if next(calls) >= full_at:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(UserError, match="No space left"):
        export_caffe(tmp_path / "net.pt", tmp_path / "out" / "net")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_file_that_cannot_be_written_leaves_nothing(file: Path, tmp_path: Path):
    save_model(tmp_path / "net.pt", NETS["fcn32s"])
    save_model(tmp_path / "max.pt", SMALL | {"fusion": "max", "padding": "tight"})
    checkpoint.save(tmp_path / "b.pt", "backbone", {})
    before = sorted(tmp_path.iterdir())
    with pytest.raises(UserError, match="cannot be written"):
        import_caffemodel(file, file / "net.pt", classes="abc")
    with pytest.raises(UserError, match="cannot be written"):
        export_caffe(tmp_path / "net.pt", file / "net")
    with pytest.raises(CheckpointError, match=r"max\.pt: .*-inf"):
        export_caffe(tmp_path / "max.pt", tmp_path / "net")
    with pytest.raises(CheckpointError, match=r"b\.pt .*backbone.*model"):
        export_caffe(tmp_path / "b.pt", tmp_path / "net")
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("name", ["here", "."])
def test_a_folder_in_place_of_a_file_to_write_is_refused_by_name(
    file: Path, tmp_path: Path, monkeypatch, name: str
):
    (tmp_path / "work" / "here").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "work")
    save_model(tmp_path / "model.pt", SMALL)
    with pytest.raises(UserError, match=rf"^{name} is a folder"):
        import_caffemodel(file, Path(name), classes=("a", "b", "c"))
    with pytest.raises(UserError, match=rf"^{name} is a folder"):
        export_caffe(tmp_path / "model.pt", Path(name))
    assert [path.name for path in (tmp_path / "work").rglob("*")] == ["here"]
