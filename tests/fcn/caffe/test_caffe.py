"""Caffe's files, held against two other readers: OpenCV's importer runs them, google.protobuf parses them."""

import struct
import tracemalloc
from contextlib import suppress
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML
from torch import Tensor

import fcn.caffe.caffemodel
from fcn.caffe.caffemodel import CaffeError, Layer, read_caffemodel, write_caffemodel, write_prototxt
from fcn.caffe.read import describe, to_state_dict
from fcn.caffe.write import MAX_BORDER, describe_pixels, to_layers
from fcn.model import FCN, aligned
from pipeline.errors import CheckpointError, UserError
from pipeline.evaluation.scoring import load_model
from pipeline.export.caffe import VOC_CLASSES, export_caffe, import_caffemodel
from pipeline.models import checkpoint

SMALL = {"num_classes": 3, "width": 1 / 64}
NETS = {
    "fcn32s": SMALL | {"stride": 32},
    "fcn16s": SMALL | {"stride": 16},
    "fcn8s": SMALL | {"stride": 8},
    "at-once": SMALL | {"stride": 8, "at_once": True},
    "learned": SMALL | {"stride": 8, "learn_upscore": True},
    "tight 32s": SMALL | {"stride": 32, "padding": "tight"},
    "tight 16s": SMALL | {"stride": 16, "padding": "tight"},
    "tight 8s": SMALL | {"stride": 8, "padding": "tight"},
    "batch norm": SMALL | {"stride": 8, "batch_norm": True, "padding": "tight", "fc6_kernel": 3},
    "fc6 3x3": SMALL | {"stride": 8, "fc6_kernel": 3},
    "max fusion": SMALL | {"stride": 8, "fusion": "max"},
    "intermediate": SMALL | {"stride": 16, "learn_upscore": "intermediate"},
    "alexnet": SMALL | {"stride": 32, "backbone": "caffenet"},
    "alexnet tight 8s": SMALL | {"stride": 8, "backbone": "caffenet", "padding": "tight"},
    "torchvision's alexnet": SMALL | {"stride": 16, "backbone": "alexnet"},
    "torchvision": SMALL | {"stride": 16, "pixels": "torchvision"},
}
# Odd and even, tiny and wide. OpenCV cannot pool a map of one cell, which tight padding makes of less than 33 pixels
SIZES = [(33, 47), (64, 64), (101, 57), (40, 200), (161, 90)]


def random_net(**options) -> FCN:
    """A net whose every weight counts, as large at its end as at its beginning; upsampling as it is built."""
    torch.manual_seed(0)
    model = FCN(**options).eval()
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 2)
            elif tensor.ndim > 1 and (not name.startswith("upscore") or options.get("learn_upscore")):
                tensor.normal_(0, tensor[0].numel() ** -0.5)
            elif tensor.is_floating_point() and not name.startswith("upscore"):
                tensor.normal_()
    return model


def exported(model: FCN) -> tuple[bytes, str]:
    layers = to_layers(model)
    return write_caffemodel("net", layers), write_prototxt("net", layers, describe_pixels(model))


@cache
def small_file(name: str) -> bytes:
    return exported(random_net(**NETS[name]))[0]


def reread(data: bytes, **options) -> dict[str, Tensor]:
    layers = read_caffemodel(data)
    with torch.device("meta"):
        model = FCN(**(describe(layers).options | options))
    return to_state_dict(layers, model)


def with_layers(layers: list[Layer], **changed: tuple[Tensor, ...] | None) -> list[Layer]:
    """The layers with other blobs by name; None takes one away."""
    kept = [layer for layer in layers if layer.name not in changed]
    return kept + [Layer(name, "Convolution", blobs) for name, blobs in changed.items() if blobs is not None]


# --- other readers


def check_against_opencv(model: FCN, sizes: list[tuple[int, int]]):
    cv2 = pytest.importorskip("cv2", reason="opencv-python-headless is not installed")
    data, text = exported(model)
    net = cv2.dnn.readNetFromCaffe(np.frombuffer(text.encode(), np.uint8), np.frombuffer(data, np.uint8))
    for height, width in sizes:
        image = torch.randint(0, 256, (1, 3, height, width), dtype=torch.uint8)
        with torch.inference_mode():
            expected = model(image)
            net.setInput(model.backbone.pixels(image).numpy())
        found = torch.from_numpy(net.forward("score"))
        assert found.shape == expected.shape
        assert expected.std() > 0.05 * expected.abs().max()  # there is something to compare
        assert (found - expected).abs().max() <= 1e-3 * expected.abs().max(), (height, width)


@pytest.mark.parametrize("name", NETS)
def test_opencv_computes_the_same_scores_from_what_we_write(name: str):
    tiny = [] if NETS[name].get("padding") == "tight" else [(1, 1), (14, 23)]
    check_against_opencv(random_net(**NETS[name]), SIZES + tiny)


@pytest.mark.slow
def test_opencv_computes_the_same_scores_at_full_width():
    check_against_opencv(random_net(stride=8), [(48, 64)])


def caffe_messages():
    """google.protobuf's own classes for the part of caffe.proto that is used here."""
    pytest.importorskip("google.protobuf", reason="protobuf is not installed")
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    kinds = {"string": 9, "int64": 3, "int32": 5, "float": 2, "double": 1}
    repeated = {"dim", "data", "double_data", "blobs", "layer", "layers", "bottom", "top"}
    file = descriptor_pb2.FileDescriptorProto(name="caffe.proto", package="caffe", syntax="proto2")
    for message, fields in {
        "BlobShape": {"dim": (1, "int64")},
        "BlobProto": {
            **{name: (i, "int32") for i, name in enumerate(("num", "channels", "height", "width"), 1)},
            **{"data": (5, "float"), "shape": (7, "BlobShape"), "double_data": (8, "double")},
        },
        "LayerParameter": {
            **{"name": (1, "string"), "type": (2, "string"), "bottom": (3, "string"), "top": (4, "string")},
            "blobs": (7, "BlobProto"),
        },
        "V1LayerParameter": {"name": (4, "string"), "type": (5, "int32"), "blobs": (6, "BlobProto")},
        "NetParameter": {
            **{"name": (1, "string"), "layers": (2, "V1LayerParameter"), "layer": (100, "LayerParameter")}
        },
    }.items():
        described = file.message_type.add(name=message)
        for name, (number, kind) in fields.items():
            field = described.field.add(name=name, number=number, label=3 if name in repeated else 1)
            if kind in kinds:
                field.type = kinds[kind]
                field.options.packed = name in ("dim", "data", "double_data")
            else:
                field.type, field.type_name = 11, f".caffe.{kind}"
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("caffe.NetParameter"))


def test_protobuf_reads_what_we_write():
    layers = [
        Layer("conv", "Convolution", (torch.randn(2, 3, 5, 5), torch.randn(2)), ("data",), "conv"),
        Layer("relu", "ReLU", (), ("conv",), "conv"),
    ]
    net = caffe_messages().FromString(write_caffemodel("name", layers))
    assert net.name == "name"
    assert [(layer.name, layer.type, *layer.bottom, *layer.top) for layer in net.layer] == [
        ("conv", "Convolution", "data", "conv"),
        ("relu", "ReLU", "conv", "conv"),
    ]
    assert not net.layer[1].blobs
    for blob, tensor in zip(net.layer[0].blobs, layers[0].blobs, strict=True):
        assert list(blob.shape.dim) == list(tensor.shape)
        assert torch.equal(torch.tensor(list(blob.data)), tensor.flatten())


@pytest.mark.parametrize("is_double", [False, True])
@pytest.mark.parametrize("is_v1", [False, True])
def test_we_read_what_protobuf_writes(is_v1: bool, is_double: bool):
    net = caffe_messages()(name="a net")
    layer = (net.layers if is_v1 else net.layer).add(name="fc6", type=14 if is_v1 else "InnerProduct")
    for numbers in ([1.5, -2.0, 3.0, 0.25, 7.0, 300.0], [0.5, -0.5]):
        blob = layer.blobs.add()
        (blob.double_data if is_double else blob.data).extend(numbers)
    layer.blobs[0].num = layer.blobs[0].channels = 1
    layer.blobs[0].height, layer.blobs[0].width = 2, 3
    layer.blobs[1].shape.dim.append(2)
    (net.layers if is_v1 else net.layer).add(name="loss")
    fc6, loss = read_caffemodel(net.SerializeToString())
    assert (fc6.name, fc6.type, loss.name, loss.blobs) == ("fc6", "InnerProduct", "loss", ())
    dtype = torch.float64 if is_double else torch.float32
    assert torch.equal(fc6.blobs[0], torch.tensor([[[[1.5, -2, 3], [0.25, 7, 300]]]], dtype=dtype))
    assert torch.equal(fc6.blobs[1], torch.tensor([0.5, -0.5], dtype=dtype))


def test_numbers_that_are_not_packed_are_read_too():
    numbers = b"".join(bytes([5 << 3 | 5]) + struct.pack("<f", value) for value in (1.0, 2.0))
    blob = b"\x3a\x04\x08\x02\x08\x01" + numbers  # shape: dim 2, dim 1, each a field of its own
    layer = b"\x0a\x01c" + b"\x3a" + bytes([len(blob)]) + blob
    (found,) = read_caffemodel(b"\xa2\x06" + bytes([len(layer)]) + layer)
    assert found.name == "c"
    assert found.blobs[0].tolist() == [[1.0], [2.0]]


# --- damaged and foreign bytes


@cache
def tiny_file() -> bytes:
    """Each byte of which matters."""
    blobs = (torch.tensor([[1.0, 2.0]]), torch.tensor([3.0]))
    return write_caffemodel("n", [Layer("a", "Convolution", blobs), Layer("b", "ReLU", (), ("a",), "a")])


def read_or_refuse(data: bytes) -> list[Layer]:
    """Reads within memory in proportion to the bytes; only a CaffeError may come."""
    tracemalloc.start()
    try:
        return read_caffemodel(data)
    except CaffeError:
        return []
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 50_000 + 100 * len(data)


@pytest.mark.parametrize("keep", range(len(tiny_file())))
def test_a_file_cut_anywhere_is_refused_or_lacks_what_was_cut(keep: int):
    found = read_or_refuse(tiny_file()[:keep])
    assert len(found) < 2


@given(st.data())
def test_a_changed_byte_never_crashes_the_reader(data: st.DataObject):
    changed = bytearray(tiny_file())
    for _ in range(data.draw(st.integers(1, 3))):
        changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    layers = read_or_refuse(bytes(changed))
    if layers:  # what was read, if it was, is refused by name or a network
        with pytest.raises(CaffeError, match="no layers conv1_1"):
            describe(layers)


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(data: bytes):
    read_or_refuse(data)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_a_changed_byte_of_a_whole_net_is_read_or_refused(data: st.DataObject):
    changed = bytearray(small_file("fcn8s"))
    for _ in range(data.draw(st.integers(1, 3))):
        changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    with suppress(ValueError):
        reread(bytes(changed))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"<!DOCTYPE html><html>not found</html>",
        b"\x89HDF\r\n\x1a\n" + bytes(50),  # Caffe's other format, .caffemodel.h5
        b"PK\x03\x04" + bytes(50),  # torch.save
        b"name: 'net' layer { }",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n",
        bytes(100),
        b"\xff" * 100,
    ],
)
def test_a_foreign_file_is_refused(data: bytes):
    with pytest.raises(CaffeError, match=r"no \.caffemodel|truncated|damaged"):
        read_caffemodel(data)


def field(number: int, inner: bytes) -> bytes:
    out = fcn.caffe.caffemodel._encoded(number << 3 | 2) + fcn.caffe.caffemodel._encoded(len(inner))
    return out + inner


def huge(*dims: int) -> bytes:
    """A layer with a blob that says it is large and holds one number."""
    shape = field(7, field(1, b"".join(map(fcn.caffe.caffemodel._encoded, dims))))
    return field(100, field(1, b"conv1_1") + field(7, shape + field(5, struct.pack("<f", 1))))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (huge(2**40), r"'conv1_1', blob 0 is of shape \[1099511627776\] but has 4 bytes"),
        (huge(2**63, 2**63), "but has 4 bytes"),
        (huge(2**64 - 1), "but has 4 bytes"),  # -1 as protobuf writes it
        (huge(0), "but has 4 bytes"),
        (huge(*[1] * 33), "more than 32 dimensions"),
        (field(100, b"\xff" * 11), "more than 64 bits"),
        (field(100, b"\x0a\xff\xff\xff\xff\x07"), "ends 2147483647 bytes before its field 1 does"),
        (field(100, field(1, b"\xff")), "no UTF-8"),
        (field(100, b"\x08\x05"), "number 5 where bytes belong"),
        (field(100, field(7, field(1, b"abc") + field(5, bytes(4)))), "3 bytes where a number belongs"),
        (field(100, field(7, b"")), "has 0 bytes"),
        (field(100, field(7, field(5, bytes(5)))), "has 5 bytes"),
        (field(2, field(1, b"")), "upgrade_net_proto_binary"),
        (field(100, b"") * 10_001, "more than 10000 layers"),
        (field(100, field(7, field(5, bytes(4))) * 101), "more than 100 blobs"),
    ],
)
def test_bytes_that_promise_what_they_do_not_hold_are_refused(data: bytes, message: str):
    with pytest.raises(CaffeError, match=message):
        read_caffemodel(data)


def test_more_bytes_than_protobuf_allows_are_refused_both_ways(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(fcn.caffe.caffemodel, "MAX_BYTES", 20)
    with pytest.raises(CaffeError, match="more than the 20 that protobuf allows"):
        read_caffemodel(bytes(21))
    with pytest.raises(CaffeError, match="more than the 20 that protobuf allows"):
        write_caffemodel("net", [Layer("conv", "Convolution", (torch.zeros(9),))])


# --- our networks and Caffe's


@pytest.mark.parametrize("name", NETS)
def test_a_net_that_went_to_caffe_and_back_is_the_same_to_the_bit(name: str):
    options = NETS[name]
    before = random_net(**options).state_dict()
    asked = {key: options[key] for key in ("learn_upscore", "pixels") if key in options}
    after = reread(small_file(name), **asked)
    assert after.keys() == before.keys()
    assert all(torch.equal(after[key], before[key]) for key in before)


@pytest.mark.parametrize("name", NETS)
def test_the_layers_tell_which_net_they_are(name: str):
    is_fcn, found = describe(read_caffemodel(small_file(name)))
    expected = {key: value for key, value in NETS[name].items() if key not in ("learn_upscore", "pixels")}
    assert is_fcn
    assert found | expected == found


def test_weights_that_do_not_say_how_they_pad_are_the_references():
    layers = [layer._replace(params={}) for layer in read_caffemodel(small_file("tight 32s"))]
    assert describe(layers).options["padding"] == "reference"


def test_a_padding_that_is_none_of_ours_is_refused():
    layers = [
        layer._replace(params={"convolution_param": {"pad": 1}}) if layer.name == "conv1_1" else layer
        for layer in read_caffemodel(small_file("fcn32s"))
    ]
    with pytest.raises(CaffeError, match="conv1_1 pads by 1; known: None, 100, 4, 36"):
        describe(layers)


def test_the_prototxt_crops_where_the_reference_release_does():
    def offsets(name: str) -> list[int]:
        lines = exported(random_net(**NETS[name]))[1].splitlines()
        return [int(line.split()[1]) for line in lines if line.strip().startswith("offset:")]

    assert offsets("fcn32s") == [19]
    assert offsets("fcn16s") == [5, 27]
    assert offsets("fcn8s") == offsets("at-once") == [5, 9, 31]


def test_the_prototxt_says_what_the_net_expects_of_its_pixels():
    """The reference release's mean is (104.00699, 116.66877, 122.67892), B, G, R (voc_layers.py)."""
    assert (
        exported(random_net(**NETS["fcn32s"]))[1]
        .splitlines()[0]
        .startswith("# data: B, G, R in 0..255, minus (104.00699, 116.66877, 122.67892)")
    )


def test_fixed_upsampling_is_written_as_the_references_full_kernels():
    """(C, C, k, k) with the bilinear kernel on the diagonal (reference surgery.py, interp)."""
    (upscore,) = [layer for layer in read_caffemodel(small_file("fcn32s")) if layer.name == "upscore"]
    (weight,) = upscore.blobs
    assert weight.shape == (3, 3, 64, 64)
    for i in range(3):
        for j in range(3):
            assert weight[i, j].any() == (i == j)


def test_upsampling_that_mixes_classes_needs_full_kernels():
    with pytest.raises(CaffeError, match=r"upscore2\.weight mixes classes.*import it with learn_upscore"):
        reread(small_file("learned"))


def test_fixed_upsampling_can_be_taken_over_to_be_learned():
    """And one that has a kernel a class (Caffe's group) as well."""
    full = reread(small_file("fcn32s"), learn_upscore=True)["upscore.weight"]
    grouped = reread(small_file("fcn32s"))["upscore.weight"]
    assert full.shape == (3, 3, 64, 64)
    assert torch.equal(full[torch.arange(3), torch.arange(3)], grouped[:, 0])
    layers = with_layers(read_caffemodel(small_file("fcn32s")), upscore=(grouped,))
    assert torch.equal(reread(write_caffemodel("n", layers), learn_upscore=True)["upscore.weight"], full)


def test_an_at_once_net_with_other_scales_is_refused():
    layers = with_layers(read_caffemodel(small_file("at-once")), scale_pool4=(torch.full((8,), 0.02),))
    with pytest.raises(CaffeError, match=r"scale_pool4 must multiply by 0\.01 alone"):
        reread(write_caffemodel("net", layers))
    with pytest.raises(CaffeError, match="lacking scale_pool3; not known none"):
        reread(write_caffemodel("net", with_layers(read_caffemodel(small_file("at-once")), scale_pool3=None)))


def test_batch_norms_sums_are_divided_by_their_factor():
    """Caffe's BatchNorm keeps sums of means and what to divide them by."""
    layers = read_caffemodel(small_file("batch norm"))
    mean, variance = next(layer.blobs[:2] for layer in layers if layer.name == "bn1_1")
    layers = with_layers(layers, bn1_1=(4 * mean, 4 * variance, torch.tensor([4.0])))
    state = reread(write_caffemodel("net", layers))
    assert torch.equal(state["backbone.bn1_1.running_mean"], mean)
    layers = with_layers(layers, bn1_1=(mean, variance, torch.tensor([0.0])))
    with pytest.raises(CaffeError, match="layer bn1_1 is no BatchNorm"):
        reread(write_caffemodel("net", layers))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"conv3_2": None}, "lacking conv3_2; not known none"),
        ({"conv9_9": (torch.zeros(1),)}, "lacking none; not known conv9_9"),
        ({"score_fr": (torch.zeros(3, 64, 1, 1),)}, r"score_fr has 1 blobs, 2 expected: weight, bias"),
        (
            {"conv3_2": (torch.zeros(4, 4, 5, 5), torch.zeros(4))},
            r"conv3_2\.weight is \(4, 4, 5, 5\) in the \.caffemodel, \(4, 4, 3, 3\) here",
        ),
        ({"score_fr": (torch.zeros(20_000, 1), torch.zeros(20_000))}, "at most 1000 are believed"),
        ({"conv1_1": None, "fc6": None}, "no layers conv1_1"),
    ],
)
def test_layers_of_another_net_are_refused_by_name(changed: dict, message: str):
    layers = with_layers(read_caffemodel(small_file("fcn32s")), **changed)
    with pytest.raises(CaffeError, match=message):
        reread(write_caffemodel("net", layers))


def test_what_caffe_has_no_layer_for_is_refused():
    model = random_net(**NETS["fcn32s"])
    model.backbone.pool1.ceil_mode = False
    with pytest.raises(CaffeError, match="no layer for pool1"):
        to_layers(model)
    with pytest.raises(CaffeError, match="Caffe has no layer for"):
        to_layers(random_net(num_classes=3, stride=32, backbone="googlenet"))
    with pytest.raises(CaffeError, match="no layer that pads with -inf"):
        to_layers(random_net(**SMALL, fusion="max", padding="tight"))


@pytest.mark.parametrize("backbone", ["vgg16", "caffenet", "alexnet"])
@pytest.mark.parametrize("padding", ["reference", "tight"])
def test_the_border_of_a_skip_is_wide_enough_for_every_image(
    backbone: str, padding: str, monkeypatch: pytest.MonkeyPatch
):
    """What `aligned` would have to fill in behind a map, for every width up to where all strides have come round."""
    lacking: dict[int, int] = {}

    def spy(source: Tensor, offset: int, like: Tensor, **options) -> Tensor:
        lacking[offset] = max(lacking.get(offset, -999), offset + like.shape[-1] - source.shape[-1])
        return aligned(source, offset, like, **options)

    monkeypatch.setattr("fcn.model.aligned", spy)
    with torch.device("meta"):
        model = FCN(3, 8, backbone, padding, width=1 / 64).eval()
        for width in range(1, 72):
            model(torch.zeros(1, 3, 1, width))
    skips = {model.offset_pool4, model.offset_pool3}
    assert all(lacking[offset] <= max(0, MAX_BORDER - offset) for offset in skips)
    assert all(-offset <= max(0, MAX_BORDER - offset) for offset in skips)
    assert lacking[model.offset_score] <= 0 < model.offset_score


# --- files


def classifier(backbone: str) -> bytes:
    """As VGG_ILSVRC_16_layers.caffemodel: fully connected matrices, every shape filled up to four."""
    layers = []
    for name, module in random_net(**SMALL, backbone=backbone).backbone.named_children():
        if isinstance(module, torch.nn.Conv2d):
            assert module.bias is not None
            weight, bias = module.weight.detach(), module.bias.detach()
            if name.startswith("fc"):
                weight = weight.reshape(1, 1, len(weight), -1)
            layers.append(Layer(name, "InnerProduct", (weight, bias.reshape(1, 1, 1, -1))))
    fc8 = (torch.zeros(1, 1, 1000, 64), torch.zeros(1, 1, 1, 1000))
    return write_caffemodel("classifier", [*layers, Layer("fc8", "InnerProduct", fc8)])


@pytest.mark.parametrize("backbone", ["vgg16", "caffenet"])
def test_an_imagenet_classifier_becomes_a_backbone_without_its_last_layer(backbone: str, tmp_path: Path):
    (tmp_path / "net.caffemodel").write_bytes(classifier(backbone))
    kind, options = import_caffemodel(tmp_path / "net.caffemodel", tmp_path / "backbone.pt")
    assert (kind, options["backbone"], options["pixels"]) == ("backbone", backbone, "caffe")
    content, _ = checkpoint.load(tmp_path / "backbone.pt", "backbone")
    assert content["source"] == "net.caffemodel"
    trunk = FCN(**SMALL, backbone=backbone).backbone
    trunk.load_state_dict(content["state_dict"])
    for name, tensor in random_net(**SMALL, backbone=backbone).backbone.state_dict().items():
        assert torch.equal(trunk.state_dict()[name], tensor), name


def save_model(path: Path, options: dict) -> FCN:
    model = random_net(**options)
    content = {"model": options, "classes": ["a", "b", "c"], "lineage": {}, "state_dict": model.state_dict()}
    checkpoint.save(path, "model", content)
    return model


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


def test_what_the_file_says_can_be_overruled(tmp_path: Path):
    (tmp_path / "net.caffemodel").write_bytes(small_file("fcn32s"))
    _, options = import_caffemodel(
        tmp_path / "net.caffemodel", tmp_path / "a.pt", classes="abc", padding="tight", pixels="torchvision"
    )
    assert (options["padding"], options["pixels"]) == ("tight", "torchvision")


def test_21_classes_are_voc_unless_said_otherwise(tmp_path: Path, root: Path):
    profile = YAML(typ="safe").load((root / "profiles" / "voc.yaml").read_text(encoding="utf-8"))
    assert list(VOC_CLASSES) == profile["data"]["classes"]
    data, _ = exported(random_net(**(SMALL | {"num_classes": 21, "stride": 32})))
    (tmp_path / "net.caffemodel").write_bytes(data)
    import_caffemodel(tmp_path / "net.caffemodel", tmp_path / "net.pt")
    assert checkpoint.load(tmp_path / "net.pt", "model")[0]["classes"] == profile["data"]["classes"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "tells 3 classes apart, 0 names were given"),
        ({"classes": ["a", "b"]}, "tells 3 classes apart, 2 names were given"),
        ({"classes": "abc", "pixels": "bgr"}, "unknown pixel convention 'bgr'"),
        ({"classes": "abc", "padding": "loose"}, "unknown padding 'loose'"),
    ],
)
def test_what_the_file_does_not_tell_must_be_told(tmp_path: Path, options: dict, message: str):
    (tmp_path / "net.caffemodel").write_bytes(small_file("fcn32s"))
    with pytest.raises(CheckpointError, match=message):
        import_caffemodel(tmp_path / "net.caffemodel", tmp_path / "net.pt", **options)
    assert not (tmp_path / "net.pt").exists()


def test_a_file_that_is_missing_too_large_or_damaged_is_named(tmp_path: Path):
    path, dest = tmp_path / "net.caffemodel", tmp_path / "net.pt"
    with pytest.raises(CheckpointError, match=r"net\.caffemodel cannot be read: No such file"):
        import_caffemodel(path, dest)
    path.write_bytes(small_file("fcn32s")[:-100])
    with pytest.raises(CheckpointError, match=r"net\.caffemodel: .*truncated"):
        import_caffemodel(path, dest)
    with path.open("wb") as file:
        file.truncate(2**32)  # sparse: takes no room
    with pytest.raises(CheckpointError, match=r"has 4294967296 bytes; a \.caffemodel has at most"):
        import_caffemodel(path, dest)
    assert not dest.exists()


def test_an_export_that_cannot_be_written_leaves_nothing(tmp_path: Path):
    save_model(tmp_path / "net.pt", NETS["fcn32s"])
    (tmp_path / "file").write_bytes(small_file("fcn32s"))
    with pytest.raises(UserError, match="cannot be written"):
        import_caffemodel(tmp_path / "file", tmp_path / "file" / "net.pt", classes="abc")
    with pytest.raises(UserError, match="cannot be written"):
        export_caffe(tmp_path / "net.pt", tmp_path / "file" / "net")
    save_model(tmp_path / "max.pt", SMALL | {"fusion": "max", "padding": "tight"})
    with pytest.raises(CheckpointError, match=r"max\.pt: Caffe has no layer that pads with -inf"):
        export_caffe(tmp_path / "max.pt", tmp_path / "net")
    checkpoint.save(tmp_path / "b.pt", "backbone", {})
    with pytest.raises(CheckpointError, match="holds a backbone, expected a model"):
        export_caffe(tmp_path / "b.pt", tmp_path / "net")
    assert {path.name for path in tmp_path.iterdir()} == {"net.pt", "max.pt", "b.pt", "file"}
