"""Data sets as they are published: each module reads one layout and yields samples."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Sample:
    """One image with its ground truth.

    key: unique in the data set, no '.' and no '/'.   jpeg: the image file's bytes, untouched.
    label: (H, W) uint8, 0..num_classes-1 or fcn.IGNORE_LABEL, the size of the decoded image.
    """

    key: str
    jpeg: bytes
    label: NDArray[np.uint8]
