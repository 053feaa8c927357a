"""Where in a photo an ImageNet classifier sees a class: cast into a fully convolutional net, it says so in one pass."""

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
from pipeline.models import checkpoint
from pipeline.prediction.photos import read_photo

CLASSIFIERS = {
    "alexnet": (models.alexnet, models.AlexNet_Weights.IMAGENET1K_V1),
    "vgg16": (models.vgg16, models.VGG16_Weights.IMAGENET1K_V1),
}
# What one word means to a person is many classes to ImageNet: first and last index of each run
GROUPS = {"bird": ((7, 24), (80, 100), (127, 146)), "cat": ((281, 285),), "dog": ((151, 268),)}
CROP = 224  # what both classifiers were trained on
MAX_SIDE = (
    1024  # a larger photo is reduced: its things would fill no crop, and VGG-16 wants 0.5 KB for a pixel
)
MAX_ASPECT = 16
MIB = 2**20


class Classes(NamedTuple):
    """name: as in the question, or ImageNet's.   indices: the classes whose probabilities add up."""

    name: str
    indices: tuple[int, ...]


class Peak(NamedTuple):
    """The crop that shows the classes most clearly: how likely, and where in the photo its middle lies, in pixels."""

    classes: Classes
    probability: float
    x: float
    y: float


def heatmap(
    image_path: Path, class_name: str, dest: Path, *, classifier: str, weights: Path | None = None
) -> Peak:
    """Writes a PNG of the photo, grey, with the probability of the class in colour over it; returns the peak.

    class_name: see `classes_named`.   classifier: a name in CLASSIFIERS.
    weights: a state_dict of torchvision's; without it the published file is fetched into downloads/.
    Colours are of the probability itself: without a peak in the photo, the picture stays grey. The picture has the
    photo's size, unless that is less than a crop or more than MAX_SIDE, which is said. UserError for a user's mistake.
    """
    if classifier not in CLASSIFIERS:
        raise UserError(f"unknown classifier {classifier!r}; known: {', '.join(CLASSIFIERS)}")
    chosen = CLASSIFIERS[classifier][1]
    classes = classes_named(class_name, chosen.meta["categories"])
    photo = read_photo(image_path)
    if dest.is_dir() or (dest.exists() and dest.samefile(image_path)):
        raise UserError(
            f"{dest} is {'a folder' if dest.is_dir() else 'the photo'}; name another file to write"
        )
    image = _fitted(photo, image_path)
    net = dense_classifier(classifier, weights or _published(chosen))
    grid = probability_map(net, torch.from_numpy(np.array(image)).permute(2, 0, 1), classes.indices)
    if not grid.isfinite().all():
        raise CheckpointError(f"{weights or chosen.url}: scores are not finite; the weights are damaged")
    _write(overlaid(image, grid.numpy(), cells(net)), dest)
    return _peak(classes, grid, cells(net), photo.width / image.width, photo.height / image.height)


def classes_named(name: str, categories: Sequence[str]) -> Classes:
    """The classes that a name stands for.

    name: a group of GROUPS, an index, a category, or part of one: all categories with these whole words,
        else all that contain it. Upper and lower case are the same. UserError with the nearest names if there is none.
    """
    wanted, lower = " ".join(name.lower().split()), [category.lower() for category in categories]
    if wanted in GROUPS:
        return Classes(wanted, tuple(i for first, last in GROUPS[wanted] for i in range(first, last + 1)))
    if re.fullmatch("[0-9]{1,9}", wanted):
        if int(wanted) >= len(categories):
            raise UserError(f"there is no class {wanted}; indices go from 0 to {len(categories) - 1}")
        return Classes(categories[int(wanted)], (int(wanted),))
    whole_words = rf"\b{re.escape(wanted)}\b"
    for fits in (
        wanted.__eq__,
        lambda category: re.search(whole_words, category),
        lambda category: wanted in category,
    ):
        found = tuple(i for i, category in enumerate(lower) if wanted and fits(category))
        if found:
            return Classes(categories[found[0]] if len(found) == 1 else wanted, found)
    names = dict(zip([*GROUPS, *lower], [*GROUPS, *categories], strict=True))
    near = [names[key] for key in difflib.get_close_matches(wanted, names, n=5, cutoff=0.5)]
    remedy = f"the nearest: {', '.join(near)}" if near else f"try {', '.join(GROUPS)}, or an index"
    raise UserError(f"no ImageNet class is called {name!r}; {remedy}")


def dense_classifier(classifier: str, weights: Path) -> nn.Sequential:
    """(N, 3, H, W) RGB in 0..255, from CROP x CROP on -> scores (N, 1000, h, w); CheckpointError if they are others."""
    state = checkpoint.load_weights(weights)
    with torch.device("meta"):  # 553 MB of VGG-16's random numbers need not be drawn
        net = CLASSIFIERS[classifier][0](weights=None)
    try:
        if not isinstance(state, Mapping):
            raise TypeError(f"a state_dict is expected, found a {type(state).__name__}")
        net.load_state_dict(state, assign=True)
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        reason = shorten(str(error), 400)
        raise CheckpointError(
            f"{weights} holds no weights of torchvision's {classifier}: {reason}"
        ) from error
    return nn.Sequential(PixelNormalization("torchvision"), convolutionalize(net.float().eval()))


@torch.inference_mode()
def probability_map(net: nn.Module, image: Tensor, indices: Sequence[int]) -> Tensor:
    """image: (3, H, W) -> (h, w): of each crop, how likely it shows any of these classes."""
    return net(image[None]).softmax(1)[0, list(indices)].sum(0)


def cells(net: nn.Sequential) -> CoordMap:
    """Where in the image the middles of the crops lie."""
    return IMAGE.through(net)


def enlarged(grid: NDArray[np.float32], size: tuple[int, int], cells: CoordMap) -> NDArray[np.float32]:
    """(h, w) -> (H, W), bilinear between the crops' middles; nearer to the border, the value of the last crop."""
    rows, columns = (_weights(length, num, cells) for length, num in zip(size, grid.shape, strict=True))
    return np.asarray(rows @ grid @ columns.T, np.float32)


def overlaid(image: Image.Image, grid: NDArray[np.float32], cells: CoordMap) -> Image.Image:
    """The photo in grey; the likelier the class, the denser the colour, from yellow to red."""
    likely = enlarged(grid, (image.height, image.width), cells).clip(0, 1)[..., None]
    grey = np.asarray(image.convert("L"), np.float32)[..., None]
    red_to_yellow = np.concatenate([np.full_like(likely, 255), 255 * (1 - likely), np.zeros_like(likely)], 2)
    share = 0.8 * np.sqrt(likely)  # the root, for 0.1 to be seen
    return Image.fromarray(((1 - share) * grey + share * red_to_yellow).round().astype(np.uint8))


def _weights(length: int, num_cells: int, cells: CoordMap) -> NDArray[np.float32]:
    """(length, num_cells): the share of each cell in each pixel."""
    places = (np.arange(length, dtype=np.float32) - float(cells.shift)) / float(cells.scale)
    distances = np.abs(places.clip(0, num_cells - 1)[:, None] - np.arange(num_cells))
    return (1 - distances).clip(min=0).astype(np.float32)


def _peak(classes: Classes, grid: Tensor, cells: CoordMap, x_scale: float, y_scale: float) -> Peak:
    row, column = divmod(int(grid.argmax()), grid.shape[1])
    x, y = (float(cells.scale * cell + cells.shift) + 0.5 for cell in (column, row))
    return Peak(classes, float(grid.max()), x * x_scale - 0.5, y * y_scale - 0.5)


def _published(weights: WeightsEnum) -> Path:
    """torchvision's file, verified by the first digits of its sha256, which stand in its name."""
    digits = re.search(r"-([0-9a-f]+)\.pth$", urlsplit(weights.url).path)
    assert digits, weights.url
    # Its size in MiB is rounded; nothing much larger is taken
    max_size_gb = 1.01 * weights.meta["_file_size"] * MIB / 1e9
    checksum = f"sha256:{digits[1]}"
    return fetch_published(paths.DOWNLOADS, urls=[weights.url], checksum=checksum, max_size_gb=max_size_gb)


def _fitted(photo: Image.Image, path: Path) -> Image.Image:
    """The photo at a size that the classifier can look at: no side below a crop, none much above MAX_SIDE."""
    shorter, longer = sorted(photo.size)
    if longer > MAX_ASPECT * shorter:
        raise UserError(
            f"{path} is {photo.width}x{photo.height}, more than {MAX_ASPECT} times as long as wide; cut it"
        )
    scale = max(CROP / shorter, min(1.0, MAX_SIDE / longer))
    if scale == 1:
        return photo
    width, height = (max(CROP, round(side * scale)) for side in photo.size)
    change, bound = (
        ("enlarged", f"a crop is {CROP}x{CROP}") if scale > 1 else ("reduced", f"at most {MAX_SIDE}")
    )
    print(f"{path}: {photo.width}x{photo.height} {change} to {width}x{height} ({bound})", file=sys.stderr)
    return photo.resize((width, height), Image.Resampling.BILINEAR)


def _write(image: Image.Image, dest: Path) -> None:
    partial = dest.with_name(f".{dest.name}.partial")
    try:
        dest.parent.mkdir(parents=True, exist_ok=True)
        image.save(partial, "PNG")
        partial.replace(dest)
    except OSError as error:
        raise UserError(f"{dest} cannot be written: {error.strerror or error}") from error
