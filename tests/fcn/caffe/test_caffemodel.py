"""A .caffemodel's bytes, held against google.protobuf, and refused where they are damaged."""

import struct
import tracemalloc
from contextlib import suppress

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fcn.caffe import caffemodel
from fcn.caffe.caffemodel import CaffeError, Layer, read_caffemodel, write_caffemodel
from fcn.caffe.read import describe
from tests import caffe_nets


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
            entry = described.field.add(name=name, number=number, label=3 if name in repeated else 1)
            if kind in kinds:
                entry.type = kinds[kind]
                entry.options.packed = name in ("dim", "data", "double_data")
            else:
                entry.type, entry.type_name = 11, f".caffe.{kind}"
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


def varint(number: int) -> bytes:
    return (
        b"" if number == 0 else bytes([number & 0x7F | (0x80 if number > 0x7F else 0)]) + varint(number >> 7)
    )


def field(number: int, content: bytes) -> bytes:
    """A field of bytes in protobuf's wire format."""
    return varint(number << 3 | 2) + (varint(len(content)) or b"\0") + content


def float_field(number: int, value: float) -> bytes:
    return varint(number << 3 | 5) + struct.pack("<f", value)


def test_numbers_that_are_not_packed_are_read_too():
    blob = field(7, b"\x08\x02\x08\x01") + float_field(5, 1.0) + float_field(5, 2.0)  # dim 2 and dim 1
    (layer,) = read_caffemodel(field(100, field(1, b"c") + field(7, blob)))
    assert layer.name == "c"
    assert layer.blobs[0].tolist() == [[1.0], [2.0]]


BLOBS = (torch.tensor([[1.0, 2.0]]), torch.tensor([3.0]))
TINY = write_caffemodel("n", [Layer("a", "Convolution", BLOBS), Layer("b", "ReLU", (), ("a",), "a")])


def read_or_refuse(data: bytes) -> list[Layer]:
    """The layers, or none after a CaffeError. Reading takes memory in proportion to the bytes."""
    tracemalloc.start()
    try:
        return read_caffemodel(data)
    except CaffeError:
        return []
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 50_000 + 100 * len(data)


def test_a_file_cut_anywhere_is_refused_or_lacks_the_layers_cut_off():
    assert all(len(read_or_refuse(TINY[:keep])) < 2 for keep in range(len(TINY)))


def damaged(data: st.DataObject, content: bytes) -> bytes:
    """The content with one to three bytes changed."""
    changed = bytearray(content)
    for _ in range(data.draw(st.integers(1, 3))):
        changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    return bytes(changed)


@given(st.data())
def test_a_changed_byte_never_crashes_the_reader(data: st.DataObject):
    if layers := read_or_refuse(damaged(data, TINY)):
        with pytest.raises(CaffeError, match="conv1_1"):
            describe(layers)


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(data: bytes):
    read_or_refuse(data)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_a_changed_byte_of_a_whole_net_is_read_or_refused(data: st.DataObject):
    with suppress(ValueError):  # a CaffeError, or FCN's about its arguments
        caffe_nets.state_dict(damaged(data, caffe_nets.caffemodel("fcn8s")))


def huge(*dims: int) -> bytes:
    """A layer with a blob of a large shape that holds one number."""
    shape = field(7, field(1, b"".join(varint(side) or b"\0" for side in dims)))
    return field(100, field(1, b"conv1_1") + field(7, shape + field(5, bytes(4))))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "0 bytes"),
        (b"<!DOCTYPE html><html>not found</html>", "truncated|damaged"),
        (b"\x89HDF\r\n\x1a\n" + bytes(50), "58 bytes"),  # Caffe's other format, .caffemodel.h5
        (b"PK\x03\x04" + bytes(50), "truncated|damaged"),  # torch.save
        (b"name: 'net' layer { }", "truncated|damaged"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "truncated|damaged"),
        (bytes(100), "100 bytes"),
        (b"\xff" * 100, "damaged"),
        (huge(2**40), r"'conv1_1', blob 0 .*\[1099511627776\].* 4 bytes"),
        (huge(2**63, 2**63), "4 bytes"),
        (huge(2**64 - 1), "4 bytes"),  # -1 as protobuf writes it
        (huge(0), "4 bytes"),
        (huge(*[1] * 33), "32 dimensions"),
        (field(100, b"\xff" * 11), "64 bits"),
        (field(100, b"\x0a\xff\xff\xff\xff\x07"), "2147483647 bytes before its field 1"),
        (field(100, field(1, b"\xff")), "UTF-8"),
        (field(100, b"\x08\x05"), "number 5 where bytes"),
        (field(100, field(7, field(1, b"abc") + field(5, bytes(4)))), "3 bytes where a number"),
        (field(100, field(7, b"")), "0 bytes"),
        (field(100, field(7, field(5, bytes(5)))), "5 bytes"),
        (field(2, field(1, b"")), "upgrade_net_proto_binary"),
        (field(100, b"") * 10_001, "10000 layers"),
        (field(100, field(7, field(5, bytes(4))) * 101), "100 blobs"),
    ],
)
def test_foreign_and_hostile_bytes_are_refused(data: bytes, message: str):
    with pytest.raises(CaffeError, match=message):
        read_caffemodel(data)


def test_more_bytes_than_protobuf_allows_are_refused_both_ways(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(caffemodel, "MAX_BYTES", 20)
    with pytest.raises(CaffeError, match=r"21 bytes .* 20"):
        read_caffemodel(bytes(21))
    with pytest.raises(CaffeError, match="more than the 20"):
        write_caffemodel("net", [Layer("conv", "Convolution", (torch.zeros(9),))])
