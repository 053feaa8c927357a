"""Runs beside each other and beside what was published: one table of scores, one of differences.

What does not compare stays in the table and says why not.
"""

import html
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from pipeline import paths
from pipeline.errors import ResultError
from pipeline.evaluation import per_image
from pipeline.evaluation.bootstrap import Bootstrap, in_words, mean_iu, paired_difference, pixel_acc
from pipeline.evaluation.per_image import PerImage
from pipeline.evaluation.published_scores import NAMES, PUBLISHED, Published
from pipeline.tables import table as markdown_table

SCORES = ("mean_iu", "pixel_acc", "mean_acc", "fw_iu")
FORMATS = ("plain", "markdown", "html")


@dataclass(frozen=True)
class Result:
    """One run's scores.

    values: what its metrics JSON holds.   images: each image's counts, None if there is no such file beside it.
    """

    name: str
    values: dict[str, Any]
    images: PerImage | None


@dataclass(frozen=True)
class Table:
    """rows: a cell for each of `head`.   notes: what belongs under it, a sentence each."""

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()


def load(run: str, folder: Path) -> Result:
    """The result that `run` names: a metrics JSON, profile/net, or an MLflow run by id or name.

    folder: empty, for what MLflow has to send. ResultError if there is none.
    """
    return read(_file_of(run, folder), run)


def _file_of(run: str, folder: Path) -> Path:
    if run.endswith(".json"):
        return Path(run)
    profile, _, net = run.partition("/")
    if net and "/" not in net:
        return paths.metrics(profile, net)
    from pipeline import tracking  # MLflow takes seconds to import

    return tracking.download_metrics(run, Path.cwd(), folder)


def read(path: Path, name: str) -> Result:
    """The result in a metrics JSON, with the Parquet file of its name if that is there and of the same run."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ResultError(f"{path} is missing; run `dvc repro evaluate`, or name another run") from None
    except (OSError, ValueError) as error:
        raise ResultError(f"{path} holds no JSON that can be read ({error}); name another file") from error
    if strange := _strange(values):
        raise ResultError(f"{path} is no file of scores of this project: {strange}; name one of metrics/")
    beside = path.with_suffix(".parquet")
    images = per_image.read(beside) if beside.exists() else None
    if images and images.about.get("model_sha256") != values.get("model_sha256"):
        raise ResultError(f"{beside} is of another model than {path}; run `dvc repro evaluate`")
    return Result(name, values, images)


def _strange(values: Any) -> str:
    """What a file of scores cannot be like, or ""."""
    if not isinstance(values, dict):
        return f"it holds a {type(values).__name__}"
    for name in (*SCORES, "num_images", "class_iu"):
        if name not in values:
            return f"it has no {name}"
    for name in SCORES:
        value = values[name]
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            return f"{name} is {value!r}"
        if value is not None and not 0 <= value <= 1:
            return f"{name} is {value}, not in 0..1"
    match values.get("averaging"):
        case None | {"scales": [*_], "flip": bool()}:
            return "" if isinstance(values["class_iu"], dict) else f"class_iu is {values['class_iu']!r}"
        case strange:
            return f"averaging is {strange!r}"


def split_of(result: Result) -> str:
    """What a run was scored on, by its published name if it has one."""
    num_images = f"{result.values['num_images']} images"
    if name := NAMES.get(result.values.get("keys_sha256", "")):
        return f"{name}, {num_images}"
    return f"{result.values.get('profile', 'unnamed')} val, {num_images}"


def why_runs_differ_in_kind(one: Result, other: Result) -> str:
    """Why two runs' scores do not compare, or ""."""
    for key, what in (
        ("keys_sha256", "other images"),
        ("val_digest", "other pixels or labels of the same images"),
    ):
        here, there = one.values.get(key), other.values.get(key)
        if here is None or there is None:
            silent = one if here is None else other
            return f"{silent.name} does not say which images it was scored on; evaluate it again"
        if here != there:
            return f"{what}: {split_of(one)} ({here[:8]}) and {split_of(other)} ({there[:8]})"
    conventions = [result.values.get("convention", "reference") for result in (one, other)]
    if conventions[0] != conventions[1]:
        return f"other conventions of mean IU: {' and '.join(conventions)} (fcn.metrics.CONVENTIONS)"
    averaged = [averaging_of(result) for result in (one, other)]
    if averaged[0] != averaged[1]:
        return f"other averaging: {' and '.join(averaged)}"
    if list(one.values["class_iu"]) != list(other.values["class_iu"]):
        return "other classes"
    return ""


def averaging_of(result: Result) -> str:
    """Over what a run's probabilities were averaged, in words."""
    said = result.values.get("averaging")
    if not said:  # as all files were that do not say it
        return "none"
    mirrored = " and mirror images" if said["flip"] else ""
    return f"over scales {', '.join(map(str, said['scales']))}{mirrored}"


def why_not_published(row: Published, result: Result) -> str:
    """Why a published row does not compare to a run, or ""."""
    if row.keys_sha256 is not None and row.keys_sha256 == result.values.get("keys_sha256"):
        averaged = averaging_of(result)
        return "" if averaged == "none" else f"other averaging: {averaged} and none"
    if row.split.endswith("test"):
        return f"another split: {row.split}, whose labels VOC's server alone has"
    return f"another split: {row.split}, not {split_of(result)}"


def score_table(results: Sequence[Result], published: Iterable[Published] = PUBLISHED) -> Table:
    """The runs' scores, then what was published; the last column says what does not compare to the first run."""
    first, rows = results[0], []
    for result in results:
        reasons = [why_runs_differ_in_kind(first, result) if result is not first else ""]
        if result.values.get("num_leaked"):
            reasons.append(f"LEAK: trained on {result.values['num_leaked']} of the images it is scored on")
        scores = [in_words(result.values, name) for name in SCORES]
        rows.append((result.name, *scores, split_of(result), _not_comparable(reasons)))
    for row in published:
        scores = [_percent(getattr(row, name)) for name in SCORES]
        rows.append((row.name, *scores, row.split, _not_comparable([why_not_published(row, first)])))
    levels = {result.values["level"] for result in results if "level" in result.values}
    notes = [
        f"In brackets: the {' or '.join(map('{:.0%}'.format, sorted(levels)))} interval by a bootstrap over images."
        if levels
        else "No run says how uncertain it is; evaluate again for an interval.",
        "All scores are of one confusion matrix over all pixels; a class in neither truth nor prediction is left out "
        "of mean IU (the reference's score.py).",
        "Published: " + "; ".join(dict.fromkeys(row.source for row in published)) + ".",
    ]
    return Table(("run", *SCORES, "scored on", "compares to the first run"), tuple(rows), tuple(notes))


def difference_table(results: Sequence[Result], bootstrap: Bootstrap) -> Table:
    """Every two runs' paired difference, the later less the earlier, or why they have none."""
    rows = [row for pair in combinations(results, 2) for row in _differences(*pair, bootstrap)]
    note = (
        f"Each of {bootstrap.num_resamples} resamples draws the same images for both runs; in brackets the "
        f"{bootstrap.level:.0%} interval. p: how often chance alone, in which images are there, would set runs that do "
        "not differ as far apart. What another seed of the training would change is in neither."
    )
    return Table(("difference", "score", "value", "p", "why not"), tuple(rows), (note,) if rows else ())


def _differences(one: Result, other: Result, bootstrap: Bootstrap) -> Iterator[tuple[str, ...]]:
    name = f"{other.name} - {one.name}"
    reason = why_runs_differ_in_kind(one, other)
    if not reason and (one.images is None or other.images is None):
        silent = one if one.images is None else other
        reason = f"no file of each image's counts beside {silent.name}'s scores; evaluate it again"
    if reason or one.images is None or other.images is None:
        yield name, "-", "-", "-", reason
        return
    for score, statistic in (("mean_iu", mean_iu), ("pixel_acc", pixel_acc)):
        found = paired_difference(statistic, other.images.whole, one.images.whole, bootstrap)
        words = f"{found.value:+.3f} [{found.low:+.3f}, {found.high:+.3f}]"
        yield name, score, words, _p_value(found.p_value, bootstrap), ""


def _not_comparable(reasons: Sequence[str]) -> str:
    said = [reason for reason in reasons if reason]
    return f"no: {'; '.join(said)}" if said else "yes"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value / 100:.3f}"


def _p_value(value: float, bootstrap: Bootstrap) -> str:
    if math.isnan(value):
        return "nan"
    least = 2 / (bootstrap.num_resamples + 1)
    return f"<{math.ceil(least * 10_000) / 10_000:.4f}" if value <= least else f"{value:.4f}"


def as_text(table: Table, kind: str) -> str:
    """The table in one of FORMATS, with its notes."""
    match kind:
        case "plain":
            return _as_plain(table)
        case "markdown":
            return "\n\n".join([markdown_table(table.head, table.rows), *table.notes])
        case "html":
            return _as_html(table)
    raise ValueError(f"unknown format {kind!r}; known: {', '.join(FORMATS)}")


def _as_plain(table: Table) -> str:
    lines = [table.head, *table.rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(table.head))]
    text = [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    ]
    return "\n".join([*text, "", *table.notes])


def _as_html(table: Table) -> str:
    def line(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    rows = [line(table.head, "th"), *(line(row, "td") for row in table.rows)]
    notes = [f"<p>{html.escape(note)}</p>" for note in table.notes]
    return "\n".join(["<table>", *rows, "</table>", *notes])
