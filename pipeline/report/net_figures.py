"""All that is drawn of one evaluated net: the folder figures/<profile>/<net>."""

import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.curves import Curve
from pipeline.evaluation import confusion
from pipeline.evaluation.bootstrap import in_words, mean_iu
from pipeline.evaluation.per_image import PerImage
from pipeline.report import gallery, plots
from pipeline.report.gallery import Seen
from pipeline.shards.dataset import Dataset
from pipeline.shards.read import Shards

Probability = Callable[
    [torch.Tensor], torch.Tensor
]  # (N, 3, H, W) uint8 -> (N, C, H, W) float, on any device


@dataclass(frozen=True)
class Scored:
    """A net's numbers.

    values: its metrics JSON.   hist: (C, C) int64, pixels by label and prediction.
    parent: (name, metrics JSON) of the net it was started from; None if there is none.
    curve: None for a net that was trained elsewhere.
    """

    net: str
    values: dict[str, Any]
    hist: NDArray[np.int64]
    images: PerImage
    parent: tuple[str, dict[str, Any]] | None
    curve: Curve | None


def draw_all(
    dest: Path,
    scored: Scored,
    probability: Probability,
    shards: Shards,
    num_figures: int,
    num_gallery: int,
) -> None:
    """Writes the whole folder or nothing of it: pictures, confusion.csv and the folder gallery/."""
    dest.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{dest.name}.", dir=dest.parent) as scratch:
        folder = Path(scratch, dest.name)
        folder.mkdir()
        _draw_numbers(folder, scored, shards.classes)
        _draw_images(folder, scored, probability, shards, num_figures)
        shown = spread(len(shards), num_gallery)
        photos = (bytes(shards.read(index)[0]) for index in shown)
        seen = zip(look(probability, shards, shown), photos, strict=True)
        gallery.write(folder / gallery.FOLDER, seen, scored.values["model_sha256"])
        shutil.rmtree(dest, ignore_errors=True)
        folder.rename(dest)


def _draw_numbers(folder: Path, scored: Scored, classes: Sequence[str]) -> None:
    title = f"{scored.net}: mean IU {in_words(scored.values, 'mean_iu')}"
    plots.draw_confusion(scored.hist, classes, title, folder / "confusion.png")
    confusion.write(folder / confusion.FILE, scored.hist, classes)
    nets = dict([scored.parent] if scored.parent else []) | {scored.net: scored.values}
    plots.draw_class_bars(nets, folder / "class_iu.png")
    if scored.curve:
        plots.draw_curve(scored.curve, f"{scored.net}: training", folder / "curve.png")


def _draw_images(folder: Path, scored: Scored, probability: Probability, shards: Shards, num: int) -> None:
    """Of images spread over the split, of the worst and of the best."""
    scores = dict(zip(scored.images.keys, mean_iu(scored.images.whole).tolist(), strict=True))
    places = {key: index for index, key in enumerate(shards.keys)}
    worst, best = worst_and_best(scored.images, num)
    for name, words, keys in (
        (
            "predictions.png",
            "images spread over the split",
            [shards.keys[i] for i in spread(len(shards), num)],
        ),
        ("worst.png", "the worst images", [key for key, _ in worst]),
        ("best.png", "the best images", [key for key, _ in best]),
    ):
        seen = look(probability, shards, [places[key] for key in keys])
        rows = [(f"{one.key}  mean IU {scores[one.key]:.3f}", one) for one in seen]
        if rows:
            plots.draw_predictions(rows, shards.classes, f"{scored.net}: {words}", folder / name)


def spread(num_images: int, num: int) -> list[int]:
    """`num` places of a split, evenly far from each other, the first and the last among them; all, if it has fewer."""
    return np.linspace(0, num_images - 1, min(num, num_images), dtype=int).tolist()


def worst_and_best(images: PerImage, num: int) -> tuple[list[tuple[str, float]], list[tuple[str, float]]]:
    """(key, mean IU) of the images that score least, worst first, and most, best first; never one in both.

    An image without a valid pixel has no score. Of equal scores the first key comes first.
    """
    scores = mean_iu(images.whole)
    scored = [(key, float(score)) for key, score in zip(images.keys, scores, strict=True) if score == score]
    ordered = sorted(scored, key=lambda one: (one[1], one[0]))
    best = sorted(ordered[len(ordered) // 2 :], key=lambda one: (-one[1], one[0]))
    return ordered[: len(ordered) // 2][:num], best[:num]


@torch.inference_mode()
def look(probability: Probability, shards: Shards, indices: Iterable[int]) -> Iterator[Seen]:
    """The samples at these places of the shards, one after the other, at their own size."""
    samples = Dataset(shards)
    for index in indices:
        image, label, (key,) = samples[index]
        confidence, prediction = (best[0].cpu() for best in probability(image).max(1))
        pixels = image[0].permute(1, 2, 0).numpy()
        confidence, prediction = confidence.mul(255).round().to(torch.uint8), prediction.to(torch.uint8)
        yield Seen(key, pixels, label[0].numpy(), prediction.numpy(), confidence.numpy())
