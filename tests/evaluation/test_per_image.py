"""The table of each image's counts, as any reader of Parquet sees it and as we read it back."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import ResultError
from pipeline.evaluation import per_image
from pipeline.evaluation.per_image import PerImage

ABOUT = {"classes": ["background", "disc", "square"], "border_width": 5, "net": "fcn8s"}
KEYS = ("b", "a", "d", "c")


def counts_of(keys=KEYS, seed: int = 0) -> np.ndarray:
    """(N, 2, 3, 3) in which the number of right pixels is that of no other image."""
    counts = np.random.default_rng(seed).integers(0, 2**40, (len(keys), 2, 3, 3))
    counts[:, 0, 0] = np.array([ord(key) for key in keys])[:, None]
    return counts


def test_the_table_has_a_row_an_image_sorted_by_key_in_whole_numbers(tmp_path):
    path = tmp_path / "metrics" / "fcn8s.parquet"
    per_image.write(path, PerImage.sorted(KEYS, counts_of(), ABOUT))
    table = pq.read_table(path)
    assert table["key"].to_pylist() == ["a", "b", "c", "d"]
    assert table["right"].to_pylist() == [[ord(key)] * 3 for key in "abcd"]
    assert table["num_right"].to_pylist() == [3 * ord(key) for key in "abcd"]
    assert table["num_valid"].to_pylist() == [sum(row) for row in table["label"].to_pylist()]
    assert table["border_predicted"][1].as_py() == counts_of()[0, 1, 2].tolist()  # b is given first
    assert {str(field.type).partition("<")[0] for field in table.schema} == {"string", "int64", "list"}


def test_what_is_read_is_what_was_written(tmp_path):
    written = PerImage.sorted(KEYS, counts_of(), ABOUT)
    per_image.write(tmp_path / "a.parquet", written)
    found = per_image.read(tmp_path / "a.parquet")
    assert (found.keys, found.about) == (("a", "b", "c", "d"), ABOUT)
    assert found.counts.dtype == np.int64
    assert np.array_equal(found.counts, written.counts)
    assert np.array_equal(found.whole, written.counts[:, 0])
    assert np.array_equal(found.border, written.counts[:, 1])


def test_the_order_of_scoring_leaves_no_trace_in_the_files_bytes(tmp_path):
    counts, back = counts_of(), [3, 1, 0, 2]
    per_image.write(tmp_path / "a.parquet", PerImage.sorted(KEYS, counts, ABOUT))
    shuffled = PerImage.sorted([KEYS[i] for i in back], counts[back], ABOUT)
    per_image.write(tmp_path / "b.parquet", shuffled)
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.parquet", "b.parquet"]


@pytest.mark.parametrize("damage", ["missing", "foreign", "cut", "flipped", "text", "fewer classes"])
def test_a_file_that_is_missing_damaged_or_foreign_is_refused_in_one_line(tmp_path, damage):
    path = tmp_path / "a.parquet"
    per_image.write(path, PerImage.sorted(KEYS, counts_of(), ABOUT))
    whole = path.read_bytes()
    middle = len(whole) // 3
    if damage == "missing":
        path.unlink()
    elif damage == "foreign":
        pq.write_table(pa.table({"key": ["a"], "score": [0.5]}), path)
    elif damage == "cut":
        path.write_bytes(whole[:-40])
    elif damage == "flipped":
        path.write_bytes(whole[:middle] + bytes([whole[middle] ^ 4]) + whole[middle + 1 :])
    elif damage == "text":
        path.write_text("not a table")
    else:
        about = ABOUT | {"classes": ["background", "disc"]}
        per_image.write(path, PerImage.sorted(KEYS, counts_of(), about))
    with pytest.raises(ResultError, match=r"a\.parquet .*`dvc repro evaluate`$") as caught:
        per_image.read(path)
    assert "\n" not in str(caught.value)
