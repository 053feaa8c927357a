"""Weights from and for Caffe: .caffemodel files into ours, our models into a .caffemodel with its prototxt."""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from textwrap import shorten
from typing import Any, NamedTuple

import torch

from fcn.caffe.caffemodel import MAX_BYTES, read_caffemodel, write_caffemodel, write_prototxt
from fcn.caffe.read import describe, to_state_dict
from fcn.caffe.write import describe_pixels, to_layers
from fcn.model import FCN
from pipeline.errors import CheckpointError, UserError
from pipeline.models import checkpoint
from pipeline.models.model_file import load_model

# What a net of 21 classes tells apart if nothing else is said: PASCAL VOC's, in the order of its label images
VOC_CLASSES = (
    "background",
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *(
        "diningtable",
        "dog",
        "horse",
        "motorbike",
        "person",
        "pottedplant",
        "sheep",
        "sofa",
        "train",
        "tvmonitor",
    ),
)


class Imported(NamedTuple):
    """kind: "model", of an FCN, or "backbone", of an ImageNet classifier.   options: FCN's arguments."""

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
    """Writes at `dest` the model or, from an ImageNet classifier, the backbone that a .caffemodel holds.

    Known are the reference release's nets (FCN-32s, 16s, 8s, at-once, AlexNet), VGG_ILSVRC_16_layers,
    bvlc_reference_caffenet and what `export_caffe` wrote. The file tells everything but:
    classes: their names; VOC's if there are 21.   padding: if not that of the file.
    pixels: if not "caffe", or "torchvision" for torchvision's AlexNet.   learn_upscore: as FCN's; True takes over
    upsampling kernels that mix classes.
    CheckpointError if the file is damaged, of another network, or needs one of these.
    """
    data = _read(path)
    try:
        layers = read_caffemodel(data)
        is_fcn, options = describe(layers)
        options |= {"pixels": pixels} if pixels else {}
        options |= {"padding": padding} if padding else {}
        options |= (
            {"learn_upscore": learn_upscore} if is_fcn else {"stride": 32}
        )  # every backbone has a stride 32
        with torch.device("meta"):
            model = FCN(**options)
        state = to_state_dict(layers, model if is_fcn else model.backbone)
    except (ValueError, RuntimeError) as error:  # RuntimeError: shapes so absurd that torch cannot count them
        raise CheckpointError(f"{path}: {shorten(str(error), 400)}") from error
    if not is_fcn:
        _save(dest, "backbone", {"source": path.name, "state_dict": state})
        return Imported("backbone", options)
    names = (
        list(VOC_CLASSES)
        if classes is None and model.num_classes == len(VOC_CLASSES)
        else list(classes or ())
    )
    if len(names) != model.num_classes:
        raise CheckpointError(
            f"{path} tells {model.num_classes} classes apart, {len(names)} names were given for them"
        )
    content = {
        "model": options,
        "classes": names,
        "lineage": _lineage(path, data, model),
        "state_dict": state,
    }
    _save(dest, "model", content)
    return Imported("model", options)


def export_caffe(
    model_path: Path, dest_prefix: Path, height: int = 500, width: int = 500
) -> tuple[Path, Path]:
    """Writes <dest_prefix>.caffemodel and <dest_prefix>.prototxt of a model file; returns their paths.

    height, width: of the input that the prototxt names; whoever runs the net may reshape it.
    CheckpointError if the file holds no model or one that Caffe has no layers for.
    """
    model, _, digest = load_model(model_path, torch.device("cpu"))
    try:
        layers = to_layers(model, height, width)
        comment = f"{describe_pixels(model)}\nof {model_path.name}, sha256 of its content {digest}"
        weights = write_caffemodel(dest_prefix.name, layers)
    except ValueError as error:
        raise CheckpointError(f"{model_path}: {error}") from error
    text = write_prototxt(dest_prefix.name, layers, comment).encode()
    caffemodel, prototxt = (
        dest_prefix.with_name(dest_prefix.name + end) for end in (".caffemodel", ".prototxt")
    )
    _write({caffemodel: weights, prototxt: text})
    return caffemodel, prototxt


def _lineage(path: Path, data: bytes, model: FCN) -> dict[str, str]:
    """As a trained model's says where it comes from: here from a file, of which the images are not known."""
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


def _save(dest: Path, kind: str, content: dict[str, Any]) -> None:
    try:
        checkpoint.save(dest, kind, content)
    except OSError as error:
        raise UserError(f"{dest} cannot be written: {error.strerror}") from error


def _read(path: Path) -> bytes:
    try:
        if (size := path.stat().st_size) > MAX_BYTES:
            raise CheckpointError(f"{path} has {size} bytes; a .caffemodel has at most {MAX_BYTES}")
        return path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error


def _write(files: dict[Path, bytes]) -> None:
    """Writes all of them beside their places, then moves them there: neither appears unless both were written."""
    partials = {path.with_name(f".{path.name}.partial"): path for path in files}
    written = []
    try:
        for partial, path in partials.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            written.append(partial)
            with partial.open("wb") as file:
                file.write(files[path])
                file.flush()
                os.fsync(file.fileno())
        for partial, path in partials.items():
            partial.replace(path)
    except OSError as error:
        raise UserError(f"{error.filename} cannot be written: {error.strerror}") from error
    finally:
        for partial in written:
            partial.unlink(missing_ok=True)
