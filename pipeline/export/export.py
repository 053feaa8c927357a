"""Models for use without this project: ONNX, torch.export's pt2, and safetensors.

ONNX and pt2 hold the whole net: image (N, 3, H, W) RGB uint8, any N, H, W >= 1 -> score (N, C, H, W) float32.
safetensors holds the weights; `load_model` takes it wherever it takes a .pt file.
Each says inside what the model file says: arguments of FCN, class names, lineage, sha256 of the model's content.
"""

import json
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.fx.experimental._config as tracing
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from fcn.model import FCN
from pipeline.errors import UserError
from pipeline.models import checkpoint, onnx_file
from pipeline.models.model_file import load_model

KINDS = ("onnx", "pt2", "safetensors")  # each is its file's suffix, too
METADATA = "metadata.json"  # the name of what is said about the model among a pt2 file's extra files
TOLERANCE = 1e-4  # of the largest score: float32 sums in another order differ by less than a tenth of it
CHECKED = ((1, 1, 1), (2, 33, 64), (1, 97, 50), (2, 48, 131), (1, 375, 500))  # N, H, W
MAX_ONNX_BYTES = 2**31 - 1  # of one file: protobuf's limit
AXES = {0: "batch", 2: "height", 3: "width"}
INPUT = "image: (N, 3, H, W) RGB, uint8, any N, H, W >= 1; pixels as decoded, the net normalises them itself"
OUTPUT = "score: (N, C, H, W) float32; a pixel's class is the index of its largest score"

Net = Callable[[Tensor], Tensor]


class ExportError(UserError):
    """A model cannot be written in this form, or what was written does not compute the same."""


def export_model(model_path: Path, dest: Path, kind: str) -> float:
    """Writes the model as "onnx", "pt2" or "safetensors"; returns by how much its scores differ from the model's.

    That is the largest difference over the largest score, on images of CHECKED's sizes, computed from the file as it
    was written. dest appears only if it is at most TOLERANCE. It must end in the kind's suffix.
    ExportError if it differs more, or dest cannot be written; CheckpointError if model_path is no model.
    """
    if kind not in KINDS:
        raise ExportError(f"unknown kind {kind!r}; known: {', '.join(KINDS)}")
    if dest.suffix != f".{kind}":
        raise ExportError(f"{dest} must end in .{kind}, or a {kind} file would pass for another")
    try:
        dest.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=f".{dest.name}.", dir=dest.parent) as folder:
            partial = Path(folder) / dest.name
            difference = _write(model_path, partial, kind)
            if not difference <= TOLERANCE:  # nan, too
                raise ExportError(
                    f"{model_path} as {kind} differs from the model by {difference:.1e} of its largest score, more "
                    f"than {TOLERANCE:.0e}; nothing was written. `fcn evaluate` tells if the model itself is sound"
                )
            with partial.open("rb+") as file:
                os.fsync(file.fileno())
            partial.replace(dest)
    except OSError as error:
        raise ExportError(f"{dest} cannot be written: {error.strerror or error}") from error
    return difference


def _write(model_path: Path, partial: Path, kind: str) -> float:
    """Writes the file, reads it back and returns how much it differs."""
    model, about, digest = load_model(model_path, torch.device("cpu"))
    model.requires_grad_(False)
    if kind == "safetensors":
        checkpoint.save(partial, "model", checkpoint.load(model_path, "model")[0])
        return relative_difference(model, load_model(partial, torch.device("cpu"))[0])
    del about["trained_on"]  # thousands of ids; the sha256 leads to the file that has them
    about |= {"sha256": digest, "input": INPUT, "output": OUTPUT}
    with _quiet():
        if kind == "onnx":
            _write_onnx(model, about, partial)
            score, _ = onnx_file.load(partial, num_threads=torch.get_num_threads())
            return relative_difference(model, lambda image: torch.from_numpy(score(image.numpy())))
        torch.export.save(traced(model), partial, extra_files={METADATA: json.dumps(about, indent=1)})
        return relative_difference(model, torch.export.load(partial).module())


def traced(model: FCN) -> ExportedProgram:
    """The net's graph for uint8 images of any size and number."""
    for layer in model.modules():
        if isinstance(layer, nn.ReLU | nn.LeakyReLU):  # in place, export takes twice as long
            layer.inplace = False
    sizes = {axis: Dim.DYNAMIC(min=1) for axis in AXES}
    # Otherwise torch takes every size that could be 1 (a score map of one cell) to be none, and refuses small images
    with tracing.patch(backed_size_oblivious=True):  # pyright: ignore[reportAttributeAccessIssue]
        program = torch.export.export(model, (_example(),), dynamic_shapes=(sizes,))
    for node in program.graph.nodes:  # paths of this machine, of no use elsewhere
        node.meta.pop("stack_trace", None)
    return program


def _example() -> Tensor:
    return torch.zeros(2, 3, 75, 98, dtype=torch.uint8)


@torch.no_grad()
def relative_difference(model: Net, exported: Net) -> float:
    """max |exported - model| over max |model|, of random images of CHECKED's sizes; nan if any score is."""
    generator = torch.Generator().manual_seed(0)
    difference, largest = torch.tensor(0.0), torch.tensor(0.0)
    for num, height, width in CHECKED:
        image = torch.randint(0, 256, (num, 3, height, width), dtype=torch.uint8, generator=generator)
        expected, found = model(image), exported(image)
        if found.shape != expected.shape:
            return float("inf")
        difference = torch.maximum(difference, (found - expected).abs().max())
        largest = torch.maximum(largest, expected.abs().max())
    return float(difference / largest) if largest else float(difference)


def _write_onnx(model: FCN, about: dict[str, Any], path: Path) -> None:
    num_bytes = sum(tensor.nbytes for tensor in model.state_dict().values())
    if num_bytes > MAX_ONNX_BYTES:
        raise ExportError(
            f"an ONNX file holds at most {MAX_ONNX_BYTES} bytes, the weights have {num_bytes}; export pt2 instead"
        )
    names: dict[str, Any] = {"input_names": ["image"], "output_names": ["score"], "dynamic_shapes": (AXES,)}
    program = torch.onnx.export(traced(model), (_example(),), dynamo=True, verbose=False, **names)
    assert program is not None
    program.model.metadata_props.update(as_text(about))
    program.save(path, external_data=False)


def as_text(about: dict[str, Any]) -> dict[str, str]:
    """What is said about a model as ONNX holds it: text as it is, the rest as JSON."""
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in about.items()}


@contextmanager
def _quiet() -> Iterator[None]:
    """What torch's exporters tell their own developers is not for the user."""
    before = logging.root.manager.disable
    with warnings.catch_warnings(), redirect_stdout(sys.stderr):
        warnings.simplefilter("ignore")
        logging.disable(logging.ERROR)
        try:
            yield
        finally:
            logging.disable(before)
