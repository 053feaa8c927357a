"""The best mean IU a net of a coarse stride could reach: labels shrunk and enlarged (PAMI, appendix A).

    python -m bench.upper_bound FOLDER            # FOLDER: label images of PASCAL VOC seg11valid, palette PNGs

Published (arXiv v2, appendix A): 128: 50.9, 64: 73.3, 32: 86.1, 16: 92.8, 8: 96.4, 4: 98.5.
"""

import argparse
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
    """label: (H, W) int64 -> (H, W): each class's share of a cell of factor x factor pixels, enlarged bilinearly.

    What a net of that stride would say if every cell of its score were perfect. Void counts as background.
    """
    height, width = label.shape
    label = torch.where(label == IGNORE_LABEL, 0, label)
    present = label.unique()  # the others' shares are zero everywhere
    share = (label == present[:, None, None])[None].float()
    share = F.avg_pool2d(F.pad(share, (0, -width % factor, 0, -height % factor)), factor)
    enlarged = F.interpolate(share, scale_factor=factor, mode="bilinear")[0, :, :height, :width]
    return present[enlarged.argmax(0)]


def read(folder: Path) -> list[Tensor]:
    """The (H, W) int64 labels of a folder."""
    return [torch.from_numpy(np.array(Image.open(file))).long() for file in sorted(folder.glob("*.png"))]


def mean_iu(labels: list[Tensor], factor: int) -> float:
    """Of the coarsened labels against the true ones, 0..1."""
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
