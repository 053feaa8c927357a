"""Polygons and run lengths, against the answers of pycocotools."""

import numpy as np
import pytest

from pipeline.errors import DatasetError
from pipeline.importing import shapes
from tests.importing.conftest import FIXTURES

ORACLE = np.load(FIXTURES / "pycocotools.npz")
SHAPE = tuple(ORACLE["shape"].tolist())
MASKS = np.unpackbits(ORACLE["masks"], count=int(np.prod(SHAPE))).reshape(SHAPE).astype(bool)


def test_polygons_are_those_of_pycocotools_pixel_for_pixel():
    assert MASKS.any((1, 2)).sum() > 100
    for polygon, mask in zip(ORACLE["polygons"], MASKS, strict=True):
        flat = polygon[~np.isnan(polygon)].tolist()
        np.testing.assert_array_equal(shapes.coco_polygon(flat, SHAPE[1:], ""), mask)


def test_compressed_run_lengths_are_those_of_pycocotools():
    for counts, mask in zip(ORACLE["counts"], MASKS, strict=True):
        np.testing.assert_array_equal(shapes.coco_rle(str(counts), list(SHAPE[1:]), SHAPE[1:], ""), mask)


def test_a_list_of_run_lengths_goes_down_the_columns_zeros_first():
    mask = shapes.coco_rle([1, 2, 3], [2, 3], (2, 3), "")
    np.testing.assert_array_equal(mask, [[0, 1, 0], [1, 0, 0]])


@pytest.mark.parametrize(
    "counts", ["", "0", "\x7f", "o", "ooooooooooooooooooooooooo", [-1, 7], [6.0], None, [True] * 6]
)
def test_damaged_run_lengths_are_refused(counts):
    with pytest.raises(DatasetError, match=r"a\.json"):
        shapes.coco_rle(counts, [2, 3], (2, 3), "a.json")


def test_a_polygon_of_enormous_coordinates_is_refused_or_cut_off_in_a_moment():
    with pytest.raises(DatasetError, match=r"a\.json"):
        shapes.coco_polygon([0, 0, 1e300, 5, 3, 4], (20, 20), "a.json")
    assert shapes.polygon([(-1e30, -1e30), (1e30, -1e30), (1e30, 1e30), (-1e30, 1e30)], (20, 20)).all()
