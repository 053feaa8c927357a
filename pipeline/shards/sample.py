"""One image with its ground truth: what a shard holds of it."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fcn import IGNORE_LABEL
from pipeline.shards.labels import Photo, check_label, encode_label, examine, is_label_png


@dataclass(frozen=True)
class Sample:
    """One image with its ground truth, and what was learned when both were checked.

    key: unique in the data set, no '.' and no '/'.   jpeg: the image file's bytes, untouched.
    label: (H, W) uint8, 0..num_classes-1 or fcn.IGNORE_LABEL, the size of the decoded image.
    png: the label as encode_label writes it, or the label file's bytes, untouched, if that is such a PNG already.
    photo: of the JPEG.   counts: (256,) int64, the label's pixels of each value.
    """

    key: str
    jpeg: bytes
    label: NDArray[np.uint8]
    png: bytes
    photo: Photo
    counts: NDArray[np.int64]

    @classmethod
    def checked(
        cls,
        key: str,
        jpeg: bytes,
        label: NDArray[np.uint8],
        num_classes: int = IGNORE_LABEL,
        where: tuple[str, str] = ("image", "label"),
        mask: bytes = b"",
    ) -> "Sample":
        """DatasetError, which names `where` of the two, if the image cannot be decoded or the label does not fit it.

        mask: the file that the label was decoded from.
        """
        photo = examine(jpeg, where[0])
        counts = check_label(label, photo.size, num_classes, where[1])
        png = mask if is_label_png(mask) else encode_label(label)
        return cls(key, jpeg, label, png, photo, counts)
