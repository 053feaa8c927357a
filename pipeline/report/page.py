"""The report's page: one HTML file with all its pictures, which needs no network."""

import hashlib
from base64 import b64encode
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from pipeline import files
from pipeline.curves import kept_in_words
from pipeline.errors import ResultError
from pipeline.evaluation.bootstrap import with_interval
from pipeline.evaluation.results import CLASS_SCORES, leak_warning, split_of
from pipeline.inspection import leaks, near_duplicates
from pipeline.inspection.describe import as_tables
from pipeline.report import canvas, curve_plots, plots, viewer
from pipeline.report.content import Content
from pipeline.tables import Table, render

TEMPLATES = Path(__file__).parent / "templates"
MAX_BYTES = 10_000_000  # of the page
LAST_SCORES = ("class_f1", "class_precision", "class_recall")  # shown of the last net only
RESERVED_BYTES = 1_500_000  # the part of MAX_BYTES reserved for everything except gallery pictures


def write_page(path: Path, content: Content) -> None:
    """Write the page whole or not at all. Raises ResultError if it is larger than MAX_BYTES."""
    text = build(content)
    if (size := len(text.encode())) > MAX_BYTES:
        raise ResultError(
            f"{path.name} would have {size / 1e6:.1f} MB, more than {MAX_BYTES / 1e6:g}; lower evaluate.num_gallery"
        )
    files.write_text(path, text)


def build(content: Content) -> str:
    """Return the page as HTML."""
    results, classes, last = content.results, content.classes, content.results[-1]
    script = (TEMPLATES / "gallery.js").read_text("utf-8")
    inspection, shared = content.inspected("inspection"), content.inspected("leaks")
    confusions = zip(results, content.confusions, strict=True)
    pairs = content.inspection / near_duplicates.PICTURE
    pairs_uri = viewer.data_uri(pairs.read_bytes(), "image/png") if pairs.exists() else ""
    template = environment().get_template("page.html.j2")
    return template.render(
        profile=content.profile,
        summary=f"{last.name}: mean IU {with_interval(last.values, 'mean_iu')} on {split_of(last)}",
        style=(TEMPLATES / "style.css").read_text("utf-8"),
        script=script,
        # The browser itself then refuses every request of the page, and every other script
        script_sha256=b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        leaks=[warning for result in results if (warning := leak_warning(result.name, result.values))],
        scores=content.scores,
        differences=content.differences,
        viewer=viewer.viewer_data(
            results, content.galleries, classes, MAX_BYTES - RESERVED_BYTES - len(pairs_uri)
        ),
        errors=viewer.ERRORS,
        nets=[result.name for result in results],
        class_rows=_class_rows(content, inspection),
        last_scores=[CLASS_SCORES[key] for key in LAST_SCORES],
        confusions=[
            (result.name, plots.confusion(hist, classes, plots.scored_title(result.name, result.values)))
            for result, hist in confusions
        ],
        curves=curve_plots.training_curves(
            content.curves, "training, each net after the one it started from"
        ),
        is_validated=any(curve.of("val_mean_iu")[0] for curve in content.curves),
        inspection_figure=plots.inspection(inspection),
        data=[
            *as_tables(inspection),
            *leaks.as_blocks(shared, shared["allow_leak"]),
            *near_duplicates.as_blocks(shared["near_duplicates"]),
        ],
        pairs_uri=pairs_uri,
        origin=_origin(content),
    )


def environment() -> Environment:
    """Return the environment of all pages' templates."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "allow_nan": False}
    environment.filters["html"] = lambda blocks: render(blocks, "html")
    # For the src of an <img>, in which an SVG can neither run a script nor load a file
    environment.filters["svg_uri"] = lambda figure: viewer.data_uri(
        canvas.as_svg(figure).encode(), "image/svg+xml"
    )
    return environment


def _class_rows(content: Content, inspection: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return a row of each class: name, colour, IU by net, other scores of the last, share of the training split."""
    trained = inspection["train"]["classes"]
    rows = []
    for name, colour in zip(content.classes, viewer.colours(len(content.classes)), strict=False):
        iu = [result.values["class_iu"].get(name) for result in content.results]
        gain = None if iu[0] is None or iu[-1] is None else iu[-1] - iu[0]
        row = {"name": name, "colour": colour, "train": trained.get(name), "iu": iu, "gain": gain}
        last = [content.results[-1].values.get(key, {}).get(name) for key in LAST_SCORES]
        rows.append(row | {"last": last})
    return rows


def _origin(content: Content) -> Table:
    rows = [
        (
            result.name,
            curve.parent,
            kept_in_words(curve.kept) if curve.kept else "-",
            result.values.get("model_sha256", "-"),
            result.values.get("val_digest", "-"),
        )
        for result, curve in zip(content.results, content.curves, strict=True)
    ]
    notes = [
        f"{curve.net}: scores on images of {curve.kept['split']} decided which net is kept, so its scores on them are "
        "optimistic."
        for curve in content.curves
        if "best_by" in curve.kept
    ]
    return Table(("net", "started from", "kept", "model, sha256", "scored on, digest"), rows, notes)
