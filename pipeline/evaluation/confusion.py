"""A confusion matrix as a CSV file: pixels, a row for each label and a column for each prediction."""

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ResultError

FILE = "confusion.csv"


def row_normalised(hist: NDArray[np.integer]) -> NDArray[np.float64]:
    """Return each label's pixels as shares, (C, C); NaN in the row of a class without pixels.

    hist: (C, C) pixels by label and prediction.
    """
    total = hist.sum(1, keepdims=True)
    return np.divide(hist, total, out=np.full(hist.shape, np.nan), where=total > 0)


def write(path: Path, hist: NDArray[np.integer], classes: Sequence[str]) -> None:
    """Write a (C, C) matrix of pixels by label and prediction."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["label", *classes])
        writer.writerows([name, *row] for name, row in zip(classes, hist.tolist(), strict=True))


def read(path: Path) -> NDArray[np.int64]:
    """Read what `write` wrote, (C, C) int64. Raises ResultError if the file is missing or damaged."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            head, *rows = csv.reader(file)
        hist = np.array([row[1:] for row in rows], dtype=np.int64)
        if hist.shape != (len(head) - 1, len(head) - 1):
            raise ValueError(f"{hist.shape} counts for {len(head) - 1} classes")
        return hist
    except (OSError, ValueError, csv.Error) as error:
        raise ResultError(f"{path} is not a confusion matrix ({error}); run `dvc repro evaluate`") from error
