"""What training changes about an image and its label: the one geometry for both, colours for the image alone.

Beyond an image's border all is black, and void in the label. What is drawn is a function of (seed, position in the
stream), so that a resumed run, any number of workers and any number of processes reading ahead give the same pixels.
Torch's random state is neither used nor moved.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from fcn import IGNORE_LABEL

TRANSFORM_DRAWS = 2  # sets these draws apart from those of the order; never 0, which numpy ignores


@dataclass(frozen=True)
class Transforms:
    """Which changes are drawn; the defaults change nothing.

    mirror: every second image, left for right.   jitter: shift by up to so many pixels each way.
    scale: the range of the factor of both sides, uniform in its logarithm.   crop: (height, width) of a window
    anywhere in the image, or, along a side that is smaller, around it anywhere.
    brightness, contrast, saturation: s for factors from 1 - s to 1 + s.   hue: shift by up to this part of the circle.
    """

    mirror: bool = False
    jitter: int = 0
    scale: tuple[float, float] = (1.0, 1.0)
    crop: tuple[int, int] | None = None
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0


class Change(NamedTuple):
    """What happens to one image, in this order. The window may reach beyond the scaled image, and gives the size."""

    brightness: float
    contrast: float
    saturation: float
    hue: float
    scaled: tuple[int, int]  # height, width
    window: tuple[int, int, int, int]  # top, left, height, width
    mirrored: bool

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the outcome."""
        return self.window[2:]


def draw(transforms: Transforms, size: tuple[int, int], seed: int, position: int) -> Change:
    """What happens to the image of (height, width) `size` at a position.

    Each thing has its own number of the draw: to add one transform does not change what the others do.
    """
    if transforms == Transforms():  # the paper's recipe, which need not wait for draws of no effect
        return unchanged(size)
    rng = np.random.Generator(np.random.PCG64([seed, position, TRANSFORM_DRAWS]))
    mirror, scale, down, right, top, left, *colours = rng.random(10).tolist()
    least, most = transforms.scale
    factor = least * (most / least) ** scale
    height, width = max(1, round(size[0] * factor)), max(1, round(size[1] * factor))
    window = transforms.crop or (height, width)
    corner = (
        _place(height, window[0], top) + _between(-transforms.jitter, transforms.jitter, down),
        _place(width, window[1], left) + _between(-transforms.jitter, transforms.jitter, right),
    )
    brightness, contrast, saturation, hue = (2 * u - 1 for u in colours)
    return Change(
        1 + transforms.brightness * brightness,
        1 + transforms.contrast * contrast,
        1 + transforms.saturation * saturation,
        transforms.hue * hue,
        (height, width),
        (*corner, *window),
        transforms.mirror and mirror < 0.5,
    )


def unchanged(size: tuple[int, int]) -> Change:
    """What leaves an image of (height, width) `size` as it is."""
    return Change(1, 1, 1, 0, size, (0, 0, *size), False)


def largest(transforms: Transforms, size: tuple[int, int]) -> tuple[int, int]:
    """The (height, width) that no outcome of an image of at most (height, width) `size` exceeds."""
    height, width = (math.ceil(side * transforms.scale[1]) for side in size)
    return transforms.crop or (height, width)


def _place(side: int, part: int, u: float) -> int:
    """Where a window of `part` pixels begins: within the side, or, if the side is shorter, so as to hold all of it."""
    return _between(min(0, side - part), max(0, side - part), u)


def _between(least: int, most: int, u: float) -> int:
    """A whole number from least to most, both included, all as likely; u: in [0, 1)."""
    return least + int(u * (most - least + 1))


def apply(change: Change, image: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
    """image: (3, H, W) uint8.   label: (H, W) uint8. -> the same of change.size."""
    height, width = label.shape
    if change == unchanged((height, width)):
        return image, label
    photo, mask = tv_tensors.Image(image), tv_tensors.Mask(label[None])
    for adjust, value, neutral in (
        (F.adjust_brightness, change.brightness, 1),
        (F.adjust_contrast, change.contrast, 1),
        (F.adjust_saturation, change.saturation, 1),
        (F.adjust_hue, change.hue, 0),
    ):
        photo = photo if value == neutral else adjust(photo, value)
    if change.scaled != tuple(label.shape):
        # Colours side by side: twice as fast, and torch 2.15 fails to make one pixel of anything else
        photo = F.resize(
            photo.permute(1, 2, 0).contiguous().permute(2, 0, 1), list(change.scaled), antialias=True
        )
        # As an image, because what torchvision does to masks, NEAREST, is off by up to a pixel up and left
        mask = tv_tensors.Mask(F.resize_image(mask, list(change.scaled), InterpolationMode.NEAREST_EXACT))
    photo, mask = _window(photo, change.window, 0), _window(mask, change.window, IGNORE_LABEL)
    if change.mirrored:
        photo, mask = F.horizontal_flip(photo), F.horizontal_flip(mask)
    return photo.as_subclass(Tensor), mask.as_subclass(Tensor)[0]


def _window(image: Tensor, window: tuple[int, int, int, int], outside: int) -> Tensor:
    """The window (top, left, height, width) of (C, H, W), with `outside` beyond the borders."""
    top, left, height, width = window
    above, before = max(0, -top), max(0, -left)
    below, behind = max(0, top + height - image.shape[-2]), max(0, left + width - image.shape[-1])
    if above or before or below or behind:
        image = F.pad(image, [before, above, behind, below], fill=outside)
    return F.crop(image, top + above, left + before, height, width)
