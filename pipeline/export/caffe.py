"""`fcn caffe`: import .caffemodel files, and export models as a .caffemodel with its prototxt."""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from textwrap import shorten
from typing import Any, NamedTuple

import torch

from fcn import voc
from fcn.caffe.caffemodel import MAX_BYTES, read_caffemodel, write_caffemodel, write_prototxt
from fcn.caffe.read import describe, to_state_dict
from fcn.caffe.write import describe_pixels, to_layers
from fcn.model import FCN
from pipeline.errors import CheckpointError, UserError
from pipeline.files import whole
from pipeline.models import checkpoint
from pipeline.models.file_kind import require_kind
from pipeline.models.model_file import load_model


class Imported(NamedTuple):
    """The content of an imported file.

    kind: "model", an FCN, or "backbone", from an ImageNet classifier.
    options: arguments of FCN.
    """

    kind: str
    options: dict[str, Any]


def import_caffemodel(
    path: Path,
    dest: Path,
    *,
    classes: Sequence[str] | None = None,
    padding: str | None = None,
    pixels: str | None = None,
    learn_upscore: bool | str = False,
) -> Imported:
    """Write the model of a .caffemodel, or the backbone of an ImageNet classifier's, to a file of this project.

    Known are the nets of the reference release (FCN-32s, 16s, 8s, at-once, AlexNet), VGG_ILSVRC_16_layers,
    bvlc_reference_caffenet and the files of `export_caffe`.

    path: the .caffemodel.
    dest: the .pt file to write.
    classes: names of the labels; VOC's by default, if there are 21.
    padding: by default that of the file.
    pixels: the convention, by default "caffe", or "torchvision" for torchvision's AlexNet.
    learn_upscore: as FCN's; True takes over upsampling kernels that mix classes.

    Raises CheckpointError if the file is damaged, of another network, or needs one of these arguments, and UserError
    if dest is a folder.
    """
    if dest.is_dir():
        raise UserError(f"{dest} is a folder; give the file to write, such as {dest / 'fcn8s.pt'}")
    data = _read(path)
    try:
        layers = read_caffemodel(data)
        is_fcn, options = describe(layers)
        options |= {"pixels": pixels} if pixels else {}
        options |= {"padding": padding} if padding else {}
        options |= {"learn_upscore": learn_upscore} if is_fcn else {"stride": 32}  # known to every backbone
        with torch.device("meta"):
            model = FCN(**options)
        state = to_state_dict(layers, model if is_fcn else model.backbone)
    except (ValueError, RuntimeError) as error:  # RuntimeError: shapes too large for torch to count
        raise CheckpointError(f"{path}: {shorten(str(error), 400)}") from error
    if not is_fcn:
        checkpoint.save(dest, "backbone", {"source": path.name, "state_dict": state})
        return Imported("backbone", options)
    # The released nets have VOC's classes
    names = list(classes or (voc.CLASSES if model.num_classes == len(voc.CLASSES) else ()))
    if len(names) != model.num_classes:
        raise CheckpointError(f"{path} has {model.num_classes} classes, but {len(names)} names were given")
    lineage = _lineage(path, data, model)
    content = {"model": options, "classes": names, "lineage": lineage, "state_dict": state}
    checkpoint.save(dest, "model", content)
    return Imported("model", options)


def export_caffe(
    model_path: Path, dest_prefix: Path, height: int = 500, width: int = 500
) -> tuple[Path, Path]:
    """Write <dest_prefix>.caffemodel and <dest_prefix>.prototxt of a model file; return their paths.

    height, width: of the prototxt's input, in pixels; Caffe can reshape it.

    Raises CheckpointError if the file does not hold a model, or Caffe has no layers for it, and UserError if
    dest_prefix is a folder.
    """
    if dest_prefix.is_dir():
        raise UserError(
            f"{dest_prefix} is a folder; give the path of both files without suffix, such as {dest_prefix / 'fcn8s'}"
        )
    model, _, digest = load_model(model_path, torch.device("cpu"))
    try:
        layers = to_layers(model, height, width)
        comment = f"{describe_pixels(model)}\nof {model_path.name}, sha256 of its content {digest}"
        weights = write_caffemodel(dest_prefix.name, layers)
    except ValueError as error:
        raise CheckpointError(f"{model_path}: {error}") from error
    text = write_prototxt(dest_prefix.name, layers, comment)
    caffemodel, prototxt = (
        dest_prefix.with_name(dest_prefix.name + end) for end in (".caffemodel", ".prototxt")
    )
    with whole(prototxt) as text_file, whole(caffemodel) as weights_file:
        for file, content in ((weights_file, weights), (text_file, text.encode())):
            file.write(content)
            file.flush()
            os.fsync(
                file.fileno()
            )  # a full disk may show here only: neither gets its name before both are written
    return caffemodel, prototxt


def _lineage(path: Path, data: bytes, model: FCN) -> dict[str, str]:
    """Return the lineage of a model whose training images are unknown."""
    digest = hashlib.sha256(data).hexdigest()
    identity = f"caffe-{digest[:12]}"
    return {
        "net": f"fcn{model.stride}s",
        "parent": path.name,
        "parent_sha256": digest,
        "data_digest": "unknown",
        "identity": identity,
        "chain": identity,
    }


def _read(path: Path) -> bytes:
    require_kind(path, expected="a .caffemodel")
    try:
        if (size := path.stat().st_size) > MAX_BYTES:
            raise CheckpointError(f"{path} has {size} bytes; a .caffemodel has at most {MAX_BYTES}")
        return path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
