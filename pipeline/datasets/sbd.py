"""The Semantic Boundaries Dataset in its published layout: benchmark_RELEASE/dataset/{img,cls,*.txt}.

Hariharan et al., ICCV 2011: VOC's classes on 11355 of VOC's images. A label is the field GTcls.Segmentation of a
MATLAB struct; the published labels have no void.
"""

import math
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.datasets.layout import Layout
from pipeline.errors import DatasetError
from pipeline.shards.images import MAX_BYTES, REMEDY

# train_noval holds none of VOC2012's val; train and val overlap it
PUBLISHED_COUNTS = {"sbd/train": 8498, "sbd/val": 2857, "sbd/train_noval": 5623}

# Types of data elements (mi) and classes of arrays (mx) of "MAT-File Format" by The MathWorks
_MI_UINT8, _MI_MATRIX, _MI_COMPRESSED = 2, 14, 15
_MX_STRUCT, _MX_UINT8 = 2, 9
_HDF5 = b"\x89HDF\r\n\x1a\n"  # the first bytes of a MATLAB 7.3 file's body


def root(raw: Path) -> Path:
    """Return the folder of img and cls where the archive unpacks it, whether it exists or not."""
    return raw / "benchmark_RELEASE" / "dataset"


def decode_mat(mat: bytes, where: str = "label") -> NDArray[np.uint8]:
    """Return GTcls.Segmentation of a MATLAB 5 file, compressed or not, as (H, W) uint8.

    This parser reads only the path to that field. scipy's loadmat (1.17) ends the process with a segmentation fault
    on some damaged files, and its whosmat does not report the sizes of a struct's fields.
    """
    if mat.startswith(b"MATLAB 7.3") or _HDF5 in mat[:1024]:
        raise DatasetError(f"{where}: a MATLAB 7.3 file (HDF5), which is not supported; save it with -v7")
    order = {b"IM": "<", b"MI": ">"}.get(mat[126:128])
    if order is None:
        raise DatasetError(f"{where}: not a MATLAB 5 file, it begins with {mat[:8]!r}; {REMEDY}")
    try:
        truth = _variable(mat[128:], "GTcls", order)
        label = _field(truth, "Segmentation", order)
        if label.kind != _MX_UINT8 or len(label.shape) != 2 or min(label.shape) < 1:
            raise ValueError(
                f"Segmentation has MATLAB class {label.kind}, shape {label.shape}; expected uint8, 2-D"
            )
        kind, values = next(label.content)
        if kind != _MI_UINT8 or len(values) != math.prod(label.shape):
            raise ValueError(f"Segmentation has {len(values)} values of type {kind} for shape {label.shape}")
    except (ValueError, StopIteration, struct.error, zlib.error) as error:
        reason = str(error) or "it ends too early"
        raise DatasetError(f"{where}: damaged or not SBD's MATLAB file: {reason}; {REMEDY}") from error
    columns = np.frombuffer(values, np.uint8).reshape(label.shape, order="F")  # as MATLAB stores them
    return np.ascontiguousarray(columns)


LAYOUT = Layout("sbd", lists="", images="img", labels="cls", suffix=".mat", decode=decode_mat)


class _Matrix(NamedTuple):
    """One MATLAB array: its header, and an iterator over the elements after it."""

    kind: int
    shape: tuple[int, ...]
    name: str
    content: Iterator[tuple[int, bytes]]


def _matrix(data: bytes, order: str) -> _Matrix:
    content = _elements(data, order)
    (_, flags), (_, shape), (_, name) = next(content), next(content), next(content)
    kind = struct.unpack(f"{order}II", flags)[0] & 0xFF
    return _Matrix(kind, struct.unpack(f"{order}{len(shape) // 4}i", shape), name.decode("latin-1"), content)


def _variable(data: bytes, name: str, order: str) -> _Matrix:
    """Return the file's variable of that name, decompressed; ValueError if there is none."""
    names = []
    for kind, content in _elements(data, order):
        if kind == _MI_COMPRESSED:
            kind, content = next(_elements(_inflated(content), order))
        if kind == _MI_MATRIX:
            matrix = _matrix(content, order)
            if matrix.name == name:
                return matrix
            names.append(matrix.name)
    raise ValueError(f"no variable {name}, found {names}")


def _field(matrix: _Matrix, name: str, order: str) -> _Matrix:
    """Return a field of a 1x1 struct; ValueError if it is another array or has no such field."""
    if matrix.kind != _MX_STRUCT or matrix.shape != (1, 1):
        raise ValueError(
            f"{matrix.name} has MATLAB class {matrix.kind}, shape {matrix.shape}; expected a 1x1 struct"
        )
    (_, width), (_, names) = next(matrix.content), next(matrix.content)
    (step,) = struct.unpack(f"{order}i", width)
    if step < 1:
        raise ValueError(f"{matrix.name} has field names of {step} characters")
    padded = (names[start : start + step] for start in range(0, len(names), step))
    fields = [field.partition(b"\0")[0].decode("latin-1") for field in padded]
    for field, (kind, content) in zip(fields, matrix.content, strict=False):
        if field == name and kind == _MI_MATRIX:
            return _matrix(content, order)
    raise ValueError(f"{matrix.name} has no field {name}, found {fields}")


def _elements(data: bytes, order: str) -> Iterator[tuple[int, bytes]]:
    """Yield type and content of each data element; ValueError if one claims more bytes than there are."""
    start = 0
    while start < len(data):
        kind, size = struct.unpack_from(f"{order}II", data, start)
        begin, end = start + 8, start + 8 + size
        if kind >> 16:  # the short form: four bytes of content in place of the size
            kind, size, begin, end = kind & 0xFFFF, kind >> 16, start + 4, start + 8
        content = data[begin : begin + size]
        if len(content) < size or begin + size > end:
            raise ValueError(f"an element claims {size} bytes, {len(content)} are there")
        yield kind, content
        start = end if kind == _MI_COMPRESSED else end + -end % 8


def _inflated(data: bytes) -> bytes:
    stream = zlib.decompressobj()
    inflated = stream.decompress(data, MAX_BYTES)  # 389 KB can claim 400 MB
    if not stream.eof:
        raise ValueError(f"a variable is cut short, or unpacks to more than {MAX_BYTES} bytes")
    return inflated
