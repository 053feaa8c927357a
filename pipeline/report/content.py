"""The content of a profile's report, read from the results of the other stages."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline import paths
from pipeline.curves import Curve, read_curve
from pipeline.evaluation import compare, confusion
from pipeline.evaluation.bootstrap import Bootstrap
from pipeline.evaluation.results import Result, read_result
from pipeline.report import gallery
from pipeline.report.gallery import Gallery
from pipeline.tables import Table


@dataclass(frozen=True)
class Content:
    """The results of a profile's nets. The sequences are of the same nets in the same order.

    classes: the names of the classes.
    scores: a table of the nets' scores and of published ones.
    differences: a table of the paired differences between the nets.
    confusions: (C, C) int64 pixels by label and prediction.
    figures: the folders of the nets' figures.
    inspection: the folder that the stage inspect wrote.
    """

    profile: str
    classes: Sequence[str]
    results: Sequence[Result]
    scores: Table
    differences: Table
    curves: Sequence[Curve]
    confusions: Sequence[NDArray[np.int64]]
    figures: Sequence[Path]
    inspection: Path

    @property
    def galleries(self) -> list[Gallery]:
        return [gallery.read(folder / gallery.FOLDER) for folder in self.figures]

    def inspected(self, name: str) -> dict[str, Any]:
        """Read inspection.json or leaks.json."""
        return json.loads((self.inspection / f"{name}.json").read_text("utf-8"))


def read(profile: str, bootstrap: Bootstrap) -> Content:
    """Read the results of all nets of a profile. Raises ResultError if a file is missing or damaged.

    bootstrap: the settings of the paired differences.
    """
    results = [read_result(paths.metrics(profile, net), net) for net in paths.CHAIN]
    figures = [paths.figures(profile, net) for net in paths.CHAIN]
    return Content(
        profile,
        classes=list(results[0].values["class_iu"]),
        results=results,
        scores=compare.score_table(results),
        differences=compare.difference_table(results, bootstrap),
        curves=[read_curve(paths.curve(profile, net)) for net in paths.CHAIN],
        confusions=[confusion.read(folder / confusion.FILE) for folder in figures],
        figures=figures,
        inspection=paths.inspection(profile),
    )
