"""Figures and the table: what a person looks at. No other module draws."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # no screen on a cluster

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import Patch
from numpy.typing import NDArray

from pipeline.datasets.files import voc_palette

Row = tuple[str, NDArray[np.uint8], NDArray[np.uint8], NDArray[np.uint8]]
INCHES = 2.2  # the side of one picture
COLUMNS = ("mean_iu", "pixel_acc", "mean_acc", "fw_iu")
# FCN-32s/16s/8s of the paper on PASCAL VOC seg11valid (Long et al., CVPR 2015, table 2), in percent
PUBLISHED = {
    "fcn32s": {"pixel_acc": 89.1, "mean_acc": 73.3, "mean_iu": 59.4, "fw_iu": 81.4},
    "fcn16s": {"pixel_acc": 90.0, "mean_acc": 75.7, "mean_iu": 62.4, "fw_iu": 83.0},
    "fcn8s": {"pixel_acc": 90.3, "mean_acc": 75.9, "mean_iu": 62.7, "fw_iu": 83.2},
}


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


def table(scores: Mapping[str, Mapping[str, Any]]) -> str:
    """A Markdown table: nets down, the four scores across, beside the paper's mean IU on its own data."""
    head = ["net", *COLUMNS, "images", "paper's mean_iu*"]
    lines = [head, ["---"] * len(head)]
    for net, values in scores.items():
        row = ["nan" if values[name] is None else f"{values[name]:.3f}" for name in COLUMNS]
        lines.append([net, *row, str(values["num_images"]), f"{PUBLISHED[net]['mean_iu'] / 100:.3f}"])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


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


def write_report(profile: str, scores: Mapping[str, Mapping[str, Any]], figures: Path, dest: Path) -> str:
    """Writes dest/README.md with table, bars and pictures; returns the table. figures: folder with <net>.png."""
    dest.mkdir(parents=True, exist_ok=True)
    draw_class_bars(scores, dest / "class_iu.png")
    parts = [f"# FCN on profile `{profile}`", table(scores)]
    parts.append("\\* on PASCAL VOC seg11valid (CVPR 2015, table 2): comparable only on that split.")
    parts.append("![IU of every class](class_iu.png)")
    for net in scores:
        picture = dest / f"{net}.png"
        picture.write_bytes((figures / f"{net}.png").read_bytes())
        parts.append(f"## {net}\n\n![image, label and prediction of {net}]({picture.name})")
    (dest / "README.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    return table(scores)
