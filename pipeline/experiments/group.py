"""A group of seeds on disk: its scores, its page, and its run in MLflow, whose children are the runs of its nets."""

import re
from pathlib import Path

from pipeline import paths, tracking
from pipeline.config import CHAIN, Profile
from pipeline.curves import read_curve
from pipeline.errors import ResultError
from pipeline.evaluation import compare
from pipeline.evaluation.bootstrap import Bootstrap
from pipeline.evaluation.results import ADDED, SCORES, Result, group_result, read_result
from pipeline.files import and_more
from pipeline.report import group_page
from pipeline.report.group_page import Group
from pipeline.shards.read import open_shards
from pipeline.tables import render


def newest_group(profile_name: str, root: Path) -> str:
    """Return the name of the profile's group that was scored last. Raises ResultError if there is none."""
    pages = (root / paths.RUNS / profile_name).glob(f"{paths.SEEDS}*/{group_page.PAGE}")
    newest = max(pages, key=lambda page: page.stat().st_mtime, default=None)
    if newest is None:
        raise ResultError(f"profile {profile_name!r} has no seeds; run `fcn seeds {profile_name}`")
    return newest.parent.name


def seeds_of(profile_name: str, name: str, net: str, root: Path) -> list[tuple[str, Path]]:
    """Return the seeds that scored the net in the order of their numbers: the name and the folder of each."""
    folder = root / paths.group(profile_name, name)
    scored = {
        int(number[1]): path
        for path in folder.glob("*")
        if (number := re.fullmatch(r"seed (\d+)", path.name))
        and (path / paths.metrics(profile_name, net)).exists()
    }
    return [(path.name, path) for _, path in sorted(scored.items())]


def read_net(profile_name: str, name: str, net: str, root: Path, bootstrap: Bootstrap, title: str) -> Result:
    """Return the scores of one net over all seeds of a group.

    title: its name in tables.

    Raises ResultError if fewer than two seeds have scores, or a file is damaged.
    """
    runs = {
        seed: read_result(folder / paths.metrics(profile_name, net), seed)
        for seed, folder in seeds_of(profile_name, name, net, root)
    }
    if not runs:
        groups = sorted(path.name for path in (root / paths.RUNS / profile_name).glob(f"{paths.SEEDS}*"))
        raise ResultError(
            f"{title}: {name} of profile {profile_name!r} has no scores of {net}; groups there: "
            f"{and_more(groups) or 'none'}. `fcn seeds {profile_name}` trains one"
        )
    return group_result(title, name, runs, bootstrap)


def read_group(profile_name: str, profile: Profile, name: str, root: Path) -> Group:
    """Return the scores and curves of all nets of a group."""
    evaluate = profile.evaluate
    bootstrap = Bootstrap(evaluate.num_resamples, evaluate.level, evaluate.seed)
    nets = [net for net in CHAIN if len(seeds_of(profile_name, name, net, root)) > 1]
    results = [read_net(profile_name, name, net, root, bootstrap, net) for net in nets]
    curves = [
        [
            read_curve(folder / paths.curve(profile_name, net))
            for _, folder in seeds_of(profile_name, name, net, root)
        ]
        for net in nets
    ]
    return Group(profile_name, name, results, curves, compare.difference_table(results, bootstrap))


def begin_run(
    profile_name: str, profile: Profile, name: str, root: Path
) -> tuple[tracking.Tracker, tracking.Record]:
    """Show the group's run in MLflow; its children follow as they are trained."""
    tracker = tracking.Tracker(profile_name, root)
    digests = {
        split: open_shards(root / paths.shards(profile_name, split), cache=root / paths.VERIFIED).digest
        for split in ("train", "val")
    }
    params = profile.model_dump(mode="json")
    record = tracker.record("group", name, tracking.GROUP, name, params=params, datasets=digests)
    return tracker, tracker.begin(record)


def write_page(group: Group, root: Path) -> Path:
    """Write the group's page, and return its path."""
    page = root / paths.group(group.profile, group.name) / group_page.PAGE
    group_page.write(page, group)
    return page


def end_run(tracker: tracking.Tracker, record: tracking.Record, group: Group, page: Path) -> None:
    """Log the group's scores and page: of each net as fcn8s/mean_iu, and of the last net also as mean_iu."""
    metrics = {}
    for prefix, result in [
        *((f"{result.name}/", result) for result in group.results),
        ("", group.results[-1]),
    ]:
        for score in (*SCORES, *ADDED):
            for suffix in ("", "_sd", "_low", "_high"):
                value = result.values.get(score + suffix)
                if value is not None:
                    metrics[prefix + score + suffix] = value
    seeds = group.results[0].values["seeds"]
    note = f"{len(seeds)} seeds of profile {group.profile}: {', '.join(seeds)}\n\n"
    note += render([compare.score_table(group.results, ())], "markdown")
    tags = {"seeds": str(len(seeds)), "mlflow.note.content": note}
    tracker.log(record, metrics, tags, files=[page])
