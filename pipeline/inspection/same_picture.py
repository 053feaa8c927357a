"""Photos that show the same picture, turned, mirrored, rescaled or recompressed.

Each photo becomes a grey thumbnail and a perceptual hash of 64 bits: the signs of its lowest DCT coefficients (pHash).
Hashes that differ in few bits name the candidates, in all eight ways in which a photo can be turned and mirrored.
The pixels decide: the edges in both thumbnails must lie at the same places. docs/leaks.md has the measured numbers.
"""

import io
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.shards.images import LOSSLESS

SIDE = 32  # pixels of a thumbnail
HASH_SIDE = 8  # DCT coefficients of the hash in each direction
MAX_BITS = 10  # of 64; pairs of hashes that differ in more are no candidates
MIN_SIMILARITY = 0.8  # of the edges of two thumbnails, 1: equal
MIN_CONTRAST = 2.0  # grey levels, standard deviation of a thumbnail; flatter photos have nothing to compare
PART = 256  # thumbnails that are turned and hashed at once
NUM_CONFIRMED = 32  # candidates of one photo whose pixels are compared, those with the nearest hashes first

TURNS = (  # in the order of `turned`
    "not turned",
    "turned left",
    "turned by 180 degrees",
    "turned right",
    "mirrored",
    "mirrored, turned left",
    "mirrored, turned by 180 degrees",
    "mirrored, turned right",
)

_DCT = np.cos(
    np.pi * np.arange(HASH_SIDE)[:, None] * (np.arange(SIDE) + 0.5) / SIDE, dtype=np.float32
)  # (HASH_SIDE, SIDE): the first rows of a DCT-II


class Match(NamedTuple):
    """Two photos that show the same picture.

    one: the index of a photo.
    other: the index of the other photo.
    turn: index in TURNS: what makes the first photo the second.
    similarity: MIN_SIMILARITY .. 1.
    """

    one: int
    other: int
    turn: int
    similarity: float


def thumbnail(photo: bytes | memoryview) -> NDArray[np.uint8]:
    """Return a photo in grey and squeezed into a square, (SIDE, SIDE).

    photo: a file that check_photo accepts. Of a JPEG, only the coefficients of a reduced size are decoded.
    """
    with Image.open(io.BytesIO(photo), formats=("JPEG", *LOSSLESS)) as image:
        reduce(image)
        return squeezed(image)


def reduce(image: Image.Image) -> None:
    """Let an opened JPEG be decoded in grey, and reduced as far as a thumbnail allows; other images stay whole."""
    image.draft("L", (2 * SIDE, 2 * SIDE))


def squeezed(image: Image.Image) -> NDArray[np.uint8]:
    """Return the thumbnail of an image on which `reduce` was called, (SIDE, SIDE)."""
    return np.asarray(image.convert("L").resize((SIDE, SIDE), Image.Resampling.BILINEAR))


def turned(small: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return thumbnails in all ways of TURNS, (8, N, SIDE, SIDE).

    small: (N, SIDE, SIDE).
    """
    ways = [np.rot90(one, num, (1, 2)) for one in (small, small[:, :, ::-1]) for num in range(4)]
    return np.stack(ways)


def hashes(small: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """Return the perceptual hash of each thumbnail, (N,).

    small: (N, SIDE, SIDE).
    """
    result = np.empty(len(small), np.uint64)
    for part in _parts(len(small)):
        is_positive = _DCT @ small[part].astype(np.float32) @ _DCT.T > 0
        is_positive[:, 0, 0] = False  # the mean grey
        bits = is_positive.reshape(len(is_positive), HASH_SIDE**2)
        result[part] = np.packbits(bits, axis=1).view(np.uint64)[:, 0]
    return result


def _parts(num: int) -> Iterator[slice]:
    """Yield slices of PART thumbnails, so that memory does not grow with their number."""
    return (slice(start, start + PART) for start in range(0, num, PART))


def _with_content(small: NDArray[np.uint8]) -> NDArray[np.intp]:
    """Return the indices of the thumbnails that are not flat."""
    contrasts = [small[part].std((1, 2), dtype=np.float32) for part in _parts(len(small))]
    return np.flatnonzero(np.concatenate([*contrasts, np.empty(0)]) >= MIN_CONTRAST)


def matches(small: NDArray[np.uint8], others: NDArray[np.uint8] | None = None) -> Iterator[Match]:
    """Yield the pairs of thumbnails that show the same picture, each pair once, in the way that fits best.

    Flat thumbnails match none. Of more than NUM_CONFIRMED candidates, those with the nearest hashes are compared.

    small: (N, SIDE, SIDE).
    others: (M, SIDE, SIDE); a thumbnail of both matches itself. None: those of small, and none matches itself.
    """
    is_one_set = others is None
    others = small if others is None else others
    rows, columns = _with_content(small), _with_content(others)
    other_hashes = hashes(others[columns])
    for part in _parts(len(rows)):
        ways = turned(small[rows[part]])
        way_hashes = hashes(ways.reshape(-1, SIDE, SIDE)).reshape(ways.shape[:2])
        for place, index in enumerate(rows[part]):
            num_bits = np.bitwise_count(way_hashes[:, place, None] ^ other_hashes)
            turns, places = np.nonzero(num_bits <= MAX_BITS)
            if is_one_set:
                is_later = columns[places] > index
                turns, places = turns[is_later], places[is_later]
            if not len(turns):
                continue
            nearest = np.argsort(num_bits[turns, places], kind="stable")[:NUM_CONFIRMED]
            turns, candidates = turns[nearest], columns[places[nearest]]
            similarity = (_edges(ways[turns, place]) * _edges(others[candidates])).sum(1)
            matched: set[int] = set()
            for best in np.argsort(-similarity, kind="stable"):
                other = int(candidates[best])
                if similarity[best] >= MIN_SIMILARITY and other not in matched:
                    matched.add(other)
                    yield Match(int(index), other, int(turns[best]), float(similarity[best]))


def _edges(small: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return the differences of neighbouring pixels, to the right and down, as one unit vector of each thumbnail.

    Unlike grey values, they tell two photos of empty skies apart.
    """
    grey = small.astype(np.float32)
    steps = [np.diff(grey, axis=axis).reshape(len(grey), SIDE * (SIDE - 1)) for axis in (1, 2)]
    edges = np.concatenate(steps, axis=1)
    return edges / np.maximum(np.linalg.norm(edges, axis=1, keepdims=True), 1e-6)


def groups(small: NDArray[np.uint8]) -> list[list[int]]:
    """Return the indices of the photos of one set that belong together: a match of a match is in the same group.

    Photos without a match are groups of one. Groups are in the order of their first index.
    """
    members: dict[int, list[int]] = {}
    for index, first in enumerate(
        first_connected(len(small), ((match.one, match.other) for match in matches(small)))
    ):
        members.setdefault(first, []).append(index)
    return list(members.values())


def first_connected(num: int, pairs: Iterable[tuple[int, int]]) -> list[int]:
    """Return, for each of the indices 0 .. num - 1, the lowest one that a chain of pairs connects it with."""
    root = list(range(num))

    def first(index: int) -> int:
        while root[index] != index:
            root[index] = index = root[root[index]]
        return index

    for one, other in pairs:
        low, high = sorted((first(one), first(other)))
        root[high] = low
    return [first(index) for index in range(num)]
