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

from pipeline.curves import Curve
from pipeline.errors import ResultError
from pipeline.evaluation.bootstrap import in_words
from pipeline.evaluation.compare import Result, Table, as_text, split_of
from pipeline.report.gallery import Gallery
from pipeline.report.page import charts, images, tables, viewer
from pipeline.tables import as_html, html_table

HERE = Path(__file__).parent
MAX_BYTES = 10_000_000  # of the page
FOR_TEXT = 1_000_000  # of it, for all but the gallery


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
            f"{path} would have {size / 1e6:.1f} MB, more than {MAX_BYTES / 1e6:g}; lower evaluate.num_gallery"
        )
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def build(content: Content) -> str:
    """The HTML."""
    script, title = (HERE / "gallery.js").read_text("utf-8"), f"FCN on {content.profile}"
    sections = {
        "scores": ("Scores", _scores(content)),
        "images": (
            "Images",
            viewer.section(content.results, content.classes, content.galleries, MAX_BYTES - FOR_TEXT),
        ),
        "classes": ("Classes", tables.classes(content.results, content.classes, _train_counts(content))),
        "confusion": (
            "Confusion",
            tables.confusions(content.profile, content.results, content.classes, content.confusions),
        ),
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
    return tables.wide(inner + end, label) + f'\n<div class="notes">{notes}</div>'


def _train_counts(content: Content) -> Mapping[str, Mapping[str, Any]]:
    """By class, of the training split: what inspection.inspect gives."""
    return json.loads((content.inspection / "inspection.json").read_text("utf-8"))["train"]["classes"]


def _nets_legend(content: Content) -> str:
    names = [
        f'<span><i class="key c{i}"></i>{html.escape(one.name)}</span>'
        for i, one in enumerate(content.results)
    ]
    return f'<p class="nets-legend">{"".join(names)}</p>'


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
        is_log = name == "loss" or charts.are_far_apart(lines)
        if drawn := charts.chart(title, lines, "steps, each net after the one it started from", is_log):
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
    said = tables.wide("\n".join(texts), "What the data are")
    words = "classes and sizes of train and val; the tables below say the same"
    return f'<img class="plot" alt="{words}" src="{picture}">\n{said}'


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
        tables.wide(table, "Origin")
        + f"\n<p>All that is known of how a score came about: <code>{command}</code></p>"
    )
