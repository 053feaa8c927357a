"""What is exported computes what the model computes, by programs that know nothing of this project."""

import json
import random
import struct
import zipfile
from collections.abc import Callable
from math import inf, isnan, nan
from pathlib import Path

import onnxruntime
import pytest
import torch
from safetensors.torch import load_file, safe_open, save_file

from fcn.model import FCN
from pipeline.errors import CheckpointError
from pipeline.evaluation.scoring import load_model
from pipeline.export import export
from pipeline.export.export import ExportError, export_model
from pipeline.models import checkpoint

CPU = torch.device("cpu")
CLASSES = ["background", "chat", "été"]
LINEAGE = {"net": "fcn8s", "parent": None, "identity": "abc", "score": 0.1}
SIZES = [(1, 1), (7, 120), (33, 64), (97, 50), (65, 100)]
NETS = [
    *(
        {"stride": stride, "padding": padding, "width": 0.03}
        for stride in (32, 16, 8)
        for padding in ("reference", "tight")
        if (stride, padding) != (8, "tight")  # `small`, below
    ),
    {"stride": 8, "width": 0.05, "at_once": True, "fusion": "max", "learn_upscore": True, "padding": "tight"},
    {"stride": 8, "backbone": "mobilenet_v1", "width": 0.1},
]
SLOW_NETS = [
    {"stride": 16, "backbone": "caffenet", "width": 0.05},
    {"stride": 16, "backbone": "resnet50", "width": 0.05},
    {"stride": 8, "backbone": "googlenet", "width": 0.1},
]
RUNS = [
    pytest.param(
        net,
        id=" ".join(map(str, net.values())),
        marks=pytest.mark.slow if net in SLOW_NETS else (),
    )
    for net in NETS + SLOW_NETS
]


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def model_file(path: Path, **options) -> tuple[FCN, str]:
    """A random net, saved as training saves it."""
    torch.manual_seed(0)
    options = {"num_classes": 3, "score_init": "random"} | options
    model = FCN(**options).eval()
    for layer in model.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.running_var.uniform_(0.5, 2)
    content = {
        "model": options,
        "classes": CLASSES,
        "lineage": LINEAGE,
        "state_dict": dict(model.state_dict()),
    }
    return model, checkpoint.save(path, "model", content)


def run_onnx(path: Path) -> Callable[[torch.Tensor], torch.Tensor]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda image: torch.from_numpy(session.run(["score"], {"image": image.numpy()})[0])


def run_pt2(path: Path) -> Callable[[torch.Tensor], torch.Tensor]:
    return torch.export.load(path).module()


RUN = {"onnx": run_onnx, "pt2": run_pt2}


def assert_same(
    model: FCN, exported: Callable[[torch.Tensor], torch.Tensor], num: int, size: tuple[int, int]
):
    image = torch.randint(0, 256, (num, 3, *size), dtype=torch.uint8)
    with torch.no_grad():
        expected, found = model(image), exported(image)
    assert found.dtype == torch.float32
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    """An FCN-8s with each export of it beside it."""
    path = tmp_path_factory.mktemp("small") / "fcn8s.pt"
    model_file(path, padding="tight", width=0.02)
    for kind in export.KINDS:
        assert export_model(path, path.with_suffix(f".{kind}"), kind) < 1e-5
    return path


@pytest.mark.parametrize("net", RUNS)
def test_an_export_gives_the_models_scores_on_every_size_and_batch(tmp_path, monkeypatch, net):
    model, _ = model_file(tmp_path / "net.pt", **net)
    graph = export.traced(load_model(tmp_path / "net.pt", CPU)[0].requires_grad_(False))
    monkeypatch.setattr(export, "traced", lambda _: graph)  # one for both kinds: tracing takes half the time
    for kind, run in RUN.items():
        assert export_model(tmp_path / "net.pt", tmp_path / f"net.{kind}", kind) < 1e-5
        exported = run(tmp_path / f"net.{kind}")
        for size in SIZES:
            for num in (1, 2):
                assert_same(model, exported, num, size)


@pytest.mark.parametrize("kind", RUN)
def test_an_export_takes_every_height_and_width_from_1_on(small, kind):
    """Poolings that round up behave alike for each remainder of the stride only if the exporter got them right."""
    model, exported = load_model(small, CPU)[0], RUN[kind](small.with_suffix(f".{kind}"))
    for height in range(1, 67):
        assert_same(model, exported, 1 + height % 2, (height, 67 - height))


def test_every_export_says_what_the_model_file_says(small):
    about, digest = load_model(small, CPU)[1:]
    assert about.pop("trained_on") is None
    session = onnxruntime.InferenceSession(small.with_suffix(".onnx"), providers=["CPUExecutionProvider"])
    onnx = session.get_modelmeta().custom_metadata_map
    extra = {export.METADATA: ""}
    torch.export.load(small.with_suffix(".pt2"), extra_files=extra)
    pt2 = json.loads(extra[export.METADATA])
    with safe_open(small.with_suffix(".safetensors"), framework="pt") as file:
        tensors = file.metadata()
    for said in (onnx, tensors):
        assert {key: json.loads(said[key]) for key in about} == about
    assert {key: pt2[key] for key in about} == about
    assert onnx["sha256"] == pt2["sha256"] == tensors["sha256"] == digest
    assert about["classes"] == CLASSES
    assert "uint8" in onnx["input"]
    assert onnx["input"] == pt2["input"]


def test_an_onnx_file_names_its_input_output_and_free_axes(small):
    session = onnxruntime.InferenceSession(small.with_suffix(".onnx"), providers=["CPUExecutionProvider"])
    (image,), (score,) = session.get_inputs(), session.get_outputs()
    assert (image.name, image.type, image.shape) == (
        "image",
        "tensor(uint8)",
        ["batch", 3, "height", "width"],
    )
    assert (score.name, score.type, score.shape) == (
        "score",
        "tensor(float)",
        ["batch", 3, "height", "width"],
    )


def test_no_export_tells_where_it_was_made(small, root):
    with zipfile.ZipFile(small.with_suffix(".pt2")) as archive:
        parts = [archive.read(name) for name in archive.namelist()]
    for data in [*parts, *(small.with_suffix(f".{kind}").read_bytes() for kind in ("onnx", "safetensors"))]:
        assert str(root).encode() not in data
        assert b"site-packages" not in data


def test_what_torch_tells_its_developers_is_not_shown(tmp_path, small, capfd, recwarn):
    kinds = ("onnx", "safetensors")  # pt2 is the first half of onnx
    for kind in kinds:
        export_model(small, tmp_path / f"net.{kind}", kind)
    captured = capfd.readouterr()
    assert (captured.out, captured.err, [str(warning.message) for warning in recwarn]) == ("", "", [])
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"net.{kind}" for kind in kinds]


# safetensors


def test_safetensors_load_as_the_model_they_were(small):
    model, about, digest = load_model(small, CPU)
    same, same_about, same_digest = load_model(small.with_suffix(".safetensors"), CPU)
    assert (same_about, same_digest) == (about, digest)
    assert list(same.state_dict()) == list(model.state_dict())
    assert all(torch.equal(tensor, same.state_dict()[name]) for name, tensor in model.state_dict().items())


def test_safetensors_can_be_read_by_others_and_exported_from(small, tmp_path):
    theirs, ours = load_file(small.with_suffix(".safetensors")), load_model(small, CPU)[0].state_dict()
    assert theirs.keys() == ours.keys()
    assert all(torch.equal(theirs[name], ours[name]) for name in ours)
    export_model(small.with_suffix(".safetensors"), tmp_path / "again.safetensors", "safetensors")
    digests = {checkpoint.load(path, "model")[1] for path in (small, tmp_path / "again.safetensors")}
    assert len(digests) == 1


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.int64, torch.bool])
def test_safetensors_keep_dtypes_shapes_and_order(tmp_path, dtype):
    state = {"z": torch.ones(2, 3).to(dtype).t(), "a": torch.ones((), dtype=dtype), "m": torch.zeros(0, 3)}
    content = {"source": "a.pth", "state_dict": state, "more": [1, 1.0, None, True]}
    digest = checkpoint.save(tmp_path / "a.safetensors", "backbone", content)
    found, same = checkpoint.load(tmp_path / "a.safetensors", "backbone")
    assert same == digest == checkpoint.content_digest(content)
    assert list(found) == list(content)
    assert list(found["state_dict"]) == ["z", "a", "m"]
    with pytest.raises(CheckpointError, match="holds a backbone, expected a model"):
        checkpoint.load(tmp_path / "a.safetensors", "model")


def test_no_flipped_bit_of_safetensors_is_loaded_as_another_model(small, tmp_path):
    data, digest = small.with_suffix(".safetensors").read_bytes(), load_model(small, CPU)[2]
    (header,) = struct.unpack("<Q", data[:8])
    rng, path, found = random.Random(0), tmp_path / "flipped.safetensors", []
    places = [rng.randrange(8 + header) for _ in range(150)] + [
        rng.randrange(8 + header, len(data)) for _ in range(50)
    ]
    for place in places:
        damaged = bytearray(data)
        damaged[place] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        try:
            found.append(checkpoint.load(path, "model")[1])
        except CheckpointError as error:
            found.append(None if str(path) in str(error) else "refused without a name")
    assert set(found[:150]) <= {None, digest}
    assert set(found[150:]) == {None}


def test_safetensors_cut_anywhere_are_refused(small, tmp_path):
    data, path = small.with_suffix(".safetensors").read_bytes(), tmp_path / "cut.safetensors"
    for length in [*range(0, len(data), len(data) // 50), len(data) - 1]:
        path.write_bytes(data[:length])
        with pytest.raises(CheckpointError, match=r"cut\.safetensors"):
            checkpoint.load(path, "model")


def test_safetensors_of_another_program_are_refused(tmp_path):
    path = tmp_path / "theirs.safetensors"
    for about in (None, {"format": "pt"}):
        save_file({"weight": torch.zeros(2)}, path, about)
        with pytest.raises(CheckpointError, match="no file of format 'fcn/1'"):
            load_model(path, CPU)
    for about in (
        {},
        {"keys": "[" * 100_000},
        {"keys": "3"},
        {"keys": '["state_dict"]', "state_dict": '["a"]'},
    ):
        save_file({"weight": torch.zeros(2)}, path, {"format": "fcn/1", "kind": "model"} | about)
        with pytest.raises(CheckpointError, match="cannot be loaded as safetensors"):
            load_model(path, CPU)
    path.write_bytes(struct.pack("<Q", 2**62) + b"{}")
    with pytest.raises(CheckpointError, match="cannot be loaded as safetensors"):
        load_model(path, CPU)


def test_a_tensor_hidden_among_those_of_a_model_is_refused(small, tmp_path):
    path = small.with_suffix(".safetensors")
    with safe_open(path, framework="pt") as file:
        about = file.metadata()
    save_file(load_file(path) | {"hidden": torch.zeros(1)}, tmp_path / "more.safetensors", about)
    with pytest.raises(CheckpointError, match="its list of layers is not that of its tensors"):
        load_model(tmp_path / "more.safetensors", CPU)


def test_what_does_not_fit_is_said_by_layer():
    expected = {"fc6.weight": torch.zeros(2, 3), "fc6.bias": torch.zeros(2), "score.bias": torch.zeros(1)}
    assert checkpoint.misfit(dict(expected), expected) == ""
    found = {"fc6.weight": torch.zeros(2, 4), "fc6.bias": torch.zeros(2), "extra": torch.zeros(1)}
    assert checkpoint.misfit(found, expected) == (
        "it lacks score.bias; it has too many: extra; fc6.weight is (2, 4) and should be (2, 3)"
    )
    many = {f"layer{i}": torch.zeros(1) for i in range(6)}
    assert checkpoint.misfit({}, many) == "it lacks layer0, layer1, layer2, layer3 and 2 more"


@pytest.mark.parametrize("change", ["lacks", "extra", "shape"])
def test_safetensors_that_fit_no_net_are_refused_naming_the_layer(small, tmp_path, change):
    content = checkpoint.load(small, "model")[0]
    state = content["state_dict"]
    if change == "lacks":
        del state["score_fr.bias"]
    elif change == "extra":
        state["score_pool2.bias"] = torch.zeros(1)
    else:
        state["score_fr.bias"] = torch.zeros(7)
    checkpoint.save(tmp_path / "other.safetensors", "model", content)
    layer = "score_pool2" if change == "extra" else "score_fr"
    with pytest.raises(CheckpointError, match=rf"other\.safetensors does not fit .*{layer}\.bias"):
        load_model(tmp_path / "other.safetensors", CPU)


# Refusals


@pytest.mark.parametrize(("kind", "wrong"), [("safetensors", nan), ("safetensors", inf), ("pt2", 2e-4)])
def test_an_export_that_computes_something_else_is_not_left_behind(tmp_path, small, monkeypatch, kind, wrong):
    dest = tmp_path / f"net.{kind}"
    dest.write_text("what was there")
    monkeypatch.setattr(export, "relative_difference", lambda *_: wrong)
    with pytest.raises(ExportError, match=f"as {kind} differs from the model by .* nothing was written"):
        export_model(small, dest, kind)
    assert [path.name for path in tmp_path.iterdir()] == [dest.name]
    assert dest.read_text() == "what was there"


def test_the_difference_is_relative_to_the_largest_score_and_nan_if_any_score_is():
    def constant(value: float) -> export.Net:
        return lambda image: torch.full((len(image), 2, *image.shape[2:]), value)

    assert export.relative_difference(constant(4.0), constant(5.0)) == 0.25
    assert export.relative_difference(constant(0.0), constant(0.0)) == 0
    assert export.relative_difference(constant(0.0), constant(1.0)) == 1
    assert isnan(export.relative_difference(constant(1.0), constant(nan)))
    assert isnan(export.relative_difference(constant(nan), constant(1.0)))
    assert export.relative_difference(constant(1.0), lambda _: torch.ones(1)) == inf


def test_a_model_of_numbers_that_are_none_is_not_exported(tmp_path):
    model_file(tmp_path / "net.pt", width=0.02, padding="tight")
    content = checkpoint.load(tmp_path / "net.pt", "model")[0]
    content["state_dict"]["score_fr.bias"][0] = nan
    checkpoint.save(tmp_path / "nan.pt", "model", content)
    with pytest.raises(ExportError, match="differs from the model by nan"):
        export_model(tmp_path / "nan.pt", tmp_path / "nan.safetensors", "safetensors")


def test_what_cannot_be_exported_is_refused_with_a_remedy(tmp_path, small, monkeypatch):
    with pytest.raises(ExportError, match="unknown kind 'tflite'; known: onnx, pt2, safetensors"):
        export_model(small, tmp_path / "a.tflite", "tflite")
    with pytest.raises(ExportError, match=r"a\.pt must end in \.onnx"):
        export_model(small, tmp_path / "a.pt", "onnx")
    with pytest.raises(CheckpointError, match="is missing"):
        export_model(tmp_path / "none.pt", tmp_path / "a.onnx", "onnx")
    with pytest.raises(CheckpointError, match="cannot be loaded as weights alone"):
        export_model(small.with_suffix(".onnx"), tmp_path / "a.onnx", "onnx")
    (tmp_path / "file").touch()
    with pytest.raises(ExportError, match=r"cannot be written: (Not a directory|File exists)"):
        export_model(small, tmp_path / "file" / "a.pt2", "pt2")
    monkeypatch.setattr(export, "MAX_ONNX_BYTES", 1000)
    with pytest.raises(ExportError, match=r"at most 1000 bytes, the weights have .* export pt2 instead"):
        export_model(small, tmp_path / "a.onnx", "onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
