"""Figures of images, classes and splits: each function draws one."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import NullFormatter
from numpy.typing import NDArray

from fcn import IGNORE_LABEL
from pipeline.evaluation.bootstrap import with_interval
from pipeline.evaluation.confusion import row_normalised
from pipeline.report.canvas import canvas, plain
from pipeline.report.gallery import Seen
from pipeline.shards.labels import voc_palette

PREDICTIONS = "predictions.png"  # of images spread over the split
INCHES = 2.2  # the side of one picture
WRONG, VOID = (224, 32, 96), (224, 224, 192)  # RGB, of the overlay of errors
MAX_NUMBERED = 30  # classes up to which a confusion matrix has its numbers written in


def scored_title(net: str, values: Mapping[str, Any]) -> str:
    """Return a figure's title: the net's name and its mean IU, of its metrics JSON."""
    return f"{net}: mean IU {with_interval(values, 'mean_iu')}"


def predictions(rows: Sequence[tuple[str, Seen]], classes: Sequence[str], title: str) -> Figure:
    """Draw image, label, prediction and error side by side, in VOC's colours.

    rows: a caption and an image for each row.
    """
    figure = canvas(4 * INCHES, len(rows) * INCHES + 0.9)
    axes = figure.subplots(len(rows), 4, squeeze=False)
    palette = voc_palette()
    for line, (caption, seen) in zip(axes, rows, strict=True):
        pictures = (seen.image, palette[seen.label], palette[seen.prediction], error_overlay(seen))
        for axis, picture in zip(line, pictures, strict=True):
            axis.imshow(picture, interpolation="nearest")
            axis.axis("off")
        line[0].set_title(plain(caption), fontsize=7)
    for axis, caption in zip(axes[0, 1:], ("label", "prediction", "error (red), void (grey)"), strict=True):
        axis.set_title(caption, fontsize=7)
    figure.suptitle(plain(title), fontsize=9)
    patches = [Patch(color=palette[i] / 255, label=plain(name)) for i, name in enumerate(classes)]
    figure.legend(handles=patches, loc="outside lower center", ncols=7, fontsize=6, frameon=False)
    return figure


def pairs(rows: Sequence[tuple[str, NDArray[np.uint8], NDArray[np.uint8]]]) -> Figure:
    """Draw pairs of photos side by side, two pairs in a row.

    rows: for each pair a caption and two photos, (H, W, 3) RGB.
    """
    num_rows = -(-len(rows) // 2)
    figure = canvas(4 * INCHES, num_rows * INCHES)
    axes = figure.subplots(num_rows, 4, squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for (left, right), (caption, *photos) in zip(axes.reshape(-1, 2), rows, strict=False):
        for axis, photo in zip((left, right), photos, strict=True):
            axis.imshow(photo, interpolation="nearest")
        left.set_title(plain(caption), fontsize=7, loc="left")
    return figure


def error_overlay(seen: Seen) -> NDArray[np.uint8]:
    """Return the image in pale grey with wrong pixels in WRONG and void pixels in VOID, (H, W, 3)."""
    grey = seen.image.mean(-1, keepdims=True) * 0.6 + 90
    picture = np.broadcast_to(grey, seen.image.shape).copy()
    picture[seen.label == IGNORE_LABEL] = VOID
    picture[(seen.prediction != seen.label) & (seen.label != IGNORE_LABEL)] = WRONG
    return picture.astype(np.uint8)


def confusion(hist: NDArray[np.integer], classes: Sequence[str], title: str) -> Figure:
    """Draw the share of each class's pixels (row) that is predicted as each class (column), as a heat map.

    hist: (C, C) pixels by label and prediction. The row of a class without pixels is grey.
    """
    shares, num = row_normalised(hist), len(classes)
    side = max(4.0, 1.8 + 0.42 * num)
    figure = canvas(side + 0.8, side)
    axis = figure.subplots()
    axis.set_facecolor("0.85")
    image = axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    names = [plain(name) for name in classes]
    axis.set_xticks(range(num), names, rotation=90, fontsize=8)
    axis.set_yticks(range(num), names, fontsize=8)
    axis.set_xlabel("predicted")
    axis.set_ylabel("label")
    if num <= MAX_NUMBERED:
        for row, column in np.argwhere(shares >= 0.005):  # a smaller share would be written as 0
            share = shares[row, column]
            colour = "white" if share > 0.55 else "black"
            axis.text(column, row, f"{share * 100:.0f}", ha="center", va="center", fontsize=7, color=colour)
    figure.colorbar(image, shrink=0.7, label="share of the label's pixels")
    axis.set_title(plain(title), fontsize=9)
    return figure


def class_bars(scores: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Draw the IU of every class, the nets side by side.

    scores: by net, its metrics JSON.
    """
    classes = list(next(iter(scores.values()))["class_iu"])
    width = 0.8 / len(scores)
    figure = canvas(max(5.0, 0.7 * len(classes)), 3)
    axis = figure.subplots()
    for i, (net, values) in enumerate(scores.items()):
        heights = [values["class_iu"][name] or 0.0 for name in classes]
        axis.bar(np.arange(len(classes)) + i * width, heights, width, label=plain(net))
    names = [plain(name) for name in classes]
    axis.set_xticks(np.arange(len(classes)) + 0.4 - width / 2, names, rotation=30, ha="right")
    axis.set_ylim(0, 1)
    axis.set_ylabel("IU")
    axis.grid(axis="y", alpha=0.3)
    figure.legend(loc="outside upper right", ncols=len(scores), frameon=False)
    return figure


def inspection(splits: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Draw the splits of a data set side by side: pixels and images of each class, heights and widths.

    splits: by name, the result of inspection.describe.
    """
    figure = canvas(12, 7)
    axes = figure.subplots(2, 2)
    (pixels, images), (height, width) = axes
    for i, (split, counts) in enumerate(splits.items()):
        classes, num_images = counts["classes"], counts["num_images"]
        x = np.arange(len(classes)) + (i - (len(splits) - 1) / 2) * 0.8 / len(splits)
        pixel_shares = [shown["share"] for shown in classes.values()]
        image_shares = [shown["num_images"] / num_images for shown in classes.values()]
        for axis, heights in ((pixels, pixel_shares), (images, image_shares)):
            axis.bar(x, heights, 0.8 / len(splits), label=split)
            names = [plain(name) for name in classes]
            axis.set_xticks(np.arange(len(classes)), names, rotation=60, ha="right", fontsize=8)
        for axis, side in ((height, "height"), (width, "width")):
            histogram = counts[side]["histogram"]
            shares = np.array(histogram["num_images"]) / num_images
            axis.stairs(shares, histogram["edges"], label=split, fill=True, alpha=0.5)
    pixels.set_yscale("log")
    pixels.yaxis.set_minor_formatter(NullFormatter())
    for axis in axes.flat:
        axis.yaxis.set_major_formatter(lambda share, _: f"{share:.4%}".rstrip("0%").rstrip(".") + "%")
    pixels.set_title("share of the pixels that are not void", fontsize=9)
    images.set_title("share of the images that show the class", fontsize=9)
    height.set_title("height: share of the images", fontsize=9)
    width.set_title("width: share of the images", fontsize=9)
    figure.suptitle("\n".join(_summary(split, counts) for split, counts in splits.items()), fontsize=10)
    figure.legend(*pixels.get_legend_handles_labels(), loc="outside right upper", frameon=False)
    return figure


def _summary(split: str, counts: Mapping[str, Any]) -> str:
    converted = ", ".join(f"{count} {name}" for name, count in counts["conversions"].items()) or "none"
    return (
        f"{split}: {counts['num_images']} images, different sizes: {counts['num_sizes']}, "
        f"void: {counts['void']['share']:.1%} of pixels, converted: {converted}, refused: {len(counts['refused'])}"
    )
