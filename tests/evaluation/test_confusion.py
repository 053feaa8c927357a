"""Confusion matrices as CSV files."""

import numpy as np
import pytest

from pipeline.errors import ResultError
from pipeline.evaluation import confusion


def test_counts_come_back_from_a_csv_whatever_the_classes_are_called(tmp_path):
    hist = np.array([[5, 0, 2**40], [1, 2, 3], [0, 0, 0]])
    confusion.write(tmp_path / "confusion.csv", hist, ["background", 'a "quoted", name', "line\nbreak"])
    assert np.array_equal(confusion.read(tmp_path / "confusion.csv"), hist)


@pytest.mark.parametrize("text", [None, "", "label,a,b\na,1,2\n", "label,a\na,x\n"])
def test_damaged_counts_are_named_with_the_stage_that_writes_them(tmp_path, text):
    if text is not None:
        (tmp_path / "confusion.csv").write_text(text)
    with pytest.raises(ResultError, match=r"confusion\.csv .*`dvc repro evaluate`"):
        confusion.read(tmp_path / "confusion.csv")
