"""Compare runs with each other and with published scores: a table of scores and a table of paired differences.

A row is a run, or a group of runs that differ in their seeds alone. Runs that are not comparable stay in the tables,
with the reason.
"""

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from fcn import voc
from pipeline.errors import ResultError
from pipeline.evaluation import per_image
from pipeline.evaluation.bootstrap import (
    Bootstrap,
    mean_f1,
    mean_iu,
    paired_difference,
    pixel_acc,
    with_interval,
)
from pipeline.evaluation.per_image import PerImage
from pipeline.evaluation.published_scores import NAMES, PUBLISHED, Published
from pipeline.evaluation.seeds import POWER, Estimate, group_difference, group_score
from pipeline.shards.sample import digest_of_keys
from pipeline.tables import Table

SCORES = ("mean_iu", "pixel_acc", "mean_acc", "fw_iu")  # of the paper
ADDED = ("mean_f1", "mean_precision")  # which files of earlier versions do not have
CLASS_SCORES = {"class_iu": "IU", "class_f1": "F1", "class_precision": "precision", "class_recall": "recall"}
# What the metrics JSON and the Parquet file of one evaluation have in common; earlier versions lack some of it
OF_BOTH = ("model_sha256", "val_digest", "keys_sha256", "averaging", "border_width")
DIFFERENCES = {"mean_iu": mean_iu, "pixel_acc": pixel_acc}
OF_KIND = {"num_images": int, "num_leaked": int} | dict.fromkeys(
    ("keys_sha256", "val_digest", "model_sha256", "convention", "profile", "net"), str
)
BLIND = "blind to seeds"  # a difference of two single runs
MIN_P = 0.0001  # smaller p values of a t distribution with few degrees of freedom are unreliable


@dataclass(frozen=True)
class Result:
    """The scores of one run, or of a group.

    name: of the run, in the tables.
    values: the content of its metrics JSON; of a group, see `group`.
    images: the counts of each image; None for a group, or if the Parquet file beside the JSON is missing.
    runs: of a group, the counts of each run in the order of its seeds.
    """

    name: str
    values: dict[str, Any]
    images: PerImage | None
    runs: tuple[PerImage, ...] = ()


def read(path: Path, name: str) -> Result:
    """Read a metrics JSON, and the Parquet file of the same name if it is there.

    Raises ResultError if a file is missing or damaged, or if the two files are of different evaluations.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ResultError(f"{path} is missing; run `dvc repro evaluate`, or name another run") from None
    except (OSError, ValueError) as error:
        raise ResultError(f"{path} is not JSON ({error}); name another file") from error
    if fault := _fault(values):
        raise ResultError(f"{path} is not a file of scores: {fault}; name a file of metrics/")
    counts = path.with_suffix(".parquet")
    images = per_image.read(counts) if counts.exists() else None
    if images:  # a kill between the two writes leaves one of them of an earlier evaluation
        of_counts = images.about | {"keys_sha256": digest_of_keys(images.keys)}
        if other := [key for key in OF_BOTH if of_counts.get(key, values.get(key)) != values.get(key)]:
            raise ResultError(
                f"{counts} is of another evaluation than {path}, with another {other[0]}; run `dvc repro evaluate`"
            )
    return Result(name, values, images)


def group(name: str, chains: str, runs: Mapping[str, Result], bootstrap: Bootstrap) -> Result:
    """Return the scores of several seeds as one result.

    Its values are those of a metrics JSON, where each score is the mean over seeds: NAME_sd is the standard deviation
    between seeds, NAME_low and NAME_high bound the mean over seeds and images, `seeds` names the runs, and `chains` is
    the argument.

    chains: equal for two groups whose runs of one seed belong to one chain.
    runs: by seed.

    Raises ResultError if there are fewer than two runs, if two are not comparable, or lack the counts of each image.
    """
    if len(runs) < 2:
        raise ResultError(f"{name} has {len(runs)} seeds, expected 2 or more; run `fcn seeds` again")
    first, *others = runs.values()
    for seed, run in runs.items():
        if run.images is None:
            raise ResultError(f"{name}: no file of each image's counts for {seed}; run `fcn seeds` again")
    for run in others:
        if reason := incomparable_reason(first, run):
            raise ResultError(
                f"{name}: {first.name} and {run.name} are no group: {reason}; run `fcn seeds` again with --num "
                f"{len(runs)} or more, so that all are scored as the profile is now"
            )
    images = tuple(run.images for run in runs.values() if run.images)
    values = {key: value for key, value in first.values.items() if not key.endswith(("_low", "_high"))}
    values |= {"level": bootstrap.level, "seeds": list(runs), "chains": chains, "model_sha256": None}
    leaked: list[Any] = [run.values.get("num_leaked") for run in runs.values()]
    values["num_leaked"] = None if None in leaked else max(leaked)
    for key in CLASS_SCORES:
        if key in values:
            by_class = {label: [run.values[key][label] for run in runs.values()] for label in values[key]}
            values[key] = {label: _mean(scores) for label, scores in by_class.items()}
    for score in (*SCORES, *ADDED, "border_mean_iu"):
        if score in values:
            scores = [run.values[score] for run in runs.values()]
            known = [value for value in scores if value is not None]
            values[score] = _mean(known)
            values[f"{score}_sd"] = stdev(known) if len(known) == len(scores) else None
    for score, statistic, part in (
        ("mean_iu", mean_iu, "whole"),
        ("mean_f1", mean_f1, "whole"),
        ("pixel_acc", pixel_acc, "whole"),
        ("border_mean_iu", mean_iu, "border"),
    ):
        if score in values:
            estimate = group_score(statistic, [getattr(run, part) for run in images], bootstrap)
            is_known = not math.isnan(estimate.low)
            values[f"{score}_low"] = max(0.0, estimate.low) if is_known else None
            values[f"{score}_high"] = min(1.0, estimate.high) if is_known else None
    return Result(name, values, None, images)


def _mean(scores: Iterable[float | None]) -> float | None:
    known = [score for score in scores if score is not None]
    return fmean(known) if known else None


def _fault(values: Any) -> str:
    """Return why these are not the values of a metrics JSON, or ""."""
    if not isinstance(values, dict):
        return f"it holds a {type(values).__name__}"
    if missing := [name for name in (*SCORES, "num_images", "class_iu") if name not in values]:
        return f"it has no {missing[0]}"
    scores = {
        name + suffix: values.get(name + suffix)
        for name in (*SCORES, *ADDED, "border_mean_iu", "level")
        for suffix in ("", "_low", "_high")
    }
    for name in CLASS_SCORES:
        by_class = values.get(name, {})
        if not isinstance(by_class, dict):
            return f"{name} is {by_class!r}"
        scores |= {f"{name} of {label}": score for label, score in by_class.items()}
    for name, score in scores.items():
        if score is not None and not (type(score) in (int, float) and 0 <= score <= 1):
            return f"{name} is {score!r}, not in 0..1"
    for name, kind in OF_KIND.items():
        if not isinstance(values.get(name), kind | None):
            return f"{name} is {values[name]!r}"
    match averaging := values.get("averaging"):
        case None | {"scales": [*_], "flip": bool()}:
            return ""
    return f"averaging is {averaging!r}"


def split_of(result: Result) -> str:
    """Return the name and size of the split that a run was scored on."""
    values = result.values
    name = NAMES.get(values.get("keys_sha256", "")) or f"{values.get('profile', 'unnamed')} val"
    return f"{name}, {values['num_images']} images"


def averaging_of(result: Result) -> str:
    """Return in words which scales and mirror images a run's probabilities were averaged over."""
    averaging = result.values.get("averaging")
    if not averaging:  # files of earlier versions do not have the key
        return "none"
    mirrored = " and mirror images" if averaging["flip"] else ""
    return f"over scales {', '.join(map(str, averaging['scales']))}{mirrored}"


def incomparable_reason(first: Result, second: Result) -> str:
    """Return why the scores of two runs are not comparable, or ""."""
    for key, difference in (
        ("keys_sha256", "other images"),
        ("val_digest", "other pixels or labels of the same images"),
    ):
        for result in (first, second):
            if result.values.get(key) is None:
                return f"{result.name} has no {key}, the digest of its images; evaluate it again"
        digests = [result.values[key] for result in (first, second)]
        if digests[0] != digests[1]:
            splits = [f"{split_of(result)} ({result.values[key][:8]})" for result in (first, second)]
            return f"{difference}: {' and '.join(splits)}"
    conventions = [result.values.get("convention", "reference") for result in (first, second)]
    if conventions[0] != conventions[1]:
        return f"other conventions of mean IU: {' and '.join(conventions)} (fcn.metrics.CONVENTIONS)"
    averagings = [averaging_of(result) for result in (first, second)]
    if averagings[0] != averagings[1]:
        return f"other averaging: {' and '.join(averagings)}"
    if list(first.values["class_iu"]) != list(second.values["class_iu"]):
        return "other classes"
    return ""


def _unpublished_reason(row: Published, result: Result) -> str:
    """Return why a published row is not comparable to a run, or ""."""
    if row.keys_sha256 is not None and row.keys_sha256 == result.values.get("keys_sha256"):
        if list(result.values["class_iu"]) != list(voc.CLASSES):
            return "other classes than VOC's 21"
        if (convention := result.values.get("convention", "reference")) != "reference":
            return f"other conventions of mean IU: {convention} and reference (fcn.metrics.CONVENTIONS)"
        averaging = averaging_of(result)
        return "" if averaging == "none" else f"other averaging: {averaging} and none"
    if row.split.endswith("test"):
        return f"another split: {row.split}, whose labels are on VOC's server only"
    return f"another split: {row.split}, not {split_of(result)}"


def leak_warning(name: str, values: Mapping[str, Any]) -> str:
    """Return a warning if a net was scored on images that it was trained on, else ""."""
    if not values.get("num_leaked"):
        return ""
    return f"LEAK: {name} was trained on {values['num_leaked']} of the {values['num_images']} images it is scored on"


def score_table(
    results: Sequence[Result], published: Sequence[Published] = PUBLISHED, *, incomparable: bool = False
) -> Table:
    """Return the scores of runs, then published scores. The last column shows which are comparable to the first run.

    incomparable: also show published scores that are not.
    """
    first, rows = results[0], []
    reasons_of = {row: _unpublished_reason(row, first) for row in published}
    shown = [row for row, reason in reasons_of.items() if incomparable or not reason]
    for result in results:
        reasons = [incomparable_reason(first, result) if result is not first else ""]
        reasons.append(leak_warning(result.name, result.values))
        scores = [with_interval(result.values, name) for name in (*SCORES, *ADDED)]
        num_seeds = max(1, len(result.runs))
        unknown = "; its training images are unknown" if result.values.get("num_leaked") is None else ""
        rows.append((result.name, *scores, split_of(result), num_seeds, _comparable(reasons) + unknown))
    for row in shown:
        percents = [getattr(row, name) for name in SCORES]
        scores = ["-" if percent is None else f"{percent / 100:.3f}" for percent in percents]
        scores += ["-" for _ in ADDED]
        rows.append((row.name, *scores, row.split, "-", _comparable([reasons_of[row]])))
    levels = sorted({level for result in results if (level := result.values.get("level"))})
    brackets = f"In brackets: the {' or '.join(map('{:.0%}'.format, levels))} interval"
    has_groups = [bool(result.runs) for result in results]
    if not all(has_groups):
        brackets += ", of a run by a bootstrap over images; another seed may end outside it"
    if any(has_groups):
        brackets += ", of a mean over seeds by variance components over seeds and images; sd: between seeds"
    notes = (
        f"{brackets}." if levels else "The runs have no intervals; evaluate them again.",
        "All scores are of one confusion matrix over all pixels; a class in neither truth nor prediction is left out "
        "of mean IU (the reference's score.py) and mean F1. mean_acc is the mean recall.",
        *(["Published: " + "; ".join(dict.fromkeys(row.source for row in shown)) + "."] if shown else []),
        *(
            ["Published scores on other images are left out; `fcn compare --published` shows them."]
            if len(shown) < len(published)
            else []
        ),
    )
    head = ("run", *SCORES, *ADDED, "scored on", "seeds", "comparable to the first run")
    return Table(head, rows, notes)


def class_table(results: Sequence[Result]) -> Table:
    """Return the scores of each class, the runs one below the other; "-" where there is none."""
    rows = []
    for class_name in dict.fromkeys(name for result in results for name in result.values["class_iu"]):
        for result in results:
            scores = [result.values.get(key, {}).get(class_name) for key in CLASS_SCORES]
            rows.append((class_name, result.name, *("-" if s is None else f"{s:.3f}" for s in scores)))
    return Table(("class", "run", *CLASS_SCORES.values()), rows)


def _comparable(reasons: Sequence[str]) -> str:
    reasons = [reason for reason in reasons if reason]
    return f"no: {'; '.join(reasons)}" if reasons else "yes"


def difference_table(results: Sequence[Result], bootstrap: Bootstrap) -> Table:
    """Return the paired difference of every two runs, the later less the earlier, or the reason why there is none."""
    rows = [row for pair in combinations(results, 2) for row in _differences(*pair, bootstrap)]
    notes = [
        f"Each of {bootstrap.num_resamples} resamples draws the same images for both runs; in brackets: the "
        f"{bootstrap.level:.0%} interval. p: the probability of a difference at least as large between runs that do "
        "not differ."
    ]
    if any(BLIND in row for row in rows):
        notes.append(
            f"{BLIND.capitalize()}: both runs are single ones. Interval and p leave out what other seeds would change, "
            "which may be more than the difference; `fcn seeds` measures it."
        )
    if any(first.runs and second.runs for first, second in combinations(results, 2)):
        notes.append(
            "A difference of means over seeds has an interval over seeds and images, by variance components (docs/"
            f"comparing.md). It is settled if 0 is outside; else: how many seeds, of each, settle a difference of this "
            f"size with a chance of {POWER:.0%}."
        )
    return Table(("difference", "score", "value", "p", "seeds", "why not"), rows, notes if rows else ())


def _differences(first: Result, second: Result, bootstrap: Bootstrap) -> Iterator[tuple[str, ...]]:
    name = f"{second.name} - {first.name}"
    leaks = [leak_warning(result.name, result.values) for result in (first, second)]
    reason = incomparable_reason(first, second) or "; ".join(filter(None, leaks))
    if reason := reason or _uncountable_reason(first, second):
        yield name, "-", "-", "-", "-", reason
        return
    for score, statistic in DIFFERENCES.items():
        if first.images and second.images:
            difference = paired_difference(statistic, second.images.whole, first.images.whole, bootstrap)
            minimum, seeds = 2 / (bootstrap.num_resamples + 1), BLIND
        else:
            difference = group_difference(
                statistic,
                [run.whole for run in second.runs],
                [run.whole for run in first.runs],
                bootstrap,
                is_paired=all(first.values[key] == second.values[key] for key in ("chains", "seeds")),
            )
            minimum, seeds = MIN_P, _settled(difference)
        value = f"{difference.value:+.3f} [{difference.low:+.3f}, {difference.high:+.3f}]"
        yield name, score, value, _p_value(difference.p_value, minimum), seeds, ""


def _uncountable_reason(first: Result, second: Result) -> str:
    for result, other in ((first, second), (second, first)):
        if not (result.images or result.runs):
            return f"no file of each image's counts for {result.name}; evaluate it again"
        if result.images and other.runs:
            return f"{result.name} is a single run, {other.name} has {len(other.runs)} seeds; use `fcn seeds` for both"
    return ""


def _settled(difference: Estimate) -> str:
    numbers = " and ".join(str(group.num_seeds) for group in difference.between)
    if math.isnan(difference.low) or difference.is_settled:
        return f"{numbers}: settled" if difference.is_settled else numbers
    if difference.value == 0:
        return f"{numbers}: equal"
    needed = difference.seeds_to_settle()
    return f"{numbers}: {f'{needed} would settle it' if needed else 'too few images to settle it'}"


def _p_value(value: float, minimum: float) -> str:
    if math.isnan(value):
        return "nan"
    return f"<{math.ceil(minimum * 10_000) / 10_000:.4f}" if value <= minimum else f"{value:.4f}"
