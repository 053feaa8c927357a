"""All that is drawn of one evaluated net: the folder figures/<profile>/<net>."""

import csv
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fcn.model import FCN
from pipeline import figures, gallery
from pipeline.curves import Curve
from pipeline.per_image import PerImage
from pipeline.shards import Shards
from pipeline.uncertainty import in_words, mean_iu

CONFUSION = "confusion.csv"
PREDICTIONS = "predictions.png"


@dataclass(frozen=True)
class Scored:
    """A net's numbers.

    values: its metrics JSON.   hist: (C, C) int64, pixels by label and prediction.
    parent: (name, metrics JSON) of the net it was started from; None if there is none.
    """

    net: str
    values: dict[str, Any]
    hist: NDArray[np.int64]
    images: PerImage
    parent: tuple[str, dict[str, Any]] | None
    curve: Curve


def draw_all(
    dest: Path,
    scored: Scored,
    model: FCN,
    shards: Shards,
    num_figures: int,
    num_gallery: int,
    device: torch.device,
) -> None:
    """Writes the whole folder or nothing of it: pictures, confusion.csv and the folder gallery/."""
    dest.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{dest.name}.", dir=dest.parent) as scratch:
        folder = Path(scratch, dest.name)
        folder.mkdir()
        _draw_numbers(folder, scored, shards.classes)
        _draw_images(folder, scored, model, shards, num_figures, device)
        shown = gallery.look(model, shards, gallery.spread(len(shards), num_gallery), device)
        gallery.write(folder / "gallery", shards, shown, scored.values["model_sha256"])
        shutil.rmtree(dest, ignore_errors=True)
        folder.rename(dest)


def _draw_numbers(folder: Path, scored: Scored, classes: Sequence[str]) -> None:
    title = f"{scored.net}: mean IU {in_words(scored.values, 'mean_iu')}"
    figures.draw_confusion(scored.hist, classes, title, folder / "confusion.png")
    write_confusion(scored.hist, classes, folder / CONFUSION)
    nets = dict([scored.parent] if scored.parent else []) | {scored.net: scored.values}
    figures.draw_class_bars(nets, folder / "class_iu.png")
    figures.draw_curve(scored.curve, f"{scored.net}: training", folder / "curve.png")


def _draw_images(
    folder: Path, scored: Scored, model: FCN, shards: Shards, num: int, device: torch.device
) -> None:
    """Of images spread over the split, of the worst and of the best."""
    scores = dict(zip(scored.images.keys, mean_iu(scored.images.whole).tolist(), strict=True))
    places = {key: index for index, key in enumerate(shards.keys)}
    worst, best = gallery.worst_and_best(scored.images, num)
    for name, words, keys in (
        (
            PREDICTIONS,
            "images spread over the split",
            [shards.keys[i] for i in gallery.spread(len(shards), num)],
        ),
        ("worst.png", "the worst images", [key for key, _ in worst]),
        ("best.png", "the best images", [key for key, _ in best]),
    ):
        seen = gallery.look(model, shards, [places[key] for key in keys], device)
        rows = [(f"{one.key}  mean IU {scores[one.key]:.3f}", one) for one in seen]
        if rows:
            figures.draw_predictions(rows, shards.classes, f"{scored.net}: {words}", folder / name)


def write_confusion(hist: NDArray[np.int64], classes: Sequence[str], path: Path) -> None:
    """A row a label, a column a prediction, in pixels."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["label", *classes])
        writer.writerows([name, *row] for name, row in zip(classes, hist.tolist(), strict=True))


def read_confusion(path: Path) -> NDArray[np.int64]:
    """(C, C) int64, what `write_confusion` wrote."""
    with path.open(encoding="utf-8", newline="") as file:
        return np.array([row[1:] for row in list(csv.reader(file))[1:]], dtype=np.int64)
