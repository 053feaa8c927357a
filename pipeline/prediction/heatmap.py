"""`fcn heatmap`: where in a photo an ImageNet classifier, cast into a fully convolutional net, sees a class."""

import difflib
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import shorten
from typing import NamedTuple
from urllib.parse import urlsplit

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torchvision import models
from torchvision.models import WeightsEnum

from fcn.geometry import IMAGE, CoordMap
from fcn.pixels import PixelNormalization
from fcn.surgery import convolutionalize
from pipeline import paths
from pipeline.download.fetch import fetch_published
from pipeline.errors import CheckpointError, UserError
from pipeline.files import whole
from pipeline.models import checkpoint
from pipeline.prediction.photos import read_photo

CLASSIFIERS = {
    "alexnet": (models.alexnet, models.AlexNet_Weights.IMAGENET1K_V1),
    "vgg16": (models.vgg16, models.VGG16_Weights.IMAGENET1K_V1),
}
# Common words for many ImageNet classes: first and last index of each run
GROUPS = {"bird": ((7, 24), (80, 100), (127, 146)), "cat": ((281, 285),), "dog": ((151, 268),)}
CROP = 224  # pixels; the training crops of both classifiers
MAX_SIDE = 1024  # pixels; objects of larger photos exceed a crop, and VGG-16 takes 0.5 KB a pixel
MAX_ASPECT = 16
MIB = 2**20


class Classes(NamedTuple):
    """ImageNet classes whose probabilities are added.

    name: as asked for, or ImageNet's.
    indices: of the classes.
    """

    name: str
    indices: tuple[int, ...]


class Peak(NamedTuple):
    """The crop with the highest probability of the classes.

    probability: 0..1.
    x, y: column and row of the crop's middle in the photo, in pixels.
    """

    classes: Classes
    probability: float
    x: float
    y: float


def heatmap(
    image_path: Path, class_name: str, dest: Path, *, classifier: str, weights: Path | None = None
) -> Peak:
    """Write a PNG of the photo in grey with the probability of a class in colour over it; return the peak.

    Colours show the probability itself, so without a peak the picture stays grey. The picture has the photo's size,
    unless a side is less than a crop or more than MAX_SIDE; then a message names both sizes.

    class_name: see `classes_named`.
    classifier: a name in CLASSIFIERS.
    weights: a state_dict of torchvision's; None fetches the published file into downloads/.

    Raises UserError for an unknown class or classifier, an unusable photo or weights, or a dest that is not writable.
    """
    if classifier not in CLASSIFIERS:
        raise UserError(f"unknown classifier {classifier!r}; known: {', '.join(CLASSIFIERS)}")
    published = CLASSIFIERS[classifier][1]
    classes = classes_named(class_name, published.meta["categories"])
    photo = read_photo(image_path)
    if dest.is_dir() or (dest.exists() and dest.samefile(image_path)):
        raise UserError(
            f"{dest} is {'a folder' if dest.is_dir() else 'the photo'}; give another file to write"
        )
    image = _fitted(photo, image_path)
    net = dense_classifier(classifier, weights or _published(published))
    grid = probability_map(net, torch.from_numpy(np.array(image)).permute(2, 0, 1), classes.indices)
    if not grid.isfinite().all():
        raise CheckpointError(
            f"{weights or published.url}: scores are NaN or infinite; the weights are damaged"
        )
    cells = IMAGE.through(net)
    with whole(dest) as file:
        overlaid(image, grid.numpy(), cells).save(file, "PNG")
    row, column = divmod(int(grid.argmax()), grid.shape[1])
    x, y = (float(cells.scale * index + cells.shift) + 0.5 for index in (column, row))
    x, y = x * photo.width / image.width - 0.5, y * photo.height / image.height - 0.5
    return Peak(classes, float(grid.max()), x, y)


def classes_named(name: str, categories: Sequence[str]) -> Classes:
    """Return the classes of a name, in upper or lower case.

    name: a group of GROUPS, an index, a category, or a part of one. A part stands for all categories that hold it as
        whole words, or else for all that contain it.

    Raises UserError with the most similar names if there is none.
    """
    wanted, lower = " ".join(name.lower().split()), [category.lower() for category in categories]
    if wanted in GROUPS:
        return Classes(wanted, tuple(i for first, last in GROUPS[wanted] for i in range(first, last + 1)))
    if re.fullmatch("[0-9]{1,9}", wanted):
        if int(wanted) >= len(categories):
            raise UserError(f"there is no class {wanted}; indices go from 0 to {len(categories) - 1}")
        return Classes(categories[int(wanted)], (int(wanted),))
    whole_words = re.compile(rf"\b{re.escape(wanted)}\b")
    for fits in (wanted.__eq__, whole_words.search, lambda category: wanted in category):
        indices = tuple(i for i, category in enumerate(lower) if wanted and fits(category))
        if indices:
            return Classes(categories[indices[0]] if len(indices) == 1 else wanted, indices)
    names = dict(zip([*GROUPS, *lower], [*GROUPS, *categories], strict=True))
    similar = [names[key] for key in difflib.get_close_matches(wanted, names, n=5, cutoff=0.5)]
    remedy = f"the nearest: {', '.join(similar)}" if similar else f"try {', '.join(GROUPS)}, or an index"
    raise UserError(f"no ImageNet class is called {name!r}; {remedy}")


def dense_classifier(classifier: str, weights: Path) -> nn.Sequential:
    """Return a net: image (N, 3, H, W) RGB in 0..255, H, W >= CROP -> scores (N, 1000, h, w).

    weights: a state_dict of torchvision's classifier. Raises CheckpointError if it is not.
    """
    state = checkpoint.load_weights(weights)
    with torch.device("meta"):  # without drawing 553 MB of random weights for VGG-16
        net = CLASSIFIERS[classifier][0](weights=None)
    try:
        if not isinstance(state, Mapping):
            raise TypeError(f"expected a state_dict, found a {type(state).__name__}")
        net.load_state_dict(state, assign=True)
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        reason = shorten(str(error), 400)
        raise CheckpointError(f"{weights} does not fit torchvision's {classifier}: {reason}") from error
    return nn.Sequential(PixelNormalization("torchvision"), convolutionalize(net.float().eval()))


@torch.inference_mode()
def probability_map(net: nn.Module, image: Tensor, indices: Sequence[int]) -> Tensor:
    """Return each crop's probability of any of these classes, (h, w).

    image: (3, H, W) RGB in 0..255.
    """
    return net(image[None]).softmax(1)[0, list(indices)].sum(0)


def enlarged(grid: NDArray[np.float32], size: tuple[int, int], cells: CoordMap) -> NDArray[np.float32]:
    """Return a grid (h, w) at an image's size (H, W): bilinear between the crops' middles, constant beyond them.

    cells: where the crops' middles lie in the image.
    """
    rows, columns = (_shares(length, num, cells) for length, num in zip(size, grid.shape, strict=True))
    return np.asarray(rows @ grid @ columns.T, np.float32)


def _shares(length: int, num_cells: int, cells: CoordMap) -> NDArray[np.float32]:
    """Return the share of each cell in each pixel, (length, num_cells)."""
    positions = (np.arange(length, dtype=np.float32) - float(cells.shift)) / float(cells.scale)
    distances = np.abs(positions.clip(0, num_cells - 1)[:, None] - np.arange(num_cells))
    return (1 - distances).clip(min=0).astype(np.float32)


def overlaid(image: Image.Image, grid: NDArray[np.float32], cells: CoordMap) -> Image.Image:
    """Return the image in grey under colours: the higher the probability, the denser and the redder."""
    probability = enlarged(grid, (image.height, image.width), cells).clip(0, 1)[..., None]
    grey = np.asarray(image.convert("L"), np.float32)[..., None]
    yellow_to_red = np.concatenate(
        [np.full_like(probability, 255), 255 * (1 - probability), np.zeros_like(probability)], 2
    )
    opacity = 0.8 * np.sqrt(probability)  # the root makes 0.1 visible
    return Image.fromarray(((1 - opacity) * grey + opacity * yellow_to_red).round().astype(np.uint8))


def _published(weights: WeightsEnum) -> Path:
    """Fetch torchvision's file, verified by the first digits of its sha256, which are in its name."""
    digits = re.search(r"-([0-9a-f]+)\.pth$", urlsplit(weights.url).path)
    assert digits, weights.url
    max_size_gb = 1.01 * weights.meta["_file_size"] * MIB / 1e9  # its size is rounded to a tenth of a MiB
    return fetch_published(
        paths.DOWNLOADS, urls=[weights.url], checksum=f"sha256:{digits[1]}", max_size_gb=max_size_gb
    )


def _fitted(photo: Image.Image, path: Path) -> Image.Image:
    """Return the photo with no side below a crop, and none much above MAX_SIDE."""
    shorter, longer = sorted(photo.size)
    if longer > MAX_ASPECT * shorter:
        raise UserError(
            f"{path} is {photo.width}x{photo.height}, more than {MAX_ASPECT} times as long as wide; cut it"
        )
    scale = max(CROP / shorter, min(1.0, MAX_SIDE / longer))
    if scale == 1:
        return photo
    width, height = (max(CROP, round(side * scale)) for side in photo.size)
    reason = f"enlarged to hold a crop of {CROP}x{CROP}" if scale > 1 else f"reduced to {MAX_SIDE} pixels"
    print(f"{path}: {photo.width}x{photo.height} {reason}: {width}x{height}", file=sys.stderr)
    return photo.resize((width, height), Image.Resampling.BILINEAR)
