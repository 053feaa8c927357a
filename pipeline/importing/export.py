"""The contract of the formats: an export as a list of photos, each with a function that gives its label."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import DatasetError
from pipeline.importing.classes import BACKGROUND, BACKGROUND_NAMES, ClassMap
from pipeline.importing.source import Source
from pipeline.shards.labels import decode_label

UNKNOWN = 254  # in a label: a value or colour of the mask without a class
MAX_CLASSES = 254
SHARES = "0.8/0.2"  # of train/val
SPLITS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}
_AFTER = rf"(?:[_-](?P<after>{'|'.join(SPLITS)}))?"
MASK_FOLDER = re.compile(
    r"(?:(?P<before>.*?)[_-]?)?(?:masks?|labels?|annotations?|annot|ground_?truth|gt|gtFine|gtCoarse|SegmentationClass"
    rf"|segmentations?|trimaps|masks_machine|targets?){_AFTER}",
    re.IGNORECASE,
)
PHOTO_FOLDER = re.compile(
    r"(?:(?P<before>.*?)[_-]?)?(?:images?|photos?|imgs?|JPEGImages|leftImg8bit|pictures|rgb|frames|data)"
    + _AFTER,
    re.IGNORECASE,
)


class Label(NamedTuple):
    """The label of one photo, before --map.

    values: (H, W) uint8: indices of the export's classes, 255 (void) or UNKNOWN. None: the file `png` holds them;
        without a `png`, all pixels are background.
    unknown: pixels of each value or colour without a class, by its name in --map: {"#ff00aa": 120}.
    png: a file that holds these values as encode_label writes them; None if there is none.
    counts: pixels of each value that occurs; None if they were not counted.
    size: (height, width) of the file `png`; None if `values` are given.
    """

    values: NDArray[np.uint8] | None
    unknown: Mapping[str, int] = {}
    png: bytes | None = None
    counts: Mapping[int, int] | None = None
    size: tuple[int, int] | None = None

    @property
    def shape(self) -> tuple[int, int] | None:
        """(height, width); None if all is background."""
        return self.size if self.values is None else self.values.shape  # type: ignore[return-value]

    def values_of(self, photo_size: tuple[int, int]) -> NDArray[np.uint8]:
        """Return the values, decoded or drawn if need be.

        photo_size: (height, width) of the upright photo, whose label may be all background.
        """
        if self.values is not None:
            return self.values
        return decode_label(self.png) if self.png else np.zeros(photo_size, np.uint8)


@dataclass(frozen=True)
class Item:
    """One photo of an export. Everything in it can be pickled.

    photo: its path in SOURCE.
    label: gives the label; the second argument is the upright photo's (height, width).
    splits: the lists that have it, canonical names.
    is_upright: the label fits the photo as EXIF turns it; None if only sizes can show that.
    embedded: gives the photo's bytes if they are not in a file of their own.
    """

    photo: str
    label: Callable[[Source, tuple[int, int]], Label]
    splits: tuple[str, ...] = ()
    is_upright: bool | None = None
    embedded: Callable[[Source], bytes] | None = None


@dataclass
class Export:
    """A recognised export.

    classes: names in the order of the label values; a background class is the first.
    items: in any order; photos occur once.
    decisions: sentences about overlaps, background, unlabelled photos and void.
    left_out: files that are not used, with the reason.
    has_mask_values: its labels are masks of values or colours, to which --map can give classes.
    background: the name of the background class, if it may be none of the usual ones.
    """

    classes: Sequence[str]
    items: Sequence[Item]
    decisions: Sequence[str] = ()
    left_out: Mapping[str, str] = field(default_factory=dict)
    has_mask_values: bool = False
    background: str = ""


@dataclass(frozen=True)
class Settings:
    """The options of `fcn import`.

    format: --format; None: recognised.
    class_map: --map.
    shares: --split; None: of SHARES, where the export does not tell train from val.
    seed: --seed.
    group: --group.
    folds: --folds; 0: none.
    value_range: --range.
    workers: --workers.
    """

    format: str | None = None
    class_map: ClassMap = field(default_factory=ClassMap)
    shares: str | None = None
    seed: int = 0
    group: str | None = None
    folds: int = 0
    value_range: tuple[float, float] | None = None
    workers: int = 1


@dataclass(frozen=True)
class Options:
    """The settings that formats need.

    class_map: --map.
    workers: processes that may be used.
    """

    class_map: ClassMap
    workers: int = 1


def split_of(path: str) -> tuple[str, ...]:
    """Return the split that a folder of the path names: "images/valid/x.jpg" -> ("val",); () if none does.

    A word for photos or masks may stand before or after it: "train_images", "labels-val". The innermost folder counts:
    "training_data/val/x.jpg" -> ("val",).
    """
    for folder in reversed(path.split("/")[:-1]):
        match = MASK_FOLDER.fullmatch(folder) or PHOTO_FOLDER.fullmatch(folder)
        for name in (folder, match["before"], match["after"]) if match else (folder,):
            if (name or "").lower() in SPLITS:
                return (SPLITS[name.lower()],)
    return ()


def drawn_size(height: object, width: object, photo_size: tuple[int, int], where: str) -> tuple[int, int]:
    """Return the size that an annotation states, if it is that of its photo, turned by EXIF or not.

    photo_size: (height, width) of the upright photo.
    """
    for size in (photo_size, photo_size[::-1]):
        if (height, width) == size:
            return size[0], size[1]
    raise DatasetError(
        f"{where}: drawn on a photo of {(height, width)}, its photo is {photo_size} (height, width); it belongs to "
        "another photo, or the photo was resized: export it again"
    )


def order_classes(
    names: Sequence[str], where: str, *, add_background: bool, first: str | None = None
) -> list[str]:
    """Return unique names with the background class first; one is added if asked for and not there.

    first: the name of the background class, if it is known otherwise.
    """
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise DatasetError(f"{where}: class {repeated[0]!r} occurs twice; keep one")
    background = [name for name in names if name.casefold() in BACKGROUND_NAMES]
    if len(background) > 1:
        raise DatasetError(f"{where}: {' and '.join(background)} are both names of the background; keep one")
    front = [first] if first in names else background or ([BACKGROUND] if add_background else [])
    ordered = [*front, *(name for name in names if name not in front)]
    if len(ordered) > MAX_CLASSES:
        raise DatasetError(f"{where}: {len(ordered)} classes; a label holds up to {MAX_CLASSES}")
    return ordered
