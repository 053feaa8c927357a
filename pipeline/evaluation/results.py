"""The scores of a run, read from its files, or of a group of runs that differ in their seeds alone."""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from pipeline.errors import ResultError
from pipeline.evaluation import per_image
from pipeline.evaluation.bootstrap import Bootstrap, mean_f1, mean_iu, pixel_acc
from pipeline.evaluation.per_image import PerImage
from pipeline.evaluation.published_scores import NAMES
from pipeline.evaluation.seeds import group_score
from pipeline.shards.sample import digest_of_keys

SCORES = ("mean_iu", "pixel_acc", "mean_acc", "fw_iu")  # of the paper
ADDED = ("mean_f1", "mean_precision")  # which files of earlier versions do not have
CLASS_SCORES = {"class_iu": "IU", "class_f1": "F1", "class_precision": "precision", "class_recall": "recall"}
# What the metrics JSON and the Parquet file of one evaluation have in common; earlier versions lack some of it
OF_BOTH = ("model_sha256", "val_digest", "keys_sha256", "averaging", "border_width")
OF_KIND = {"num_images": int, "num_leaked": int} | dict.fromkeys(
    ("keys_sha256", "val_digest", "model_sha256", "convention", "profile", "net"), str
)


@dataclass(frozen=True)
class Result:
    """The scores of one run, or of a group.

    name: of the run, in the tables.
    values: the content of its metrics JSON; of a group, see `group_result`.
    images: the counts of each image; None for a group, or if the Parquet file beside the JSON is missing.
    runs: of a group, the counts of each run in the order of its seeds.
    """

    name: str
    values: dict[str, Any]
    images: PerImage | None
    runs: tuple[PerImage, ...] = ()


def read_result(path: Path, name: str) -> Result:
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


def group_result(name: str, chains: str, runs: Mapping[str, Result], bootstrap: Bootstrap) -> Result:
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


def leak_warning(name: str, values: Mapping[str, Any]) -> str:
    """Return a warning if a net was scored on images that it was trained on, else ""."""
    if not values.get("num_leaked"):
        return ""
    return f"LEAK: {name} was trained on {values['num_leaked']} of the {values['num_images']} images it is scored on"
