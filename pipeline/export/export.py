"""`fcn export`: models for use without this project, as ONNX, torch.export's pt2, or safetensors.

ONNX and pt2 hold the whole net: image (N, 3, H, W) RGB uint8, any N, H, W >= 1 -> score (N, C, H, W) float32.
safetensors holds the weights; `load_model` takes it wherever it takes a .pt file.
Each holds the model file's metadata: arguments of FCN, class names, lineage, and the sha256 of the model's content.
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

KINDS = ("onnx", "pt2", "safetensors")  # each is also its file's suffix
METADATA = "metadata.json"  # the extra file of a pt2 file that holds the metadata
TOLERANCE = 1e-4  # of the largest score; float32 sums in another order differ by less than a tenth of it
CHECKED_SHAPES = ((1, 1, 1), (2, 33, 64), (1, 97, 50), (2, 48, 131), (1, 375, 500))  # N, H, W
MAX_ONNX_BYTES = 2**31 - 1  # of one file: protobuf's limit
AXES = {0: "batch", 2: "height", 3: "width"}
INPUT = "image: (N, 3, H, W) RGB, uint8, any N, H, W >= 1; pixels as decoded, the net normalises them itself"
OUTPUT = "score: (N, C, H, W) float32; a pixel's class is the index of its largest score"
CPU = torch.device("cpu")

Net = Callable[[Tensor], Tensor]


class ExportError(UserError):
    """A model cannot be written in this format, or the written file computes other scores."""


def export_model(model_path: Path, dest: Path) -> float:
    """Write a model in another format; return the largest difference of its scores over the largest score.

    The difference is computed from the written file, on images of CHECKED_SHAPES. dest appears only if it is at most
    TOLERANCE.

    model_path: a model file.
    dest: the file to write; its suffix, .onnx, .pt2 or .safetensors, decides the format.

    Raises ExportError if the difference is larger or dest cannot be written, CheckpointError if model_path does not
    hold a model.
    """
    suffixes, kind = [f".{known}" for known in KINDS], dest.suffix.removeprefix(".")
    if kind not in KINDS:
        raise ExportError(f"{dest} has no suffix of a known format; it must end in {' or '.join(suffixes)}")
    if dest.is_dir():
        raise ExportError(f"{dest} is a folder; give the file to write, such as {dest / f'fcn8s.{kind}'}")
    try:
        dest.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=f".{dest.name}.", dir=dest.parent) as scratch:
            partial = Path(scratch, dest.name)
            difference = _write(model_path, partial, kind)
            if not difference <= TOLERANCE:  # also if it is NaN
                raise ExportError(
                    f"{model_path} as {kind} differs from the model by {difference:.1e} of its largest score, more "
                    f"than {TOLERANCE:.0e}; nothing was written; check the model itself with `fcn predict`"
                )
            with partial.open("rb+") as file:
                os.fsync(file.fileno())
            partial.replace(dest)
    except OSError as error:
        raise ExportError(f"{dest} cannot be written: {error.strerror or error}") from error
    return difference


def _write(model_path: Path, dest: Path, kind: str) -> float:
    """Write the file, read it back and return its relative difference."""
    model, about, digest = load_model(model_path, CPU)
    model.requires_grad_(False)
    if kind == "safetensors":
        checkpoint.save(dest, "model", checkpoint.load(model_path, "model")[0])
        return relative_difference(model, load_model(dest, CPU)[0])
    del about["trained_on"]  # thousands of ids; the sha256 leads to the model file, which has them
    about |= {"sha256": digest, "input": INPUT, "output": OUTPUT}
    with _quiet():
        if kind == "onnx":
            _write_onnx(model, about, dest)
            score, _ = onnx_file.load(dest, num_threads=torch.get_num_threads())
            return relative_difference(model, lambda image: torch.from_numpy(score(image.numpy())))
        torch.export.save(traced(model), dest, extra_files={METADATA: json.dumps(about, indent=1)})
        return relative_difference(model, torch.export.load(dest).module())


def traced(model: FCN) -> ExportedProgram:
    """Return the net's graph for uint8 images of any size and number."""
    for layer in model.modules():
        if isinstance(layer, nn.ReLU | nn.LeakyReLU):  # in place, export takes twice as long
            layer.inplace = False
    sizes = {axis: Dim.DYNAMIC(min=1) for axis in AXES}
    # By default torch assumes that a dynamic size is never 1, and the graph refuses small images
    with tracing.patch(backed_size_oblivious=True):  # pyright: ignore[reportAttributeAccessIssue]
        program = torch.export.export(model, (_example(),), dynamic_shapes=(sizes,))
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # paths of this machine
    return program


def _example() -> Tensor:
    return torch.zeros(2, 3, 75, 98, dtype=torch.uint8)


@torch.no_grad()
def relative_difference(model: Net, exported: Net) -> float:
    """Return max |exported - model| / max |model| on random images of CHECKED_SHAPES; NaN if any score is NaN."""
    generator = torch.Generator().manual_seed(0)
    difference, largest = torch.tensor(0.0), torch.tensor(0.0)
    for num, height, width in CHECKED_SHAPES:
        image = torch.randint(0, 256, (num, 3, height, width), dtype=torch.uint8, generator=generator)
        expected, score = model(image), exported(image)
        if score.shape != expected.shape:
            return float("inf")
        difference = torch.maximum(difference, (score - expected).abs().max())
        largest = torch.maximum(largest, expected.abs().max())
    return float(difference / largest) if largest else float(difference)


def _write_onnx(model: FCN, about: dict[str, Any], dest: Path) -> None:
    num_bytes = sum(tensor.nbytes for tensor in model.state_dict().values())
    if num_bytes > MAX_ONNX_BYTES:
        raise ExportError(
            f"an ONNX file holds at most {MAX_ONNX_BYTES} bytes, the weights have {num_bytes}; export pt2 instead"
        )
    program = torch.onnx.export(
        traced(model),
        (_example(),),
        input_names=["image"],
        output_names=["score"],
        dynamic_shapes=(AXES,),
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    metadata = {key: value if isinstance(value, str) else json.dumps(value) for key, value in about.items()}
    program.model.metadata_props.update(metadata)
    program.save(dest, external_data=False)


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide the warnings and logs of torch's exporters, which are for their developers."""
    disabled_level = logging.root.manager.disable
    with warnings.catch_warnings(), redirect_stdout(sys.stderr):
        warnings.simplefilter("ignore")
        logging.disable(logging.ERROR)
        try:
            yield
        finally:
            logging.disable(disabled_level)
