"""Figures and the report: what a person looks at. No other module draws."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # no screen on a cluster

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import Patch
from matplotlib.ticker import NullFormatter
from numpy.typing import NDArray

from pipeline.datasets.files import voc_palette

Row = tuple[str, NDArray[np.uint8], NDArray[np.uint8], NDArray[np.uint8]]
INCHES = 2.2  # the side of one picture


def draw_predictions(rows: Sequence[Row], classes: Sequence[str], title: str, path: Path) -> None:
    """Image, label and prediction side by side, a sample a row, in VOC's colours, with a legend."""
    figure, axes = plt.subplots(
        len(rows), 3, figsize=(3 * INCHES, len(rows) * INCHES + 0.9), squeeze=False, layout="constrained"
    )
    palette = voc_palette()
    for line, (key, image, label, prediction) in zip(axes, rows, strict=True):
        for axis, picture in zip(line, (image, palette[label], palette[prediction]), strict=True):
            axis.imshow(picture, interpolation="nearest")
            axis.axis("off")
        line[0].set_title(key, fontsize=7)
    axes[0, 1].set_title("label", fontsize=7)
    axes[0, 2].set_title("prediction", fontsize=7)
    figure.suptitle(title, fontsize=9)
    patches = [Patch(color=palette[i] / 255, label=name) for i, name in enumerate(classes)]
    figure.legend(handles=patches, loc="outside lower center", ncols=7, fontsize=6, frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def draw_class_bars(scores: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """IU of every class, the nets side by side."""
    classes = list(next(iter(scores.values()))["class_iu"])
    width = 0.8 / len(scores)
    figure, axis = plt.subplots(figsize=(max(5.0, 0.7 * len(classes)), 3), layout="constrained")
    for i, (net, values) in enumerate(scores.items()):
        heights = [values["class_iu"][name] or 0.0 for name in classes]
        axis.bar(np.arange(len(classes)) + i * width, heights, width, label=net)
    axis.set_xticks(np.arange(len(classes)) + 0.4 - width / 2, classes, rotation=30, ha="right")
    axis.set_ylabel("IU")
    axis.legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def write_report(
    profile: str,
    scores: Mapping[str, Mapping[str, Any]],
    tables: str,
    figures: Path,
    inspection: Path,
    dest: Path,
) -> None:
    """Writes dest/README.md with tables, bars, pictures and what the data are like.

    tables: Markdown.   figures: folder with <net>.png.   inspection: what stages/inspect.py wrote.
    """
    dest.mkdir(parents=True, exist_ok=True)
    draw_class_bars(scores, dest / "class_iu.png")
    parts = [f"# FCN on profile `{profile}`", tables]
    for net, values in scores.items():
        if values["num_leaked"]:
            parts.append(
                f"**LEAK: {net} was trained on {values['num_leaked']} of the {values['num_images']} images it is "
                "scored on.** Why that was allowed stands below, under Data."
            )
    parts.append("![IU of every class](class_iu.png)")
    for net in scores:
        picture = dest / f"{net}.png"
        picture.write_bytes((figures / f"{net}.png").read_bytes())
        parts.append(f"## {net}\n\n![image, label and prediction of {net}]({picture.name})")
    (dest / "inspection.png").write_bytes((inspection / "inspection.png").read_bytes())
    parts.append("## Data\n\n![classes and sizes](inspection.png)")
    parts += [(inspection / f"{name}.md").read_text("utf-8").strip() for name in ("inspection", "leaks")]
    (dest / "README.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")


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
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _summary(split: str, one: Mapping[str, Any]) -> str:
    converted = ", ".join(f"{count} {said}" for said, count in one["conversions"].items()) or "none"
    return (
        f"{split}: {one['num_images']} images, different sizes: {one['num_sizes']}, "
        f"void: {one['void']['share']:.1%} of pixels, converted: {converted}, refused: {len(one['refused'])}"
    )
