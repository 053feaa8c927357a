"""Augmentation: geometry for image and label alike, colours for the image alone.

Beyond its border an image is black and its label void. The random draw is a function of (seed, position in the
sequence of samples), so a resumed run and any number of workers or loader processes give the same pixels. torch's
random state is not used.
"""

import math
from typing import NamedTuple

import numpy as np
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from fcn import IGNORE_LABEL
from pipeline.config.training import Transforms

DRAW_KIND = 2  # makes these draws differ from the sampler's; not 0, which numpy's seeding ignores


class Change(NamedTuple):
    """The changes of one image, applied in this order.

    brightness, contrast, saturation: factors; 1 changes nothing.
    hue: shift, as a share of the colour circle; 0 changes nothing.
    scaled: (height, width) after scaling.
    window: (top, left, height, width) of the crop; it may reach beyond the scaled image.
    mirrored: left for right, after the crop.
    """

    brightness: float
    contrast: float
    saturation: float
    hue: float
    scaled: tuple[int, int]
    window: tuple[int, int, int, int]
    mirrored: bool

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the result."""
        return self.window[2:]


def draw(transforms: Transforms, size: tuple[int, int], seed: int, position: int) -> Change:
    """Return the changes of the image at a position of the sequence.

    Each transform uses its own number of the draw, so adding one leaves the others' results as they are.

    size: (height, width) of the image.
    """
    if transforms == Transforms():  # the paper's recipe: skip draws without effect
        return unchanged(size)
    rng = np.random.Generator(np.random.PCG64([seed, position, DRAW_KIND]))
    mirror, scale, down, right, top, left, *colours = rng.random(10).tolist()
    least, most = transforms.scale
    factor = least * (most / least) ** scale
    height, width = max(1, round(size[0] * factor)), max(1, round(size[1] * factor))
    window = transforms.crop or (height, width)
    corner = (
        _corner(height, window[0], top) + _between(-transforms.jitter, transforms.jitter, down),
        _corner(width, window[1], left) + _between(-transforms.jitter, transforms.jitter, right),
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
    """Return the change that leaves an image of (height, width) `size` as it is."""
    return Change(1, 1, 1, 0, size, (0, 0, *size), False)


def largest(transforms: Transforms, size: tuple[int, int]) -> tuple[int, int]:
    """Return the largest (height, width) that an image of at most (height, width) `size` can become."""
    height, width = (math.ceil(side * transforms.scale[1]) for side in size)
    return transforms.crop or (height, width)


def smallest(transforms: Transforms, size: tuple[int, int]) -> tuple[int, int]:
    """Return the smallest (height, width) that an image of (height, width) `size` can become."""
    height, width = (max(1, round(side * transforms.scale[0])) for side in size)
    return transforms.crop or (height, width)


def _corner(side: int, part: int, u: float) -> int:
    """Return where a window of `part` pixels starts: inside the side, or, if the side is shorter, around it."""
    return _between(min(0, side - part), max(0, side - part), u)


def _between(least: int, most: int, u: float) -> int:
    """Return a whole number from least to most, both included, by a uniform draw u in [0, 1)."""
    return least + int(u * (most - least + 1))


def apply(change: Change, image: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
    """Return the changed image and label, of change.size.

    image: (3, H, W) uint8.
    label: (H, W) uint8.
    """
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
        # Channels last: twice as fast, and torch 2.15 fails to resize anything else to one pixel
        photo = F.resize(
            photo.permute(1, 2, 0).contiguous().permute(2, 0, 1), list(change.scaled), antialias=True
        )
        # As an image: torchvision resizes masks by NEAREST, which is off by up to a pixel up and left
        mask = tv_tensors.Mask(F.resize_image(mask, list(change.scaled), InterpolationMode.NEAREST_EXACT))
    photo, mask = _window(photo, change.window, 0), _window(mask, change.window, IGNORE_LABEL)
    if change.mirrored:
        photo, mask = F.horizontal_flip(photo), F.horizontal_flip(mask)
    return photo.as_subclass(Tensor), mask.as_subclass(Tensor)[0]


def _window(image: Tensor, window: tuple[int, int, int, int], outside: int) -> Tensor:
    """Return the window (top, left, height, width) of (C, H, W), with the value `outside` beyond the borders."""
    top, left, height, width = window
    above, before = max(0, -top), max(0, -left)
    below, behind = max(0, top + height - image.shape[-2]), max(0, left + width - image.shape[-1])
    if above or before or below or behind:
        image = F.pad(image, [before, above, behind, below], fill=outside)
    return F.crop(image, top + above, left + before, height, width)
