"""A confusion matrix as a file: confusion.csv, a row a label, a column a prediction, in pixels."""

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ResultError

FILE = "confusion.csv"


def row_normalised(hist: NDArray[np.integer]) -> NDArray[np.float64]:
    """(C, C) counts by label and prediction -> the share of each label's pixels; nan where a class has none."""
    total = hist.sum(1, keepdims=True)
    return np.divide(hist, total, out=np.full(hist.shape, np.nan), where=total > 0)


def write(path: Path, hist: NDArray[np.integer], classes: Sequence[str]) -> None:
    """hist: (C, C) pixels by label and prediction."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["label", *classes])
        writer.writerows([name, *row] for name, row in zip(classes, hist.tolist(), strict=True))


def read(path: Path) -> NDArray[np.int64]:
    """(C, C) int64, what `write` wrote; ResultError if the file is missing or damaged."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            head, *rows = csv.reader(file)
        hist = np.array([row[1:] for row in rows], dtype=np.int64)
        if hist.shape != (len(head) - 1, len(head) - 1):
            raise ValueError(f"{hist.shape} counts for {len(head) - 1} classes")
        return hist
    except (OSError, ValueError, csv.Error) as error:
        raise ResultError(
            f"{path} holds no counts that can be read ({error}); run `dvc repro evaluate`"
        ) from error
