"""`fcn export`: other programs compute the model's scores from its exports."""

import json
import zipfile
from collections.abc import Callable
from math import inf, isnan, nan
from pathlib import Path

import onnxruntime
import pytest
import torch
from safetensors.torch import safe_open

from fcn.model import FCN
from pipeline.errors import CheckpointError, UserError
from pipeline.export import export
from pipeline.export.export import export_model
from pipeline.models import checkpoint
from pipeline.models.model_file import load_model

CPU = torch.device("cpu")
CLASSES = ["background", "chat", "été"]
LINEAGE = {"net": "fcn8s", "parent": None, "identity": "abc", "score": 0.1}
SIZES = [(1, 1), (7, 120), (33, 64), (97, 50), (65, 100)]
NETS = [
    {"stride": 8, "width": 0.05, "at_once": True, "fusion": "max", "learn_upscore": True, "padding": "tight"},
    {"stride": 8, "backbone": "mobilenet_v1", "width": 0.1},
]
SLOW_NETS = [
    {"stride": 16, "padding": "tight", "width": 0.03},
    {"stride": 32, "padding": "tight", "width": 0.03},
    {"stride": 8, "padding": "reference", "width": 0.03},
    {"stride": 32, "padding": "reference", "width": 0.03},
    {"stride": 16, "padding": "reference", "width": 0.03},
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


def write_model(path: Path, **options) -> FCN:
    """A random net, saved as training saves it."""
    torch.manual_seed(0)
    options = {"num_classes": 3, "score_init": "random"} | options
    model = FCN(**options).eval()
    for layer in model.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.running_var.uniform_(0.5, 2)
    content = {"model": options, "classes": CLASSES, "lineage": LINEAGE}
    checkpoint.save(path, "model", content | {"state_dict": dict(model.state_dict())})
    return model


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
        expected, score = model(image), exported(image)
    assert score.dtype == torch.float32
    assert score.shape == expected.shape
    assert (score - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    """An FCN-8s with each export of it beside it."""
    path = tmp_path_factory.mktemp("small") / "fcn8s.pt"
    write_model(path, padding="tight", width=0.02)
    for kind in export.KINDS:
        assert export_model(path, path.with_suffix(f".{kind}")) < 1e-5
    return path


@pytest.mark.parametrize("net", RUNS)
def test_an_export_gives_the_models_scores_on_every_size_and_batch(tmp_path, monkeypatch, net):
    model = write_model(tmp_path / "net.pt", **net)
    graph = export.traced(load_model(tmp_path / "net.pt", CPU)[0].requires_grad_(False))
    monkeypatch.setattr(export, "traced", lambda _: graph)  # one for both kinds: tracing takes half the time
    for kind, run in RUN.items():
        assert export_model(tmp_path / "net.pt", tmp_path / f"net.{kind}") < 1e-5
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


def test_every_export_has_the_model_files_metadata(small):
    about, digest = load_model(small, CPU)[1:]
    assert about.pop("trained_on") is None
    session = onnxruntime.InferenceSession(small.with_suffix(".onnx"), providers=["CPUExecutionProvider"])
    onnx = session.get_modelmeta().custom_metadata_map
    extra = {export.METADATA: ""}
    torch.export.load(small.with_suffix(".pt2"), extra_files=extra)
    pt2 = json.loads(extra[export.METADATA])
    with safe_open(small.with_suffix(".safetensors"), framework="pt") as file:
        tensors = file.metadata()
    for metadata in (onnx, tensors):
        assert {key: json.loads(metadata[key]) for key in about} == about
    assert {key: pt2[key] for key in about} == about
    assert onnx["sha256"] == pt2["sha256"] == tensors["sha256"] == digest
    assert "uint8" in onnx["input"]
    assert onnx["input"] == pt2["input"]
    values = [
        (value.name, value.type, value.shape) for value in (*session.get_inputs(), *session.get_outputs())
    ]
    shape = ["batch", 3, "height", "width"]
    assert values == [("image", "tensor(uint8)", shape), ("score", "tensor(float)", shape)]


def test_no_export_holds_a_path_of_the_machine_that_wrote_it(small, root):
    with zipfile.ZipFile(small.with_suffix(".pt2")) as archive:
        parts = [archive.read(name) for name in archive.namelist()]
    for data in [*parts, *(small.with_suffix(f".{kind}").read_bytes() for kind in ("onnx", "safetensors"))]:
        assert str(root).encode() not in data
        assert b"site-packages" not in data


def test_torchs_messages_for_its_developers_are_hidden(tmp_path, small, capfd, recwarn):
    export_model(small, tmp_path / "net.onnx")  # pt2 is its first half
    captured = capfd.readouterr()
    assert (captured.out, captured.err, [str(warning.message) for warning in recwarn]) == ("", "", [])
    assert [path.name for path in tmp_path.iterdir()] == ["net.onnx"]


def test_a_safetensors_export_is_the_same_model_and_can_be_exported_again(small, tmp_path):
    theirs = small.with_suffix(".safetensors")
    export_model(theirs, tmp_path / "again.safetensors")
    digests = {checkpoint.load(path, "model")[1] for path in (small, theirs, tmp_path / "again.safetensors")}
    assert len(digests) == 1


# Refusals


@pytest.mark.parametrize(("kind", "wrong"), [("safetensors", nan), ("safetensors", inf), ("pt2", 2e-4)])
def test_an_export_that_computes_other_scores_is_not_left_behind(tmp_path, small, monkeypatch, kind, wrong):
    dest = tmp_path / f"net.{kind}"
    dest.write_text("what was there")
    monkeypatch.setattr(export, "relative_difference", lambda *_: wrong)
    with pytest.raises(UserError, match=f"{wrong:.1e}"):
        export_model(small, dest)
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


def test_a_model_with_nan_weights_is_not_exported(nan_model, tmp_path):
    with pytest.raises(UserError, match=r"nan\.pt .* nan "):
        export_model(nan_model, tmp_path / "nan.safetensors")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("source", "dest", "error", "fact"),
    [
        ("fcn8s.pt", "a.tflite", UserError, r"a\.tflite .*\.onnx .*\.pt2 .*\.safetensors"),
        ("fcn8s.pt", "a", UserError, r"/a .*\.onnx"),
        ("none.pt", "a.onnx", CheckpointError, r"none\.pt is missing"),
        ("fcn8s.onnx", "a.onnx", CheckpointError, r"fcn8s\.onnx "),
        ("fcn8s.pt", "file/a.pt2", UserError, r"a\.pt2 .*(Not a directory|File exists)"),
        ("fcn8s.pt", "a.onnx", UserError, "at most 1000 bytes"),
    ],
)
def test_a_model_or_destination_that_cannot_be_used_is_refused(
    small, tmp_path, monkeypatch, source, dest, error, fact
):
    (tmp_path / "file").touch()
    monkeypatch.setattr(export, "MAX_ONNX_BYTES", 1000)
    with pytest.raises(error, match=fact):
        export_model(small.with_name(source), tmp_path / dest)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
