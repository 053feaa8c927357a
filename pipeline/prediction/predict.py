"""`fcn predict`: label maps of photos as palette PNGs, overlays and score files."""

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.errors import UserError
from pipeline.files import whole, write_text
from pipeline.models.predictor import Predictor
from pipeline.prediction.photos import read_photo
from pipeline.progress import bar
from pipeline.shards.labels import encode_label, voc_palette

LEGEND = "classes.json"
FLOAT16 = np.finfo(np.float16)
OPACITY = 0.6  # of a class's colour over the photo
BACKGROUND = 0  # the class whose pixels an overlay leaves as they are


class Outputs(NamedTuple):
    """The files written for one photo; None for those not requested."""

    prediction: Path
    overlay: Path | None
    scores: Path | None


def predict_photos(
    predictor: Predictor,
    photos: Sequence[Path],
    folder: Path,
    *,
    side: int | None,
    overlay: bool = False,
    scores: bool = False,
) -> list[Path]:
    """Write folder/<name>.png for each photo, and folder/classes.json; return the photos that could not be read.

    Each unreadable photo is named on stderr, and the others are written.

    side: of the tiles of large photos, in pixels; see Predictor.parts.
    overlay: also write folder/overlay/<name>.png, the classes' colours over the photo.
    scores: also write folder/scores/<name>.npz, `score` (C, H, W) float16.

    Raises UserError, before anything is written, if the results of two photos would share a name, if one would
    overwrite a photo or a file that is not of an earlier call, or if tiles of `side` would consist of overlap only.
    """
    outputs_of = plan(photos, folder, overlay=overlay, scores=scores)
    if not legend_names(folder / LEGEND):
        dests = (dest for outputs in outputs_of.values() for dest in outputs if dest)
        if taken := next(filter(os.path.exists, dests), None):
            raise UserError(
                f"{taken} is there, and beside it no {LEGEND} of an earlier `fcn predict`; give another folder"
            )
    if side:
        predictor.require_side(side)
    unreadable = []
    write_text(folder / LEGEND, json.dumps(legend(predictor.classes), indent=1, ensure_ascii=False) + "\n")
    with bar(len(photos), "predict") as progress:
        for path, outputs in outputs_of.items():
            try:
                photo = np.asarray(read_photo(path))
            except UserError as error:
                unreadable.append(path)
                progress.write(f"error: {error}", file=sys.stderr)
            else:
                _predict_one(predictor, photo, outputs, side)
            progress.update()
    return unreadable


def plan(photos: Sequence[Path], folder: Path, *, overlay: bool, scores: bool) -> dict[Path, Outputs]:
    """Return where each photo's results go.

    Raises UserError if two would share a name, or one would overwrite a photo.
    """
    photo_of: dict[str, Path] = {}
    for path in photos:
        other = photo_of.setdefault(path.stem.casefold(), path)  # some file systems ignore case
        if other is not path:
            raise UserError(
                f"{other} and {path} would both become {path.stem}.png in {folder}; use a folder for each"
            )
    outputs_of = {
        path: Outputs(
            folder / f"{path.stem}.png",
            folder / "overlay" / f"{path.stem}.png" if overlay else None,
            folder / "scores" / f"{path.stem}.npz" if scores else None,
        )
        for path in photos
    }
    photo_at = {_inode(path): path for path in photos if os.path.exists(path)}
    for outputs in outputs_of.values():
        for dest in outputs:
            if dest and os.path.exists(dest) and (photo := photo_at.get(_inode(dest))):
                raise UserError(f"{dest} would overwrite the photo {photo}; give another folder")
    return outputs_of


def _inode(path: Path) -> tuple[int, int]:
    """Identify a file independently of its name, such as through a link or in another case."""
    status = path.stat()
    return status.st_dev, status.st_ino


def _predict_one(predictor: Predictor, photo: NDArray[np.uint8], outputs: Outputs, side: int | None) -> None:
    label = np.empty(photo.shape[:2], np.uint8)
    scores = np.empty((len(predictor.classes), *label.shape), np.float16) if outputs.scores else None
    for part in predictor.parts(photo, side, with_score=scores is not None):
        label[part.region] = part.label
        if scores is not None and part.score is not None:
            scores[:, *part.region] = part.score.clip(FLOAT16.min, FLOAT16.max)
    with whole(outputs.prediction) as file:
        file.write(encode_label(label))
    if outputs.overlay:
        with whole(outputs.overlay) as file:
            blended(photo, label).save(file, "PNG")
    if scores is not None and outputs.scores:
        with whole(outputs.scores) as file:
            np.savez(file, score=scores)


def blended(photo: NDArray[np.uint8], label: NDArray[np.uint8]) -> Image.Image:
    """Return the photo with each class's colour over it, except over background.

    photo: (H, W, 3) uint8 RGB.
    label: (H, W) uint8.
    """
    mixed = ((1 - OPACITY) * photo + OPACITY * voc_palette()[label]).round().astype(np.uint8)
    return Image.fromarray(np.where((label == BACKGROUND)[..., None], photo, mixed))


def legend(classes: Sequence[str]) -> list[dict[str, Any]]:
    """Return the index, name and colour (#rrggbb) of each class."""
    return [
        {"index": index, "name": name, "colour": f"#{bytes(voc_palette()[index]).hex()}"}
        for index, name in enumerate(classes)
    ]


def legend_names(path: Path) -> list[str]:
    """Return the names of the classes in a legend's file; none if it is missing or not a legend."""
    try:
        return [str(row["name"]) for row in json.loads(path.read_text("utf-8"))]
    except (OSError, ValueError, TypeError, KeyError):
        return []
