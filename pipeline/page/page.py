"""The page's sections, from the numbers and pictures of a profile's nets."""

import hashlib
import html
import json
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fcn import IGNORE_LABEL
from pipeline.compare import Result, Table, as_text, split_of
from pipeline.curves import Curve
from pipeline.datasets.files import voc_palette
from pipeline.errors import ResultError
from pipeline.figures import row_normalised
from pipeline.gallery import Gallery
from pipeline.markdown import as_html, html_table
from pipeline.page import charts, images
from pipeline.uncertainty import mean_iu, pixel_acc

HERE = Path(__file__).parent
MAX_BYTES = 10 * 2**20  # of the page
FOR_TEXT = 2**20  # of it, for all but the gallery
MAX_MATRIX = 40  # classes up to which a confusion matrix can be read on a page
LAYERS = ("image", "label", "prediction", "error", "confidence")


@dataclass(frozen=True)
class Content:
    """What a page is made of; results, curves, confusions and galleries are of the same nets in the same order.

    confusions: (C, C) pixels by label and prediction.   inspection: what stages/inspect.py wrote.
    """

    profile: str
    classes: Sequence[str]
    results: Sequence[Result]
    scores: Table
    differences: Table
    curves: Sequence[Curve]
    confusions: Sequence[NDArray[np.int64]]
    galleries: Sequence[Gallery]
    inspection: Path


def write_page(path: Path, content: Content) -> None:
    """Writes the page whole or not at all; ResultError if it cannot be kept small."""
    text = build(content)
    if (size := len(text.encode())) > MAX_BYTES:
        raise ResultError(
            f"{path} would have {size / 2**20:.1f} MiB, more than {MAX_BYTES // 2**20}; lower evaluate.num_gallery"
        )
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def build(content: Content) -> str:
    """The HTML."""
    script, title = (HERE / "gallery.js").read_text("utf-8"), f"FCN on {content.profile}"
    sections = {
        "scores": ("Scores", _scores(content)),
        "images": ("Images", _gallery(content)),
        "classes": ("Classes", _classes(content)),
        "confusion": ("Confusion", _confusions(content)),
        "training": ("Training", _training(content)),
        "data": ("Data", _data(content)),
        "origin": ("Origin", _origin(content)),
    }
    digest = b64encode(hashlib.sha256(script.encode()).digest()).decode()
    # The browser itself holds the page to asking nobody for anything, and to running this script alone
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    links = "".join(f'<a href="#{name}">{words}</a>' for name, (words, _) in sections.items())
    body = "\n".join(
        f'<section id="{name}" aria-labelledby="h-{name}">\n<h2 id="h-{name}">{words}</h2>\n{inner}\n</section>'
        for name, (words, inner) in sections.items()
    )
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{html.escape(title)}</title>
<link rel="icon" href="data:,">
<style>
{(HERE / "style.css").read_text("utf-8")}</style>
</head>
<body>
<header>
<h1>{html.escape(title)}</h1>
<p class="summary">{html.escape(_summary(content))}</p>
<nav aria-label="Sections">{links}</nav>
</header>
<main>
{body}
</main>
<script>{script}</script>
</body>
</html>
"""


def _summary(content: Content) -> str:
    last = content.results[-1]
    return f"{last.name}: mean IU {in_words(last.values, 'mean_iu')} on {split_of(last)}"


def _wide(inner: str, label: str) -> str:
    """Scrolls by itself, also by keyboard, where the window is narrow."""
    return f'<div class="wide" role="region" tabindex="0" aria-label="{html.escape(label)}">\n{inner}\n</div>'


def _scores(content: Content) -> str:
    leaks = [
        f'<p class="leak"><strong>LEAK: {html.escape(one.name)} was trained on {one.values["num_leaked"]} of the '
        f"{one.values['num_images']} images it is scored on.</strong></p>"
        for one in content.results
        if one.values.get("num_leaked")
    ]
    parts = [*leaks, _table(content.scores, "Scores")]
    if content.differences.rows:
        parts += ["<h3>Differences</h3>", _table(content.differences, "Differences")]
    return "\n".join(parts)


def _table(table: Table, label: str) -> str:
    """compare's HTML, its table apart from the notes under it."""
    inner, end, notes = as_text(table, "html").partition("</table>")
    return _wide(inner + end, label) + f'\n<div class="notes">{notes}</div>'


def _swatch(colour: Sequence[int]) -> str:
    red, green, blue = colour
    return f'<i class="swatch" style="background:rgb({red},{green},{blue})"></i>'


def _nets_legend(content: Content) -> str:
    names = [
        f'<span><i class="key c{i}"></i>{html.escape(one.name)}</span>'
        for i, one in enumerate(content.results)
    ]
    return f'<p class="nets-legend">{"".join(names)}</p>'


def _classes(content: Content) -> str:
    counts = json.loads((content.inspection / "inspection.json").read_text("utf-8"))["train"]["classes"]
    names = [html.escape(one.name) for one in content.results]
    head = ["class", "training images", "share of pixels", *(f"IU {name}" for name in names)]
    if len(names) > 1:
        head.append(f"{names[-1]} - {names[0]}")
    rows = []
    for index, name in enumerate(content.classes):
        found = [one.values["class_iu"].get(name) for one in content.results]
        known = counts.get(name, {"num_images": "-", "share": None})
        share = "-" if known["share"] is None else f"{known['share']:.2%}"
        row = [_swatch(voc_palette()[index].tolist()) + html.escape(name), str(known["num_images"]), share]
        row += [_bar(value, i) for i, value in enumerate(found)]
        if len(names) > 1:
            gap = None if found[0] is None or found[-1] is None else found[-1] - found[0]
            row.append("-" if gap is None else f"{gap:+.3f}")
        rows.append(row)
    table = "\n".join(html_table(head, rows)).replace("<table>", '<table class="numbers">', 1)
    return _wide(table, "Scores by class")


def _bar(value: float | None, colour: int) -> str:
    if value is None:
        return "-"
    return f'<span class="bar c{colour}" style="--v:{value:.3f}"></span>{value:.3f}'


def _confusions(content: Content) -> str:
    if len(content.classes) > MAX_MATRIX:
        return (
            f"<p>{len(content.classes)} classes are too many for a matrix on a page: the counts are in "
            f"figures/{html.escape(content.profile)}/NET/confusion.csv.</p>"
        )
    parts = [
        "<p>Of each class's pixels, a row, the percentage that is predicted as each class, a column.</p>"
    ]
    for one, hist in zip(content.results, content.confusions, strict=True):
        is_last = one is content.results[-1]
        name = html.escape(one.name)
        table = _wide(_matrix(hist, content.classes), f"Confusion matrix of {one.name}")
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


def _training(content: Content) -> str:
    starts, ends = _offsets(content.curves), []
    for title, name in (
        ("loss", "loss"),
        ("mean IU on some of val", "val_mean_iu"),
        ("learning rate", "lr"),
    ):
        lines = []
        for i, curve in enumerate(content.curves):
            steps, values = curve.of(name)
            lines.append(charts.Line(curve.net, i, [step + starts[i] for step in steps], values))
        if drawn := charts.chart(title, lines, "steps, each net after the one it started from"):
            ends.append(f"<figure><figcaption>{title}</figcaption>{drawn}</figure>")
    note = "" if any(curve.of("val_mean_iu")[0] for curve in content.curves) else _NO_VALIDATION
    return f'{_nets_legend(content)}\n<div class="charts">\n{"".join(ends)}\n</div>\n{note}'


_NO_VALIDATION = "<p>Nothing was scored while training: <code>run.validate_every</code> is 0.</p>"


def _offsets(curves: Sequence[Curve]) -> list[float]:
    """How many steps were taken before each net's first: those of its parent, and of that one's, if they are here."""
    offsets: dict[str, float] = {}
    ends: dict[str, float] = {}
    for curve in curves:
        offsets[curve.net] = ends.get(curve.parent, 0.0)
        ends[curve.net] = offsets[curve.net] + (curve.points[-1]["step"] if curve.points else 0.0)
    return [offsets[curve.net] for curve in curves]


def _data(content: Content) -> str:
    picture = images.data_uri((content.inspection / "inspection.png").read_bytes(), "image/png")
    texts = [
        as_html((content.inspection / f"{name}.md").read_text("utf-8")) for name in ("inspection", "leaks")
    ]
    tables = _wide("\n".join(texts), "What the data are")
    words = "classes and sizes of train and val; the tables below say the same"
    return f'<img class="plot" alt="{words}" src="{picture}">\n{tables}'


def _origin(content: Content) -> str:
    head = ["net", "started from", "model, sha256", "scored on, digest"]
    rows = [
        [
            html.escape(str(cell))
            for cell in (
                one.name,
                curve.parent,
                one.values.get("model_sha256", "-"),
                one.values.get("val_digest", "-"),
            )
        ]
        for one, curve in zip(content.results, content.curves, strict=True)
    ]
    command = html.escape(f"fcn explain {content.profile}/{content.results[-1].name}")
    table = "\n".join(html_table(head, rows)).replace("<table>", '<table class="digests">', 1)
    return (
        _wide(table, "Origin")
        + f"\n<p>All that is known of how a score came about: <code>{command}</code></p>"
    )


def _gallery(content: Content) -> str:
    pictures = images.as_data(content.galleries, len(content.classes), MAX_BYTES - FOR_TEXT)
    for number, result in enumerate(content.results):
        scores = _scores_by_key(result)
        for picture in pictures:
            picture["nets"][number] |= scores.get(picture["key"], {})
    data = {
        "nets": [one.name for one in content.results],
        "classes": list(content.classes),
        "layers": LAYERS,
        "images": pictures,
    }
    named = [*enumerate(content.classes), ("void", "void")]
    colours = voc_palette()[[*range(len(content.classes)), IGNORE_LABEL]].tolist()
    legend = "".join(
        f'<li data-class="{number}">{_swatch(colour)}{html.escape(name)}</li>'
        for (number, name), colour in zip(named, colours, strict=True)
    )
    errors = "".join(f"<li>{_swatch(colour)}{html.escape(words)}</li>" for words, colour in images.ERRORS)
    template = (HERE / "gallery.html").read_text("utf-8")
    return (
        template.replace("LEGEND_CLASSES", legend)
        .replace("LEGEND_ERRORS", errors)
        .replace("LAYER_CHOICES", _choices())
        .replace("DATA", _as_script(data))
    )


def _choices() -> str:
    return "".join(
        f'<label><input type="radio" name="layer" value="{name}"{" checked" if name == "prediction" else ""}>'
        f"<span><kbd>{number}</kbd> {name}</span></label>"
        for number, name in enumerate(LAYERS, start=1)
    )


def _scores_by_key(result: Result) -> dict[str, dict[str, float]]:
    if result.images is None:
        return {}
    each = zip(result.images.keys, mean_iu(result.images.whole), pixel_acc(result.images.whole), strict=True)
    return {
        key: {"mean_iu": round(float(iu), 4), "pixel_acc": round(float(acc), 4)}
        for key, iu, acc in each
        if iu == iu and acc == acc
    }


def _as_script(values: Mapping[str, Any]) -> str:
    """JSON that no name in it can end the <script> of."""
    text = json.dumps(values, separators=(",", ":"), allow_nan=False)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")
