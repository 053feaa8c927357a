"""Compute the best mean IU that a net of a coarse stride could reach: labels shrunk and enlarged (PAMI, appendix A).

    python -m bench.upper_bound FOLDER            # FOLDER: label images of PASCAL VOC seg11valid, palette PNGs

Published (arXiv v2, appendix A): 128: 50.9, 64: 73.3, 32: 86.1, 16: 92.8, 8: 96.4, 4: 98.5.
"""

import argparse
from functools import cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from fcn import IGNORE_LABEL
from fcn.metrics import ConfusionMatrix

PUBLISHED = {128: 50.9, 64: 73.3, 32: 86.1, 16: 92.8, 8: 96.4, 4: 98.5}
NUM_CLASSES = 21


def coarsened(label: Tensor, factor: int) -> Tensor:
    """Return the prediction of a net of that stride if every cell of its score were perfect.

    Each class's share of the pixels is shrunk and enlarged again; the largest wins. Both use the bilinear kernel two
    cells wide that enlarges a net's score. The paper names no kernel; this one gives its numbers. Void counts as
    background.

    label: (H, W) int64.
    factor: the stride.
    return: (H, W) int64.
    """
    height, width = label.shape
    label = torch.where(label == IGNORE_LABEL, 0, label)
    present = label.unique()  # the others' shares are zero everywhere
    share = (label == present[:, None, None]).float()
    (shrink_y, enlarge_y), (shrink_x, enlarge_x) = resizers(height, factor), resizers(width, factor)
    cells = shrink_y @ share @ shrink_x.T
    enlarged = enlarge_y @ cells @ enlarge_x.T
    return present[enlarged.argmax(0)]


@cache
def resizers(side: int, factor: int) -> tuple[Tensor, Tensor]:
    """Return torch's interpolate along one axis as (cells, side) and (side, cells) matrices, which is faster."""
    cells = -(-side // factor)
    pixels = torch.eye(cells * factor)[None, None]
    shrink = F.interpolate(pixels, (cells, cells * factor), mode="bilinear", antialias=True)
    enlarge = F.interpolate(torch.eye(cells)[None, None], (cells * factor, cells), mode="bilinear")
    return shrink[0, 0, :, :side], enlarge[0, 0, :side]


def read(folder: Path) -> list[Tensor]:
    """Read the (H, W) int64 labels of a folder."""
    return [torch.from_numpy(np.array(Image.open(file))).long() for file in sorted(folder.glob("*.png"))]


def mean_iu(labels: list[Tensor], factor: int) -> float:
    """Return the mean IU, 0..1, of the coarsened labels against the true ones."""
    confusion = ConfusionMatrix(NUM_CLASSES)
    for label in labels:
        confusion.update(coarsened(label, factor), label)
    return confusion.scores().mean_iu


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    labels = read(parser.parse_args().folder)
    print(f"{len(labels)} labels")
    for factor, published in PUBLISHED.items():
        print(f"{factor:4}  {100 * mean_iu(labels, factor):.1f}  published {published}", flush=True)


if __name__ == "__main__":
    main()
