"""Near duplicates: photos of two splits that show the same picture, turned, mirrored, rescaled or recompressed.

Each photo becomes a grey thumbnail and a perceptual hash of 64 bits: the signs of its lowest DCT coefficients (pHash).
Hashes that differ in few bits name the candidates, in all eight ways in which a photo can be turned and mirrored.
The pixels decide: the edges in both thumbnails must lie at the same places. docs/leaks.md has the measured numbers.
"""

import io
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline import files
from pipeline.errors import LeakError
from pipeline.progress import bar
from pipeline.shards.images import LOSSLESS
from pipeline.shards.read import Shards, in_turn
from pipeline.tables import Table

PICTURE = "near_duplicates.png"  # in the inspection's folder, if there are any
SIDE = 32  # pixels of a thumbnail
HASH_SIDE = 8  # DCT coefficients of the hash in each direction
MAX_BITS = 10  # of 64; pairs of hashes that differ in more are no candidates
MIN_SIMILARITY = 0.8  # of the edges of two thumbnails, 1: equal
MIN_CONTRAST = 2.0  # grey levels, standard deviation of a thumbnail; flatter photos have nothing to compare
PART = 256  # thumbnails that are turned and hashed at once
NUM_CONFIRMED = 32  # candidates of one photo whose pixels are compared, those with the nearest hashes first
NUM_LISTED = 20  # pairs in the table
NUM_SHOWN = 8  # pairs in the figure
SHOWN_SIDE = 320  # pixels, the longer side of a photo in the figure
NUM_THREADS = 4  # that decode photos, and wait for those of a bucket

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


def thumbnails(shards: Shards) -> NDArray[np.uint8]:
    """Return the thumbnails of all photos of a split in the shards' order, (N, SIDE, SIDE)."""
    result = np.empty((len(shards), SIDE, SIDE), np.uint8)
    with (
        bar(len(shards), "compare photos", delay_s=2) as progress,
        ThreadPoolExecutor(NUM_THREADS) as threads,
        shards.ahead(in_turn(range(len(shards)))) as advance,
    ):
        found = threads.map(lambda index: thumbnail(shards.read(index)[0]), range(len(shards)))
        for index, small in enumerate(found):
            result[index] = small
            advance()
            progress.update()
    return result


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
                is_other = columns[places] != index
                turns, places = turns[is_other], places[is_other]
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
    root = list(range(len(small)))

    def first(index: int) -> int:
        while root[index] != index:
            root[index] = index = root[root[index]]
        return index

    for match in matches(small):
        low, high = sorted((first(match.one), first(match.other)))
        root[high] = low
    members: dict[int, list[int]] = {}
    for index in range(len(small)):
        members.setdefault(first(index), []).append(index)
    return list(members.values())


def survey(val: Shards, train: Shards, choice: Literal["warn", "refuse", "ignore"]) -> dict[str, Any]:
    """Compare the photos of two splits and return the value of near_duplicates in leaks.json.

    Images of the same id or the same pixels are left out; leaks.survey reports them.

    choice: data.near_duplicates of the profile. Nothing is read for "ignore".
    """
    pairs = []
    if choice != "ignore":
        digests = [shards.table["pixel_sha256"].to_pylist() for shards in (val, train)]
        for match in matches(thumbnails(val), thumbnails(train)):
            key, other = val.keys[match.one], train.keys[match.other]
            if key != other and digests[0][match.one] != digests[1][match.other]:
                similarity = round(match.similarity, 3)
                pairs.append(
                    {"val": key, "train": other, "turn": TURNS[match.turn], "similarity": similarity}
                )
    pairs.sort(key=lambda pair: (-pair["similarity"], pair["val"], pair["train"]))
    names = {pair["val"]: val.name_of(pair["val"]) for pair in pairs}
    names |= {pair["train"]: train.name_of(pair["train"]) for pair in pairs}
    return {
        "choice": choice,
        "num_images": len({pair["val"] for pair in pairs}),
        "pairs": pairs,
        "names": {key: name for key, name in names.items() if key != name},
    }


def as_blocks(found: Mapping[str, Any]) -> list[Table | str]:
    """Return the result of `survey` as a paragraph and, if there are any pairs, a table."""
    pairs, names = found["pairs"], found["names"]
    if found["choice"] == "ignore":
        return ["Near duplicates were not looked for: data.near_duplicates is ignore."]
    if not pairs:
        return ["No image of val is a near duplicate of an image of train."]
    rows = [
        [
            *(names.get(pair[split], pair[split]) for split in ("val", "train")),
            pair["turn"],
            pair["similarity"],
        ]
        for pair in pairs[:NUM_LISTED]
    ]
    rest = len(pairs) - len(rows)
    notes = [f"{rest} more pairs are in leaks.json."] if rest else []
    return [
        f"Near duplicates: {_count(found)}.",
        Table(["val", "train", "the image of train is", "similarity"], rows, notes),
    ]


def refuse(found: Mapping[str, Any], folder: Path) -> None:
    """Raise LeakError if there are near duplicates and the profile refuses them; otherwise only warn of them.

    found: the result of `survey`.
    folder: the inspection's, for the message.
    """
    if not found["pairs"]:
        return
    message = (
        f"{_count(found)}: {files.and_more([_caption(found, pair) for pair in found['pairs']])}; look at "
        f"{folder / PICTURE}, then leave them out by data.splits.train.exclude"
    )
    if found["choice"] == "refuse":
        raise LeakError(f"{message}, or set data.near_duplicates to warn")
    print(f"warning: {message}", file=sys.stderr, flush=True)


def examples(
    found: Mapping[str, Any], val: Shards, train: Shards
) -> list[tuple[str, NDArray[np.uint8], NDArray[np.uint8]]]:
    """Return the most similar pairs for a figure: a caption and the photos of val and train, (H, W, 3) RGB."""
    return [
        (_caption(found, pair), _small_photo(val, pair["val"]), _small_photo(train, pair["train"]))
        for pair in found["pairs"][:NUM_SHOWN]
    ]


def _caption(found: Mapping[str, Any], pair: Mapping[str, Any]) -> str:
    val, train = (found["names"].get(pair[split], pair[split]) for split in ("val", "train"))
    turn = "" if pair["turn"] == TURNS[0] else f", {pair['turn']}"
    return f"{val} ({train}{turn})"


def _count(found: Mapping[str, Any]) -> str:
    num_train = len({pair["train"] for pair in found["pairs"]})
    return (
        f"{found['num_images']} images of val show the same picture as {num_train} images of train, "
        "turned, mirrored, rescaled or recompressed"
    )


def _small_photo(shards: Shards, key: str) -> NDArray[np.uint8]:
    photo, _ = shards.read(shards.keys.index(key))
    with Image.open(io.BytesIO(photo), formats=("JPEG", *LOSSLESS)) as image:
        image.draft("RGB", (SHOWN_SIDE, SHOWN_SIDE))
        small = image.convert("RGB")
    small.thumbnail((SHOWN_SIDE, SHOWN_SIDE))
    return np.asarray(small)
