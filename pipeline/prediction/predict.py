"""Predictions of a model file for photos, written as palette PNGs, pictures and scores. ONNX is run without torch."""

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.errors import CheckpointError, UserError
from pipeline.models.tiles import Overlap, Span, Tile, overlap, tiles
from pipeline.prediction.photos import read_photo
from pipeline.progress import bar
from pipeline.shards.labels import encode_label, voc_palette

LEGEND = "classes.json"
FLOAT16 = np.finfo(np.float16)
OPACITY = 0.6  # of a class's colour over the photo
Place = tuple[slice, slice]  # rows and columns of an image
BACKGROUND = 0  # the class that an overlay leaves as it is


class Net(NamedTuple):
    """score: image (3, H, W) uint8 RGB -> (C, H, W) float32.   classes: their C names.

    options: FCN's arguments.   overlap: of tiles; asked for when an image needs them, because ONNX needs torch for it.
    """

    score: Callable[[NDArray[np.uint8]], NDArray[np.float32]]
    classes: list[str]
    options: dict[str, Any]
    overlap: Callable[[], Overlap]


class Outputs(NamedTuple):
    """Where the results of one photo go; None for what is not wanted."""

    prediction: Path
    overlay: Path | None
    scores: Path | None


def predict_photos(
    model_path: Path,
    photos: Sequence[Path],
    folder: Path,
    *,
    side: int,
    overlay: bool = False,
    scores: bool = False,
) -> list[Path]:
    """Writes folder/<name>.png for each photo, folder/classes.json, and what else is wanted; returns what failed.

    A photo that cannot be read is named on stderr, and the others are done. UserError, before anything is written, if
    results of two photos would have one name, or that of a photo.   side: see `score_maps`.
    """
    planned = plan(photos, folder, overlay=overlay, scores=scores)
    net = load_net(model_path)
    failed = []
    classes = json.dumps(legend(net.classes), indent=1, ensure_ascii=False) + "\n"
    write_whole(folder / LEGEND, lambda file: file.write(classes.encode()))
    with bar(len(photos), "predict") as progress:
        for path, outputs in planned.items():
            try:
                photo = read_photo(path)
            except UserError as error:
                failed.append(path)
                progress.write(f"error: {error}", file=sys.stderr)
            else:
                _predict_one(net, photo, path, outputs, side)
            progress.update()
    return failed


def load_net(path: Path) -> Net:
    """The net of an .onnx file of `fcn export`, run by onnxruntime; of any other by torch, on a GPU if there is one.

    CheckpointError if it is missing, damaged, or has more classes than a PNG has indices besides void.
    """
    net = _onnx_net(path) if path.suffix == ".onnx" else _torch_net(path)
    most = len(voc_palette()) - 1
    if len(net.classes) > most:
        raise CheckpointError(f"{path} tells {len(net.classes)} classes apart; a palette PNG holds {most}")
    return net


def _torch_net(path: Path) -> Net:
    import torch

    from pipeline.models.model_file import load_model

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model, about, _ = load_model(path, device)

    @torch.inference_mode()
    def score(image: NDArray[np.uint8]) -> NDArray[np.float32]:
        return model(torch.from_numpy(image)[None].to(device))[0].cpu().numpy()

    return Net(score, about["classes"], about["model"], lambda: overlap(model))


def _onnx_net(path: Path) -> Net:
    from pipeline.models import onnx_file

    run, about = onnx_file.load(path)
    options = about["model"]
    return Net(lambda image: run(image[None])[0], about["classes"], options, lambda: _overlap_of(options))


def _overlap_of(options: dict[str, Any]) -> Overlap:
    """The overlap of a net that these arguments of FCN describe; it is built without its weights."""
    import torch

    from fcn.model import FCN

    with torch.device("meta"):
        return overlap(FCN(**options))


def plan(photos: Sequence[Path], folder: Path, *, overlay: bool, scores: bool) -> dict[Path, Outputs]:
    """Where each photo's results go; UserError if two would share a name, or one overwrite a photo."""
    named: dict[str, Path] = {}
    for path in photos:
        other = named.setdefault(path.stem.casefold(), path)  # some file systems know no case
        if other is not path:
            raise UserError(
                f"{other} and {path} would both become {path.stem}.png in {folder}; run them into two folders"
            )
    planned = {
        path: Outputs(
            folder / f"{path.stem}.png",
            folder / "overlay" / f"{path.stem}.png" if overlay else None,
            folder / "scores" / f"{path.stem}.npz" if scores else None,
        )
        for path in photos
    }
    inputs = {_identity(path): path for path in photos if path.exists()}
    for outputs in planned.values():
        for dest in outputs:
            if dest and dest.exists() and (photo := inputs.get(_identity(dest))):
                raise UserError(f"{dest} would be written over the photo {photo}; give another folder")
    return planned


def _identity(path: Path) -> tuple[int, int]:
    """The same for two names of one file, whatever links or upper case lie between."""
    found = path.stat()
    return found.st_dev, found.st_ino


def _predict_one(net: Net, photo: Image.Image, path: Path, outputs: Outputs, side: int) -> None:
    image = np.array(photo)  # torch takes no memory of another that it must not write to
    prediction = np.empty(image.shape[:2], np.uint8)
    scores = np.empty((len(net.classes), *prediction.shape), np.float16) if outputs.scores else None
    for place, score in score_maps(net, image, side, str(path)):
        prediction[place] = score.argmax(0)
        if scores is not None:
            scores[:, *place] = score.clip(FLOAT16.min, FLOAT16.max)
    write_whole(outputs.prediction, lambda file: file.write(encode_label(prediction)))
    if outputs.overlay:
        write_whole(outputs.overlay, lambda file: blended(image, prediction).save(file, "PNG"))
    if scores is not None and outputs.scores:
        write_whole(outputs.scores, lambda file: np.savez(file, score=scores))


def score_maps(net: Net, image: NDArray[np.uint8], side: int, name: str) -> Iterator[tuple[Place, NDArray]]:
    """(rows and columns, score (C, h, w) float32) of the parts of an image (H, W, 3), each pixel once.

    All of it at once up to side x side pixels. Larger ones are run in tiles, with the scores of the whole image but for
    the order of float32 sums.   name: of the photo, for errors. CheckpointError if a score is no number.
    """
    height, width = image.shape[:2]
    channels_first = np.ascontiguousarray(image.transpose(2, 0, 1))
    is_small = height * width <= side**2
    whole = Tile(Span(0, height, 0, height), Span(0, width, 0, width))
    for rows, columns in [whole] if is_small else tiles(height, width, side, net.overlap()):
        (top, bottom, start, end), (left, right, begin, until) = rows, columns
        score = net.score(np.ascontiguousarray(channels_first[:, top:bottom, left:right]))
        score = score[:, start - top : end - top, begin - left : until - left]
        if not np.isfinite(score).all():
            raise CheckpointError(f"{name}: the model's scores are not finite; its weights are damaged")
        yield (slice(start, end), slice(begin, until)), score


def blended(image: NDArray[np.uint8], prediction: NDArray[np.uint8]) -> Image.Image:
    """(H, W, 3) with each class's colour over it; where the prediction is background, as it is."""
    colours = voc_palette()[prediction]
    mixed = ((1 - OPACITY) * image + OPACITY * colours).round().astype(np.uint8)
    return Image.fromarray(np.where((prediction == BACKGROUND)[..., None], image, mixed))


def legend(classes: Sequence[str]) -> list[dict[str, Any]]:
    """For each palette index its class and colour."""
    return [
        {"index": index, "name": name, "colour": f"#{bytes(voc_palette()[index]).hex()}"}
        for index, name in enumerate(classes)
    ]


def write_whole(dest: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Has a file written under another name, which it gets rid of when it is whole; UserError if it cannot be."""
    partial = dest.with_name(f".{dest.name}.partial")
    try:
        dest.parent.mkdir(parents=True, exist_ok=True)
        try:
            with partial.open("wb") as file:
                write(file)
            partial.replace(dest)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"{dest} cannot be written: {error.strerror or error}") from error
