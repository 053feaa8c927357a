"""A sample: a photo, its label, and the counts that a manifest records of both."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fcn import IGNORE_LABEL
from pipeline.shards.images import Photo, check_photo
from pipeline.shards.labels import check_label, encode_label, is_label_png


@dataclass(frozen=True)
class Sample:
    """One photo with its ground truth, both checked.

    key: unique in the data set, without '.' and '/'.
    label: (H, W) uint8, 0..num_classes-1 or fcn.IGNORE_LABEL, of the photo's size.
    png: the label as encode_label writes it, or the label file's own bytes where they already are such a PNG.
    photo: the photo as the shard holds it, with its size, mode and pixel hash.
    counts: (256,) int64, the label's pixels of each value.
    """

    key: str
    label: NDArray[np.uint8]
    png: bytes
    photo: Photo
    counts: NDArray[np.int64]

    @property
    def image(self) -> bytes:
        """The photo's bytes: of the JPEG file, unchanged, or of a PNG."""
        return self.photo.data

    @classmethod
    def checked(
        cls,
        key: str,
        image: bytes,
        label: NDArray[np.uint8],
        num_classes: int = IGNORE_LABEL,
        where: tuple[str, str] = ("image", "label"),
        mask: bytes = b"",
    ) -> "Sample":
        """Return a sample; DatasetError if the photo cannot be decoded or the label does not fit it.

        image: the bytes of the photo's file.
        where: the names of photo and label in messages.
        mask: the label file's bytes; empty if the label was not decoded from a file.
        """
        photo = check_photo(image, where[0])
        counts = check_label(label, photo.size, num_classes, where[1])
        png = mask if is_label_png(mask) else encode_label(label)
        return cls(key, label, png, photo, counts)


def digest_of_keys(keys: Iterable[str]) -> str:
    """Return the sha256 of the sorted keys, one per line: it identifies a published list of images."""
    return hashlib.sha256("".join(f"{key}\n" for key in sorted(keys)).encode()).hexdigest()
