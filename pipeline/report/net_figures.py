"""The figures of one evaluated net: the folder figures/<profile>/<net>."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline import files, paths
from pipeline.curves import Curve, read_curve
from pipeline.evaluation import confusion
from pipeline.evaluation.bootstrap import mean_iu
from pipeline.evaluation.per_image import PerImage
from pipeline.report import canvas, curve_plots, gallery, plots
from pipeline.report.gallery import Seen
from pipeline.shards.dataset import Dataset
from pipeline.shards.read import Shards

# Images (N, 3, H, W) uint8 -> the probability of each pixel's best class, and that class, (N, H, W), on any device
Confidence = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


@dataclass(frozen=True)
class Scored:
    """The scores of one net.

    net: its name.
    values: the content of its metrics JSON.
    hist: (C, C) int64 pixels by label and prediction.
    images: the counts of each image.
    parent: name and metrics JSON of the net that it was started from; None if it has no scores.
    curve: of its training; None for a net that was trained elsewhere.
    """

    net: str
    values: dict[str, Any]
    hist: NDArray[np.int64]
    images: PerImage
    parent: tuple[str, dict[str, Any]] | None
    curve: Curve | None


def read_scored(
    profile: str,
    values: dict[str, Any],
    hist: NDArray[np.int64],
    images: PerImage,
    lineage: Mapping[str, Any],
) -> Scored:
    """Add the net's curve and its parent's scores, where their files exist.

    lineage: of the model file.
    """
    net = values["net"]
    curve = paths.curve(profile, net)
    if not curve.exists():
        print(f"no {curve}: {net} was trained elsewhere, so its curve is not drawn", flush=True)
    return Scored(
        net, values, hist, images, _parent(profile, lineage), read_curve(curve) if curve.exists() else None
    )


def _parent(profile: str, lineage: Mapping[str, Any]) -> tuple[str, dict[str, Any]] | None:
    name = lineage.get("parent")
    if name not in paths.CHAIN:
        return None
    path = paths.metrics(profile, name)
    values = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    # The parent may have been trained and scored again since
    return (name, values) if values.get("model_sha256") == lineage.get("parent_sha256") else None


def write(
    dest: Path,
    scored: Scored,
    confidence: Confidence,
    shards: Shards,
    num_figures: int,
    num_gallery: int,
) -> None:
    """Write the whole folder or none of it: PNG figures, confusion.csv and the gallery.

    num_figures: images in each figure of predictions.
    num_gallery: images in the gallery.
    """
    classes, net = shards.classes, scored.net
    with files.whole_folder(dest) as folder:
        title = plots.scored_title(net, scored.values)
        canvas.save(plots.confusion(scored.hist, classes, title), folder / "confusion.png")
        confusion.write(folder / confusion.FILE, scored.hist, classes)
        nets = dict([scored.parent] if scored.parent else []) | {net: scored.values}
        canvas.save(plots.class_bars(nets), folder / "class_iu.png")
        if scored.curve:
            canvas.save(curve_plots.training_curves([scored.curve], f"{net}: training"), folder / "curve.png")

        scores = dict(zip(scored.images.keys, mean_iu(scored.images.whole).tolist(), strict=True))
        index = {key: i for i, key in enumerate(shards.keys)}
        worst, best = worst_and_best(scores, num_figures)
        for name, words, keys in (
            (plots.PREDICTIONS, "images spread over the split", spread(shards.keys, num_figures)),
            ("worst.png", "the worst images", worst),
            ("best.png", "the best images", best),
        ):
            seen = predict(confidence, shards, [index[key] for key in keys])
            rows = [(f"{shards.name_of(one.key)}  mean IU {scores[one.key]:.3f}", one) for one in seen]
            if rows:
                canvas.save(plots.predictions(rows, classes, f"{net}: {words}"), folder / name)

        shown = [index[key] for key in spread(shards.keys, num_gallery)]
        photos = (bytes(shards.read(i)[0]) for i in shown)
        images = zip(predict(confidence, shards, shown), photos, strict=True)
        gallery.write(folder / gallery.FOLDER, images, scored.values["model_sha256"], shards.name_of)


def spread(keys: Iterable[str], num: int) -> list[str]:
    """Return `num` keys at equal distances, the first and the last among them; all keys if there are fewer."""
    keys = list(keys)
    return [keys[i] for i in np.linspace(0, len(keys) - 1, min(num, len(keys)), dtype=int)]


def worst_and_best(scores: Mapping[str, float], num: int) -> tuple[list[str], list[str]]:
    """Return at most `num` keys of lowest score, lowest first, and of highest, highest first; none is in both.

    A score of NaN, of an image without a valid pixel, is left out. Equal scores are in the order of their keys.
    """
    ordered = sorted((score, key) for key, score in scores.items() if score == score)
    half = len(ordered) // 2
    best = sorted(ordered[half:], key=lambda item: (-item[0], item[1]))
    return [key for _, key in ordered[:half][:num]], [key for _, key in best[:num]]


@torch.inference_mode()
def predict(confidence: Confidence, shards: Shards, indices: Iterable[int]) -> Iterator[Seen]:
    """Yield the samples at these indices of the shards, at their own size, with the net's prediction."""
    for image, label, (key,) in Dataset(shards).read_ahead(indices):
        share, prediction = (each[0].cpu() for each in confidence(image))
        pixels = image[0].permute(1, 2, 0).numpy()
        share, prediction = share.mul(255).round().to(torch.uint8), prediction.to(torch.uint8)
        yield Seen(key, pixels, label[0].numpy(), prediction.numpy(), share.numpy())
