"""Figures: each function draws one; `save` writes it as a PNG file, `as_svg` returns it for a page."""

import io
import re
import sys
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib import font_manager
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator, NullFormatter
from numpy.typing import NDArray

from fcn import IGNORE_LABEL
from pipeline import files
from pipeline.curves import VALIDATION, Curve
from pipeline.evaluation.confusion import row_normalised
from pipeline.report.gallery import Seen
from pipeline.shards.labels import voc_palette

INCHES = 2.2  # the side of one picture
DPI = 110
WRONG, VOID = (224, 32, 96), (224, 224, 192)  # RGB, of the overlay of errors
MAX_NUMBERED = 30  # classes up to which a confusion matrix has its numbers written in
MAX_POINTS = 500  # of a line; more are narrower than a pixel
FAR_APART = 20  # the ratio of two lines at which a linear axis would show one of them as zero
CURVES = {"loss": "loss", "val_loss": "val loss", "val_mean_iu": "val mean IU", "lr": "learning rate"}


FONTS = (  # in which a letter is looked for, in order; the first has Latin, Greek, Cyrillic, Arabic ... letters
    "DejaVu Sans",
    "Noto Sans CJK SC",
    "Noto Sans CJK JP",
    "Noto Sans CJK KR",
    "Noto Sans SC",
    "Source Han Sans SC",
    "WenQuanYi Micro Hei",
    "WenQuanYi Zen Hei",
    "Droid Sans Fallback",
    "PingFang SC",
    "Hiragino Sans GB",
    "Microsoft YaHei",
    "SimHei",
    "Yu Gothic",
    "Malgun Gothic",
    "Apple SD Gothic Neo",
    "Arial Unicode MS",
    "Noto Sans Devanagari",
    "Noto Sans Thai",
)
_MISSING_LETTER = re.compile(r"Glyph (\d+) .*missing from")  # a warning of matplotlib


def families(installed: Collection[str]) -> list[str]:
    """Return those of FONTS that are installed; matplotlib warns of each other one."""
    return [name for name in FONTS if name in installed] or [FONTS[0]]


matplotlib.rcParams["font.family"] = families({font.name for font in font_manager.fontManager.ttflist})
_told: set[str] = set()  # letters of which a sentence was printed


def missing_letters(text: str) -> set[str]:
    """Return the letters of a text that no font in use has."""
    fonts = [
        font_manager.get_font(font_manager.findfont(name)) for name in matplotlib.rcParams["font.family"]
    ]
    return {letter for letter in text if not any(font.get_char_index(ord(letter)) for font in fonts)}


def font_advice(letters: Collection[str]) -> str:
    return (
        f"no installed font has the letters {''.join(sorted(letters))}, so figures show boxes for them; install "
        "a font of that script, such as Noto Sans CJK (Debian: fonts-noto-cjk)"
    )


@contextmanager
def _missing_letters_in_one_sentence() -> Iterator[None]:
    """Print one sentence for all letters that no font has, in place of a warning for each."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    letters = set()
    for warning in caught:
        if match := _MISSING_LETTER.match(str(warning.message)):
            letters.add(chr(int(match[1])))
        else:
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
    if letters - _told:
        print(font_advice(letters), file=sys.stderr, flush=True)
        _told.update(letters)


def save(figure: Figure, path: Path) -> None:
    """Write a figure as a PNG file."""
    with files.whole(path) as file, _missing_letters_in_one_sentence():
        figure.savefig(file, dpi=DPI, format="png")


def as_svg(figure: Figure) -> str:
    """Return a newly drawn figure as an <svg> element: the same for the same data, without scripts and outer files."""
    text = io.StringIO()
    with (
        matplotlib.rc_context({"svg.hashsalt": "fcn"}),
        _missing_letters_in_one_sentence(),
    ):  # else ids are random
        figure.savefig(text, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    svg = text.getvalue()
    return svg[svg.index("<svg") :]  # the prolog names a DTD at w3.org


def predictions(rows: Sequence[tuple[str, Seen]], classes: Sequence[str], title: str) -> Figure:
    """Draw image, label, prediction and error side by side, in VOC's colours.

    rows: a caption and an image for each row.
    """
    figure = _figure(4 * INCHES, len(rows) * INCHES + 0.9)
    axes = figure.subplots(len(rows), 4, squeeze=False)
    palette = voc_palette()
    for line, (caption, seen) in zip(axes, rows, strict=True):
        pictures = (seen.image, palette[seen.label], palette[seen.prediction], error_overlay(seen))
        for axis, picture in zip(line, pictures, strict=True):
            axis.imshow(picture, interpolation="nearest")
            axis.axis("off")
        line[0].set_title(_plain(caption), fontsize=7)
    for axis, caption in zip(axes[0, 1:], ("label", "prediction", "error (red), void (grey)"), strict=True):
        axis.set_title(caption, fontsize=7)
    figure.suptitle(_plain(title), fontsize=9)
    patches = [Patch(color=palette[i] / 255, label=_plain(name)) for i, name in enumerate(classes)]
    figure.legend(handles=patches, loc="outside lower center", ncols=7, fontsize=6, frameon=False)
    return figure


def pairs(rows: Sequence[tuple[str, NDArray[np.uint8], NDArray[np.uint8]]]) -> Figure:
    """Draw pairs of photos side by side, two pairs in a row.

    rows: for each pair a caption and two photos, (H, W, 3) RGB.
    """
    num_rows = -(-len(rows) // 2)
    figure = _figure(4 * INCHES, num_rows * INCHES)
    axes = figure.subplots(num_rows, 4, squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for (left, right), (caption, *photos) in zip(axes.reshape(-1, 2), rows, strict=False):
        for axis, photo in zip((left, right), photos, strict=True):
            axis.imshow(photo, interpolation="nearest")
        left.set_title(_plain(caption), fontsize=7, loc="left")
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
    figure = _figure(side + 0.8, side)
    axis = figure.subplots()
    axis.set_facecolor("0.85")
    image = axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    names = [_plain(name) for name in classes]
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
    axis.set_title(_plain(title), fontsize=9)
    return figure


def training_curves(curves: Sequence[Curve], title: str) -> Figure:
    """Draw loss, loss and mean IU on val (if they were measured) and learning rate over the training steps.

    A dotted line marks the step whose net was kept, if scores on val decided it.

    curves: of one net, or of several; each then begins at the step where its parent ended.
    """
    return curve_bands([[curve] for curve in curves], title)


def curve_bands(groups: Sequence[Sequence[Curve]], title: str) -> Figure:
    """Draw the same of several seeds: a line is their mean, and its band reaches from the least to the greatest.

    groups: of each net, its curve with each seed.
    """
    curves = [group[0] for group in groups]
    names = [name for name in CURVES if any(curve.of(name)[0] for curve in curves)]
    figure = _figure(6.5, 1 + 1.7 * len(names))
    axes = figure.subplots(max(1, len(names)), 1, sharex=True, squeeze=False)[:, 0]
    starts = first_steps(curves)
    for axis, name in zip(axes, names, strict=False):
        lines = []
        for group in groups:
            net, (steps, values) = group[0].net, _of_all(group, name)
            mean = values.mean(0).tolist()
            x, y = thinned([step + starts[net] for step in steps]), thinned(mean)
            axis.plot(x, y, linewidth=1.2, marker="." if len(x) < 60 else None, label=_plain(net))
            if len(group) > 1:
                axis.fill_between(x, thinned(values.min(0)), thinned(values.max(0)), alpha=0.25, linewidth=0)
            lines.append((net, steps, mean))
        for curve in chain.from_iterable(groups) if name.startswith(VALIDATION) else ():
            if "best_by" in curve.kept:
                axis.axvline(starts[curve.net] + curve.kept["step"], color="grey", linestyle=":", linewidth=1)
        tops = [max(values) for _, _, values in lines if values]
        is_positive = all(min(values) > 0 for _, _, values in lines if values)
        if is_positive and (name.endswith("loss") or max(tops) > FAR_APART * min(tops)):
            axis.set_yscale("log")
        axis.set_ylabel(CURVES[name])
        axis.grid(alpha=0.3)
    figure.align_ylabels(axes)
    axes[-1].set_xlabel("step")
    axes[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.suptitle(_plain(title), fontsize=9)
    if len(curves) > 1:
        handles = axes[0].get_lines()
        figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)
    return figure


def _of_all(curves: Sequence[Curve], name: str) -> tuple[list[float], NDArray[np.float64]]:
    """Return the steps at which all curves have this value, and the values: (number of curves, number of steps)."""
    points = [dict(zip(*curve.of(name), strict=True)) for curve in curves]
    steps = sorted(set(points[0]).intersection(*points[1:]))
    return steps, np.array([[values[step] for step in steps] for values in points])


def seed_scores(
    scores: Mapping[str, Sequence[float]], intervals: Mapping[str, tuple[float, float]]
) -> Figure:
    """Draw the mean IU of every seed as a point, by net, beside the mean with its interval over seeds and images.

    scores: by net, one for each seed.
    intervals: by net, lower and upper end.
    """
    figure = _figure(1.5 + 1.6 * len(scores), 3)
    axis = figure.subplots()
    for i, (net, values) in enumerate(scores.items()):
        colour, mean, (low, high) = f"C{i}", float(np.mean(values)), intervals[net]
        axis.plot([i] * len(values), values, "o", color=colour, alpha=0.6)
        axis.errorbar(i + 0.2, mean, [[mean - low], [high - mean]], fmt="_", color=colour, capsize=4)
    axis.set_xticks(range(len(scores)), [_plain(net) for net in scores])
    axis.set_xlim(-0.5, len(scores) - 0.3)
    axis.set_ylabel("mean IU")
    axis.grid(axis="y", alpha=0.3)
    return figure


def first_steps(curves: Sequence[Curve]) -> dict[str, float]:
    """Return by net the step at which its curve begins: the end of its parent's curve, 0 without a parent here."""
    starts: dict[str, float] = {}
    ends: dict[str, float] = {}
    for curve in curves:
        starts[curve.net] = ends.get(curve.parent, 0.0)
        ends[curve.net] = starts[curve.net] + (curve.points[-1]["step"] if curve.points else 0.0)
    return starts


def thinned(values: Sequence[float] | NDArray[np.float64]) -> list[float]:
    """Return at most MAX_POINTS values, each the mean of its neighbours."""
    if len(values) <= MAX_POINTS:
        return list(values)
    return [float(part.mean()) for part in np.array_split(np.asarray(values), MAX_POINTS)]


def class_bars(scores: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Draw the IU of every class, the nets side by side.

    scores: by net, its metrics JSON.
    """
    classes = list(next(iter(scores.values()))["class_iu"])
    width = 0.8 / len(scores)
    figure = _figure(max(5.0, 0.7 * len(classes)), 3)
    axis = figure.subplots()
    for i, (net, values) in enumerate(scores.items()):
        heights = [values["class_iu"][name] or 0.0 for name in classes]
        axis.bar(np.arange(len(classes)) + i * width, heights, width, label=_plain(net))
    names = [_plain(name) for name in classes]
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
    figure = _figure(12, 7)
    axes = figure.subplots(2, 2)
    (pixels, images), (height, width) = axes
    for i, (split, counts) in enumerate(splits.items()):
        classes, num_images = counts["classes"], counts["num_images"]
        x = np.arange(len(classes)) + (i - (len(splits) - 1) / 2) * 0.8 / len(splits)
        pixel_shares = [shown["share"] for shown in classes.values()]
        image_shares = [shown["num_images"] / num_images for shown in classes.values()]
        for axis, heights in ((pixels, pixel_shares), (images, image_shares)):
            axis.bar(x, heights, 0.8 / len(splits), label=split)
            names = [_plain(name) for name in classes]
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


def _figure(width: float, height: float) -> Figure:
    """Return an empty figure of a size in inches; it belongs to no window, so it needs no screen and no closing."""
    return Figure(figsize=(width, height), layout="constrained")


def _plain(text: str) -> str:
    """Escape the dollar, with which matplotlib begins a formula."""
    return text.replace("$", r"\$")
