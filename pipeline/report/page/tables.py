"""The page's tables of numbers."""

import html
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.evaluation.compare import Result
from pipeline.evaluation.confusion import row_normalised
from pipeline.report.page.viewer import swatch
from pipeline.shards.labels import voc_palette
from pipeline.tables import html_table

MAX_MATRIX = 40  # classes up to which a confusion matrix can be read on a page


def wide(inner: str, label: str) -> str:
    """Scrolls by itself, also by keyboard, where the window is narrow."""
    return f'<div class="wide" role="region" tabindex="0" aria-label="{html.escape(label)}">\n{inner}\n</div>'


def classes(
    results: Sequence[Result], names_of_classes: Sequence[str], counts: Mapping[str, Mapping[str, Any]]
) -> str:
    """IU of every class by net, as numbers and bars.   counts: by class, of the training split."""
    names = [html.escape(one.name) for one in results]
    head = ["class", "training images", "share of pixels", *(f"IU {name}" for name in names)]
    if len(names) > 1:
        head.append(f"{names[-1]} - {names[0]}")
    rows = []
    for index, name in enumerate(names_of_classes):
        found = [one.values["class_iu"].get(name) for one in results]
        known = counts.get(name, {"num_images": "-", "share": None})
        share = "-" if known["share"] is None else f"{known['share']:.2%}"
        row = [
            swatch(voc_palette()[index].tolist()) + html.escape(name),
            str(known["num_images"]),
            share,
        ]
        row += [_bar(value, i) for i, value in enumerate(found)]
        if len(names) > 1:
            gap = None if found[0] is None or found[-1] is None else found[-1] - found[0]
            row.append("-" if gap is None else f"{gap:+.3f}")
        rows.append(row)
    table = "\n".join(html_table(head, rows)).replace("<table>", '<table class="numbers">', 1)
    return wide(table, "Scores by class")


def _bar(value: float | None, colour: int) -> str:
    if value is None:
        return "-"
    return f'<span class="bar c{colour}" style="--v:{value:.3f}"></span>{value:.3f}'


def confusions(
    profile: str,
    results: Sequence[Result],
    names_of_classes: Sequence[str],
    hists: Sequence[NDArray[np.int64]],
) -> str:
    """Each net's confusion matrix, the last one's open.   hists: (C, C) pixels by label and prediction."""
    if len(names_of_classes) > MAX_MATRIX:
        return (
            f"<p>{len(names_of_classes)} classes are too many for a matrix on a page: the counts are in "
            f"figures/{html.escape(profile)}/NET/confusion.csv.</p>"
        )
    parts = [
        "<p>Of each class's pixels, a row, the percentage that is predicted as each class, a column.</p>"
    ]
    for one, hist in zip(results, hists, strict=True):
        is_last = one is results[-1]
        name = html.escape(one.name)
        table = wide(_matrix(hist, names_of_classes), f"Confusion matrix of {one.name}")
        parts.append(f"<details{' open' if is_last else ''}><summary>{name}</summary>\n{table}\n</details>")
    return "\n".join(parts)


def _matrix(hist: NDArray[np.int64], classes: Sequence[str]) -> str:
    head = ["label", *(f"<span>{html.escape(name)}</span>" for name in classes)]
    lines = [
        '<table class="matrix">',
        "<tr>" + "".join(f'<th scope="col">{cell}</th>' for cell in head) + "</tr>",
    ]
    for name, row in zip(classes, row_normalised(hist), strict=True):
        cells = ["<td>-</td>" if np.isnan(share) else _cell(float(share)) for share in row]
        lines.append(f'<tr><th scope="row">{html.escape(name)}</th>{"".join(cells)}</tr>')
    return "\n".join([*lines, "</table>"])


def _cell(share: float) -> str:
    words = f"{share * 100:.0f}" if share >= 0.005 else ""
    strong = ' class="strong"' if share > 0.5 else ""
    return f'<td{strong} style="--v:{share:.3f}">{words}</td>'
