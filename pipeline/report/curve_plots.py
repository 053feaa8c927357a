"""Figures of curves and scores of one or several seeds: each function draws one."""

from collections.abc import Mapping, Sequence
from itertools import chain

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from pipeline.curves import VALIDATION, Curve
from pipeline.report.canvas import canvas, plain

MAX_POINTS = 500  # of a line; more are narrower than a pixel
FAR_APART = 20  # the ratio of two lines at which a linear axis would show one of them as zero
CURVES = {"loss": "loss", "val_loss": "val loss", "val_mean_iu": "val mean IU", "lr": "learning rate"}


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
    names = [name for name in CURVES if any(_of_all(group, name)[0] for group in groups)]
    figure = canvas(6.5, 1 + 1.7 * len(names))
    axes = figure.subplots(max(1, len(names)), 1, sharex=True, squeeze=False)[:, 0]
    starts = first_steps(curves)
    for axis, name in zip(axes, names, strict=False):
        lines = []
        for group in groups:
            net, (steps, values) = group[0].net, _of_all(group, name)
            mean = values.mean(0).tolist()
            x, y = thinned([step + starts[net] for step in steps]), thinned(mean)
            axis.plot(x, y, linewidth=1.2, marker="." if len(x) < 60 else None, label=plain(net))
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
    figure.suptitle(plain(title), fontsize=9)
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
    figure = canvas(1.5 + 1.6 * len(scores), 3)
    axis = figure.subplots()
    for i, (net, values) in enumerate(scores.items()):
        colour, mean, (low, high) = f"C{i}", float(np.mean(values)), intervals[net]
        axis.plot([i] * len(values), values, "o", color=colour, alpha=0.6)
        axis.errorbar(i + 0.2, mean, [[mean - low], [high - mean]], fmt="_", color=colour, capsize=4)
    axis.set_xticks(range(len(scores)), [plain(net) for net in scores])
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
