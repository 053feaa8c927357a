"""Caffe's files without Caffe: a .caffemodel as layers with their blobs and back, and the prototxt beside it.

A .caffemodel is a NetParameter in protobuf's wire format; the field numbers are those of BVLC/caffe
src/caffe/proto/caffe.proto. This file converts bytes; read.py and write.py convert layers from and to a network.
"""

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor


class CaffeError(ValueError):
    """Bytes that are not a .caffemodel, or a network that cannot be converted from or to Caffe's."""


class Layer(NamedTuple):
    """One layer of a .caffemodel or a prototxt.

    A .caffemodel gives name, type, blobs and the numbers listed in PARAMS; the rest is for the prototxt.

    name: the layer's name.
    type: Caffe's name of the type, such as "Convolution".
    blobs: float tensors: weight, then bias.
    bottoms: names of the layer's inputs.
    top: name of the layer's output.
    params: all other fields of the prototxt: nested mappings, lists for repeated fields, strings for enum members.
    """

    name: str
    type: str
    blobs: tuple[Tensor, ...] = ()
    bottoms: tuple[str, ...] = ()
    top: str = ""
    params: Mapping[str, object] = {}


MAX_BYTES = 2**31 - 1  # of one message: protobuf's own limit
MAX_LAYERS = 10_000  # with the next limits: a hostile file cannot become many more objects than it has bytes
MAX_BLOBS = 100
MAX_DIMS = 32  # Caffe's kMaxBlobAxes

NET_NAME = 1
LAYER, LAYER_V1 = 100, 2  # V1: before 2015; VGG_ILSVRC_16_layers.caffemodel is one
NAME, TYPE, BOTTOM, TOP, BLOBS = 1, 2, 3, 4, 7
LAYER_V0, NAME_V1, TYPE_V1, BLOBS_V1 = 1, 4, 5, 6
TYPES_V1 = {
    4: "Convolution",
    14: "InnerProduct",
    39: "Deconvolution",
}  # the enum's types that hold weights here
LEGACY_DIMS = (1, 2, 3, 4)  # num, channels, height, width: every V1 blob has four
DATA, SHAPE, DOUBLE_DATA = 5, 7, 8
DIM = 1
# The parameters of a layer that are read and written: their field in a layer, in a V1 layer, and the fields in them
PARAMS = {
    "convolution_param": (
        *(106, 10),
        {"num_output": 1, "bias_term": 2, "pad": 3, "kernel_size": 4, "group": 5, "stride": 6},
    ),
    "eltwise_param": (110, 24, {"operation": 1}),
}
ENUMS = {"SUM": 1, "MAX": 2}  # of operation

VARINT, BITS64, BYTES, BITS32 = 0, 1, 2, 5  # wire types
Value = int | memoryview
Piece = bytes | bytearray


def read_caffemodel(data: bytes | memoryview) -> list[Layer]:
    """Return the layers in file order; blobs are float32 (or float64) copies.

    No more memory is allocated than the bytes fill.

    data: a .caffemodel in the format of 2015, or in V1 before it.

    Raises CaffeError if the bytes are truncated, damaged or of another format.
    """
    if len(data) > MAX_BYTES:
        raise CaffeError(f"{len(data)} bytes are more than the {MAX_BYTES} that protobuf allows")
    layers = []
    for number, value in _fields(memoryview(data), "the net"):
        if number in (LAYER, LAYER_V1):
            layers.append(_layer(_message(value, "the net"), number == LAYER_V1, f"layer {len(layers)}"))
        if len(layers) > MAX_LAYERS:
            raise CaffeError(f"more than {MAX_LAYERS} layers")
    if not any(layer.blobs for layer in layers):
        raise CaffeError(f"these {len(data)} bytes hold no layer with weights, so they are not a .caffemodel")
    return layers


def write_caffemodel(name: str, layers: Iterable[Layer]) -> bytes:
    """Return the net as bytes in the format of 2015, blobs as float32.

    Raises CaffeError if there are more bytes than protobuf allows.
    """
    pieces = _message_field(NET_NAME, [name.encode()])
    for layer in layers:
        inner = _message_field(NAME, [layer.name.encode()]) + _message_field(TYPE, [layer.type.encode()])
        for bottom in layer.bottoms:
            inner += _message_field(BOTTOM, [bottom.encode()])
        inner += _message_field(TOP, [layer.top.encode()]) if layer.top else []
        for name, param in layer.params.items():
            inner += _param_field(name, param) if isinstance(param, Mapping) and name in PARAMS else []
        for blob in layer.blobs:
            dims = b"".join(_encoded(side) for side in blob.shape)
            shape = _message_field(SHAPE, _message_field(DIM, [dims]))
            inner += _message_field(BLOBS, shape + _message_field(DATA, [_raw(blob)]))
        pieces += _message_field(LAYER, inner)
    if (size := sum(map(len, pieces))) > MAX_BYTES:
        raise CaffeError(f"the net takes {size} bytes, more than the {MAX_BYTES} that protobuf allows")
    return b"".join(pieces)


def write_prototxt(name: str, layers: Iterable[Layer], comment: str = "") -> str:
    """Return the net as protobuf text, below the lines of `comment`."""
    lines = [f"# {line}" for line in comment.splitlines()] + [f"name: {json.dumps(name)}"]
    for layer in layers:
        lines += ["layer {", f'  name: "{layer.name}"', f'  type: "{layer.type}"']
        lines += [f'  bottom: "{bottom}"' for bottom in layer.bottoms]
        lines += [f'  top: "{layer.top}"', *_text(layer.params, "  "), "}"]
    return "\n".join(lines) + "\n"


def _text(params: Mapping[str, object], indent: str) -> Iterator[str]:
    for key, value in params.items():
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, Mapping):
                yield f"{indent}{key} {{"
                yield from _text(item, indent + "  ")
                yield f"{indent}}}"
            else:
                yield f"{indent}{key}: {str(item).lower() if isinstance(item, bool) else item}"


# --- reading


def _layer(message: memoryview, is_v1: bool, where: str) -> Layer:
    name, kind, blobs, params = "", "", [], {}
    params_at = {at[is_v1]: (key, {n: k for k, n in names.items()}) for key, (*at, names) in PARAMS.items()}
    fields = (NAME_V1, TYPE_V1, BLOBS_V1) if is_v1 else (NAME, TYPE, BLOBS)
    for number, value in _fields(message, where):
        if is_v1 and number == LAYER_V0:
            raise CaffeError(
                f"{where} is in V0, the format before 2014; convert it with Caffe's upgrade_net_proto_binary"
            )
        if number == fields[0]:
            name = _string(value, where)
            where = f"layer {name!r}"
        elif number == fields[1]:
            kind = TYPES_V1.get(_integer(value, where), f"V1 {value}") if is_v1 else _string(value, where)
        elif number == fields[2]:
            blobs.append(_blob(_message(value, where), f"{where}, blob {len(blobs)}"))
            if len(blobs) > MAX_BLOBS:
                raise CaffeError(f"{where} has more than {MAX_BLOBS} blobs")
        elif number in params_at:
            key, names = params_at[number]
            fields_of_param = _fields(_message(value, where), f"{where}, {key}")
            params[key] = {names[n]: v for n, v in fields_of_param if n in names and isinstance(v, int)}
    return Layer(name, kind, tuple(blobs), params=params)


def _blob(message: memoryview, where: str) -> Tensor:
    shape: list[int] | None = None
    legacy: dict[int, int] = {}
    floats, doubles = bytearray(), bytearray()
    for number, value in _fields(message, where):
        if number == SHAPE:
            shape = _dims(_message(value, where), where)
        elif number in LEGACY_DIMS:
            legacy[number] = _integer(value, where)
        elif number in (
            DATA,
            DOUBLE_DATA,
        ):  # packed, or one number a field, which a reader must accept as well
            raw = floats if number == DATA else doubles
            raw += _message(value, where)
    if shape is None:
        shape = [legacy.get(number, 0) for number in LEGACY_DIMS] if legacy else []
    raw, dtype = (doubles, torch.float64) if doubles else (floats, torch.float32)
    num, rest = divmod(len(raw), dtype.itemsize)
    if rest or not num or num != math.prod(shape):
        raise CaffeError(f"{where} is of shape {shape} but has {len(raw)} bytes of {dtype} numbers")
    return torch.frombuffer(raw, dtype=dtype).reshape(shape)


def _dims(message: memoryview, where: str) -> list[int]:
    dims = []
    for number, value in _fields(message, where):
        if number != DIM:
            continue
        if isinstance(value, int):
            dims.append(value)
        position = 0
        while isinstance(value, memoryview) and position < len(value) and len(dims) <= MAX_DIMS:
            dim, position = _varint(value, position, where)
            dims.append(dim)
        if len(dims) > MAX_DIMS:
            raise CaffeError(f"{where} has more than {MAX_DIMS} dimensions")
    return dims


def _fields(message: memoryview, where: str) -> Iterator[tuple[int, Value]]:
    """Yield (field number, value) in order; the value of a varint is an int, of all others the bytes."""
    position = 0
    while position < len(message):
        key, position = _varint(message, position, where)
        number, kind = key >> 3, key & 7
        if kind == VARINT:
            value, position = _varint(message, position, where)
            yield number, value
            continue
        if kind == BYTES:
            size, position = _varint(message, position, where)
        elif kind in (BITS32, BITS64):
            size = 4 if kind == BITS32 else 8
        else:
            raise CaffeError(
                f"{where}: no protobuf field begins at byte {position}; not a .caffemodel, or damaged"
            )
        if (num_missing := size - (len(message) - position)) > 0:
            raise CaffeError(f"{where} ends {num_missing} bytes before its field {number} does; truncated?")
        yield number, message[position : position + size]
        position += size


def _varint(message: memoryview, position: int, where: str) -> tuple[int, int]:
    """Return (the number at `position`, the position after it): 7 bits a byte, the lowest first, at most 64 bits."""
    number = 0
    for shift in range(0, 70, 7):
        if position >= len(message):
            raise CaffeError(f"{where} ends within a number; truncated?")
        byte = message[position]
        position += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, position
    raise CaffeError(f"{where}: byte {position} is within a number of more than 64 bits; damaged?")


def _message(value: Value, where: str) -> memoryview:
    if isinstance(value, int):
        raise CaffeError(f"{where} has the number {value} where bytes belong; damaged?")
    return value


def _integer(value: Value, where: str) -> int:
    if not isinstance(value, int):
        raise CaffeError(f"{where} has {len(value)} bytes where a number belongs; damaged?")
    return value


def _string(value: Value, where: str) -> str:
    try:
        return bytes(_message(value, where)).decode()
    except UnicodeDecodeError as error:
        raise CaffeError(f"{where} has a name that is not UTF-8; damaged?") from error


# --- writing


def _message_field(number: int, pieces: list[Piece]) -> list[Piece]:
    """Return a field of bytes in pieces, which are joined only once: a net has half a gigabyte of them."""
    return [_encoded(number << 3 | BYTES) + _encoded(sum(map(len, pieces))), *pieces]


def _param_field(name: str, param: Mapping[str, object]) -> list[Piece]:
    number, _, names = PARAMS[name]
    inner = b""
    for key, value in param.items():
        value = ENUMS.get(value) if isinstance(value, str) else value
        assert isinstance(value, int), (name, key, value)
        inner += _encoded(names[key] << 3 | VARINT) + _encoded(value)
    return _message_field(number, [inner])


def _encoded(number: int) -> bytes:
    out = bytearray()
    while number >= 0x80:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def _raw(blob: Tensor) -> bytearray:
    """Return the blob's float32 numbers as bytes, without numpy."""
    raw = bytearray(4 * blob.numel())
    torch.frombuffer(raw, dtype=torch.float32).copy_(blob.detach().flatten())
    return raw
