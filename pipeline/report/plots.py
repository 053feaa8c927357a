"""Figures for people, as PNG files. No other module draws with matplotlib."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # no screen on a cluster

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator, NullFormatter
from numpy.typing import NDArray

from fcn import IGNORE_LABEL
from pipeline.curves import Curve
from pipeline.evaluation.confusion import row_normalised
from pipeline.report.gallery import Seen
from pipeline.shards.labels import voc_palette

INCHES = 2.2  # the side of one picture
DPI = 110
WRONG, VOID = (224, 32, 96), (224, 224, 192)  # of the pictures of errors
MAX_NUMBERED = 30  # classes up to which a confusion matrix has its numbers written in


def draw_predictions(
    rows: Sequence[tuple[str, Seen]], classes: Sequence[str], title: str, path: Path
) -> None:
    """Image, label, prediction and error side by side, a sample a row under its words, in VOC's colours."""
    figure, axes = plt.subplots(
        len(rows), 4, figsize=(4 * INCHES, len(rows) * INCHES + 0.9), squeeze=False, layout="constrained"
    )
    palette = voc_palette()
    for line, (words, seen) in zip(axes, rows, strict=True):
        pictures = (seen.image, palette[seen.label], palette[seen.prediction], error_overlay(seen))
        for axis, picture in zip(line, pictures, strict=True):
            axis.imshow(picture, interpolation="nearest")
            axis.axis("off")
        line[0].set_title(_plain(words), fontsize=7)
    for axis, words in zip(axes[0, 1:], ("label", "prediction", "error (red), void (grey)"), strict=True):
        axis.set_title(words, fontsize=7)
    figure.suptitle(_plain(title), fontsize=9)
    patches = [Patch(color=palette[i] / 255, label=_plain(name)) for i, name in enumerate(classes)]
    figure.legend(handles=patches, loc="outside lower center", ncols=7, fontsize=6, frameon=False)
    _save(figure, path)


def error_overlay(seen: Seen) -> NDArray[np.uint8]:
    """(H, W, 3): the image pale and grey, with what is wrong in WRONG and what is void in VOID."""
    grey = seen.image.mean(-1, keepdims=True) * 0.6 + 90
    picture = np.broadcast_to(grey, seen.image.shape).copy()
    picture[seen.label == IGNORE_LABEL] = VOID
    picture[seen.is_wrong] = WRONG
    return picture.astype(np.uint8)


def draw_confusion(hist: NDArray[np.integer], classes: Sequence[str], title: str, path: Path) -> None:
    """Of each class's pixels, a row, the share that was predicted as each class; a row of grey if it has none."""
    shares, num = row_normalised(hist), len(classes)
    side = max(4.0, 1.8 + 0.42 * num)
    figure, axis = plt.subplots(figsize=(side + 0.8, side), layout="constrained")
    axis.set_facecolor("0.85")
    image = axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    names = [_plain(name) for name in classes]
    axis.set_xticks(range(num), names, rotation=90, fontsize=8)
    axis.set_yticks(range(num), names, fontsize=8)
    axis.set_xlabel("predicted")
    axis.set_ylabel("label")
    if num <= MAX_NUMBERED:
        for (row, column), share in np.ndenumerate(shares):
            if share >= 0.005:  # else it would read 0
                colour = "white" if share > 0.55 else "black"
                axis.text(
                    column, row, f"{share:.0%}"[:-1], ha="center", va="center", fontsize=7, color=colour
                )
    figure.colorbar(image, shrink=0.7, label="share of the label's pixels")
    axis.set_title(_plain(title), fontsize=9)
    _save(figure, path)


def draw_curve(curve: Curve, title: str, path: Path) -> None:
    """Loss, learning rate and, if it was looked at, the validation's mean IU over the steps of a net's training."""
    names = [name for name in ("loss", "lr", "val_mean_iu") if curve.of(name)[0]]
    figure, axes = plt.subplots(
        len(names), 1, figsize=(6.5, 1 + 1.7 * len(names)), sharex=True, squeeze=False, layout="constrained"
    )
    for axis, name in zip(axes[:, 0], names, strict=True):
        steps, values = curve.of(name)
        axis.plot(steps, values, linewidth=1.2, marker="." if len(steps) < 60 else None)
        axis.set_ylabel({"lr": "learning rate", "val_mean_iu": "val mean IU"}.get(name, name))
        axis.grid(alpha=0.3)
    if names:
        axes[-1, 0].set_xlabel("step")
        axes[-1, 0].xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.suptitle(_plain(title), fontsize=9)
    _save(figure, path)


def draw_class_bars(scores: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """IU of every class, the nets side by side."""
    classes = list(next(iter(scores.values()))["class_iu"])
    width = 0.8 / len(scores)
    figure, axis = plt.subplots(figsize=(max(5.0, 0.7 * len(classes)), 3), layout="constrained")
    for i, (net, values) in enumerate(scores.items()):
        heights = [values["class_iu"][name] or 0.0 for name in classes]
        axis.bar(np.arange(len(classes)) + i * width, heights, width, label=_plain(net))
    names = [_plain(name) for name in classes]
    axis.set_xticks(np.arange(len(classes)) + 0.4 - width / 2, names, rotation=30, ha="right")
    axis.set_ylim(0, 1)
    axis.set_ylabel("IU")
    axis.grid(axis="y", alpha=0.3)
    figure.legend(loc="outside upper right", ncols=len(scores), frameon=False)
    _save(figure, path)


def draw_inspection(found: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """The splits of a data set side by side (inspection.inspect): their classes' pixels and images, their sizes."""
    figure, axes = plt.subplots(2, 2, figsize=(12, 7), layout="constrained")
    (pixels, images), (height, width) = axes
    for i, (split, one) in enumerate(found.items()):
        classes = one["classes"]
        at = np.arange(len(classes)) + (i - (len(found) - 1) / 2) * 0.8 / len(found)
        shares = [counts["share"] for counts in classes.values()]
        showing = [counts["num_images"] / one["num_images"] for counts in classes.values()]
        for axis, heights in ((pixels, shares), (images, showing)):
            axis.bar(at, heights, 0.8 / len(found), label=split)
            axis.set_xticks(np.arange(len(classes)), list(classes), rotation=60, ha="right", fontsize=8)
        for axis, side in ((height, one["height"]), (width, one["width"])):
            counts = np.array(side["histogram"]["num_images"]) / one["num_images"]
            axis.stairs(counts, side["histogram"]["edges"], label=split, fill=True, alpha=0.5)
    pixels.set_yscale("log")
    pixels.yaxis.set_minor_formatter(NullFormatter())
    for axis in axes.flat:
        axis.yaxis.set_major_formatter(lambda share, _: f"{share:.4%}".rstrip("0%").rstrip(".") + "%")
    pixels.set_title("share of the pixels that are not void", fontsize=9)
    images.set_title("share of the images that show the class", fontsize=9)
    height.set_title("height: share of the images", fontsize=9)
    width.set_title("width: share of the images", fontsize=9)
    figure.suptitle("\n".join(_summary(split, one) for split, one in found.items()), fontsize=10)
    figure.legend(*pixels.get_legend_handles_labels(), loc="outside right upper", frameon=False)
    _save(figure, path)


def _summary(split: str, one: Mapping[str, Any]) -> str:
    converted = ", ".join(f"{count} {said}" for said, count in one["conversions"].items()) or "none"
    return (
        f"{split}: {one['num_images']} images, different sizes: {one['num_sizes']}, "
        f"void: {one['void']['share']:.1%} of pixels, converted: {converted}, refused: {len(one['refused'])}"
    )


def _plain(words: str) -> str:
    """Words that matplotlib writes as they are: a dollar begins a formula otherwise."""
    return words.replace("$", r"\$")


def _save(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=DPI)
    plt.close(figure)
