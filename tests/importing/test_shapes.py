"""Polygons and run lengths, against the answers of pycocotools."""

import numpy as np
import pytest
from PIL import Image, ImageDraw

from pipeline.errors import DatasetError
from pipeline.importing import shapes
from tests.importing.conftest import FIXTURES

ORACLE = np.load(FIXTURES / "pycocotools.npz")
SHAPE = tuple(ORACLE["shape"].tolist())
MASKS = np.unpackbits(ORACLE["masks"], count=int(np.prod(SHAPE))).reshape(SHAPE).astype(bool)


def whole(piece: shapes.Piece, size: tuple[int, int]) -> np.ndarray:
    mask = np.zeros(size, bool)
    piece.paint(mask, True)
    return mask


def test_polygons_are_those_of_pycocotools_pixel_for_pixel():
    assert MASKS.any((1, 2)).sum() > 100
    for polygon, mask in zip(ORACLE["polygons"], MASKS, strict=True):
        flat = polygon[~np.isnan(polygon)].tolist()
        piece = shapes.coco_polygon(flat, SHAPE[1:], "")
        np.testing.assert_array_equal(whole(piece, SHAPE[1:]), mask)


def test_compressed_run_lengths_are_those_of_pycocotools():
    for counts, mask in zip(ORACLE["counts"], MASKS, strict=True):
        piece = shapes.coco_rle(str(counts), list(SHAPE[1:]), SHAPE[1:], "")
        np.testing.assert_array_equal(whole(piece, SHAPE[1:]), mask)


def test_a_list_of_run_lengths_goes_down_the_columns_zeros_first():
    piece = shapes.coco_rle([1, 2, 3], [2, 3], (2, 3), "")
    np.testing.assert_array_equal(whole(piece, (2, 3)), [[0, 1, 0], [1, 0, 0]])


@pytest.mark.parametrize(
    "counts", ["", "0", "\x7f", "o", "ooooooooooooooooooooooooo", [-1, 7], [6.0], None, [True] * 6]
)
def test_damaged_run_lengths_are_refused(counts):
    with pytest.raises(DatasetError, match=r"a\.json"):
        shapes.coco_rle(counts, [2, 3], (2, 3), "a.json")


def test_a_polygon_of_enormous_coordinates_is_refused_or_cut_off_in_a_moment():
    with pytest.raises(DatasetError, match=r"a\.json"):
        shapes.coco_polygon([0, 0, 1e300, 5, 3, 4], (20, 20), "a.json")
    piece = shapes.polygon([(-1e30, -1e30), (1e30, -1e30), (1e30, 1e30), (-1e30, 1e30)], (20, 20))
    assert whole(piece, (20, 20)).all()
    with pytest.raises(DatasetError, match=r"a\.json"):
        shapes.circle((5, 5), 1e6, (20, 20), "a.json")
    with pytest.raises(DatasetError, match=r"a\.json"):
        shapes.points_of([[10**400, 1]], "a.json", 1)


SIZE = (40, 44)
DRAWN = {
    "polygon": lambda points: shapes.polygon(points[:-3], SIZE, [points[-3:]]),
    "rectangle": lambda points: shapes.rectangle(points[:2], SIZE),
    "circle": lambda points: shapes.circle((15, 20), abs(points[0][0]), SIZE, ""),
    "line": lambda points: shapes.line(points, 10, SIZE),
}


def drawn_on_the_whole_photo(kind: str, points: list[tuple[float, float]]) -> np.ndarray:
    image = Image.new("1", SIZE[::-1])
    draw = ImageDraw.Draw(image)
    if kind == "line":
        draw.line(points, fill=1, width=10)
    elif kind == "circle":
        radius = abs(points[0][0])
        draw.ellipse([15 - radius, 20 - radius, 15 + radius, 20 + radius], outline=1, fill=1)
    elif kind == "rectangle":
        draw.rectangle(np.sort(points[:2], 0).ravel().tolist(), outline=1, fill=1)
    else:
        draw.polygon(points[:-3], outline=1, fill=1)
        hole = Image.new("1", SIZE[::-1])
        ImageDraw.Draw(hole).polygon(points[-3:], outline=1, fill=1)
        return np.array(image) & ~np.array(hole)
    return np.array(image)


@pytest.mark.parametrize("kind", DRAWN)
def test_a_shape_has_every_pixel_that_pillow_draws(kind: str):
    rng = np.random.default_rng(0)
    for _ in range(200):
        spread = rng.choice([4, 20, 90])
        points = rng.uniform(-spread, spread, (rng.integers(6, 9), 2)) + rng.uniform(0, 40, 2)
        points = [(x, y) for x, y in points.tolist()]
        np.testing.assert_array_equal(
            whole(DRAWN[kind](points), SIZE), drawn_on_the_whole_photo(kind, points)
        )


def test_a_small_polygon_of_a_large_photo_takes_little_memory():
    piece = shapes.coco_polygon([1000, 1000, 1050, 1000, 1050, 1050, 1000, 1050], (3000, 4000), "")
    assert piece.pixels.sum() == 50 * 50
    assert piece.pixels.size < 60 * 60
    counts = [3000 * 1000 + 7, 20, 2980, 30, 3000 * 2999 - 37]
    piece = shapes.coco_rle(counts, None, (3000, 4000), "")
    assert (piece.pixels.sum(), piece.left, piece.pixels.shape) == (50, 1000, (3000, 2))


def test_a_bitmap_is_cut_off_at_the_edges_of_the_photo():
    for y in range(-5, 9):
        for x in range(-5, 9):
            expected = np.zeros((20, 20), bool)
            expected[y + 7 : y + 10, x + 7 : x + 9] = True
            piece = shapes.placed(np.ones((3, 2), bool), x, y, (6, 6))
            np.testing.assert_array_equal(whole(piece, (6, 6)), expected[7:13, 7:13])
