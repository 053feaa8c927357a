"""Near duplicates: photos of two splits that show the same picture, turned, mirrored, rescaled or recompressed.

same_picture.py finds them.
"""

import io
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline import files
from pipeline.errors import LeakError
from pipeline.inspection.same_picture import SIDE, TURNS, matches, thumbnail
from pipeline.progress import bar
from pipeline.shards.images import LOSSLESS
from pipeline.shards.read import Shards, in_turn
from pipeline.tables import Table

PICTURE = "near_duplicates.png"  # in the inspection's folder, if there are any
NUM_LISTED = 20  # pairs in the table
NUM_SHOWN = 8  # pairs in the figure
SHOWN_SIDE = 320  # pixels, the longer side of a photo in the figure
NUM_QUEUED = 256  # photos that threads are given at a time; a queue of a million takes gigabytes
NUM_THREADS = 4  # that decode photos, and wait for those of a bucket


def thumbnails(shards: Shards) -> NDArray[np.uint8]:
    """Return the thumbnails of all photos of a split in the shards' order, (N, SIDE, SIDE)."""
    result = np.empty((len(shards), SIDE, SIDE), np.uint8)
    with (
        bar(len(shards), "compare photos", delay_s=2) as progress,
        shards.threads(NUM_THREADS) as threads,
        shards.ahead(in_turn(range(len(shards)))) as advance,
    ):
        for start in range(0, len(shards), NUM_QUEUED):
            part = range(start, min(start + NUM_QUEUED, len(shards)))
            found = threads.map(lambda index: thumbnail(shards.read(index)[0]), part)
            for index, small in zip(part, found, strict=True):
                result[index] = small
                advance()
                progress.update()
    return result


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
