"""Compare runs with each other and with published scores: a table of scores and a table of paired differences.

Runs that are not comparable stay in the tables, with the reason.
"""

import math
from collections.abc import Iterator, Sequence
from itertools import combinations

from fcn import voc
from pipeline.evaluation.bootstrap import Bootstrap, mean_iu, paired_difference, pixel_acc, with_interval
from pipeline.evaluation.published_scores import PUBLISHED, Published
from pipeline.evaluation.results import (
    ADDED,
    CLASS_SCORES,
    SCORES,
    Result,
    averaging_of,
    incomparable_reason,
    leak_warning,
    split_of,
)
from pipeline.evaluation.seeds import POWER, Estimate, group_difference
from pipeline.tables import Table

DIFFERENCES = {"mean_iu": mean_iu, "pixel_acc": pixel_acc}
BLIND = "blind to seeds"  # a difference of two single runs
MIN_P = 0.0001  # smaller p values of a t distribution with few degrees of freedom are unreliable


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
