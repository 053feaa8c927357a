"""The page of a group of seeds: one HTML file with its figures, which needs no network."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline import files
from pipeline.curves import Curve
from pipeline.evaluation.bootstrap import mean_iu, with_interval
from pipeline.evaluation.compare import score_table
from pipeline.evaluation.results import Result, leak_warning, split_of
from pipeline.report import curve_plots
from pipeline.report.page import TEMPLATES, environment
from pipeline.tables import Table

PAGE = "index.html"


@dataclass(frozen=True)
class Group:
    """The results of a profile's nets with several seeds. The sequences are of the same nets in the same order.

    results: the scores over seeds, see compare.group.
    curves: of each net, those of its seeds.
    differences: a table of the differences between the nets.
    """

    profile: str
    name: str
    results: Sequence[Result]
    curves: Sequence[Sequence[Curve]]
    differences: Table


def write(path: Path, group: Group) -> None:
    """Write the page whole or not at all."""
    files.write_text(path, build(group))


def build(group: Group) -> str:
    """Return the page as HTML."""
    scores = {result.name: _scores(result) for result in group.results}
    bounds = {
        result.name: (result.values["mean_iu_low"], result.values["mean_iu_high"])
        for result in group.results
        if result.values["mean_iu_low"] is not None
    }
    last = group.results[-1]
    return (
        environment()
        .get_template("group.html.j2")
        .render(
            title=f"{group.profile}, {len(last.runs)} seeds",
            summary=f"{last.name}: mean IU {with_interval(last.values, 'mean_iu')} on {split_of(last)}",
            style=(TEMPLATES / "style.css").read_text("utf-8"),
            leaks=[
                warning for result in group.results if (warning := leak_warning(result.name, result.values))
            ],
            scores=score_table(group.results),
            differences=group.differences,
            seeds=_seed_table(group.results, scores),
            seed_scores=curve_plots.seed_scores({net: scores[net] for net in bounds}, bounds),
            classes=_class_table(group.results),
            curves=curve_plots.curve_bands(
                group.curves, "training: mean of the seeds, and from the least to the greatest"
            ),
            nets=[result.name for result in group.results],
            profile=group.profile,
            name=group.name,
        )
    )


def _scores(result: Result) -> list[float]:
    """Return the mean IU of each seed."""
    return [float(mean_iu(run.whole.sum(0))) for run in result.runs]


def _seed_table(results: Sequence[Result], scores: dict[str, list[float]]) -> Table:
    """Return the mean IU of each seed and net; a net may lack a seed whose training failed."""
    by_net = {
        result.name: dict(zip(result.values["seeds"], scores[result.name], strict=True)) for result in results
    }
    seeds = list(dict.fromkeys(seed for result in results for seed in result.values["seeds"]))
    rows = [
        (seed, *(f"{by_net[net][seed]:.3f}" if seed in by_net[net] else "-" for net in by_net))
        for seed in seeds
    ]
    return Table(("mean IU", *by_net), rows)


def _class_table(results: Sequence[Result]) -> Table:
    """Return the IU of each class, the mean over seeds."""
    rows = [
        (
            label,
            *("-" if (iu := result.values["class_iu"][label]) is None else f"{iu:.3f}" for result in results),
        )
        for label in results[0].values["class_iu"]
    ]
    return Table(("class", *(f"IU {result.name}" for result in results)), rows)
