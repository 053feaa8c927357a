"""The best mean IU a net of a coarse stride could reach: labels shrunk and enlarged (PAMI, appendix A).

    python -m bench.upper_bound FOLDER            # FOLDER: label images of PASCAL VOC seg11valid, palette PNGs

Published (arXiv v2, appendix A): 128: 50.9, 64: 73.3, 32: 86.1, 16: 92.8, 8: 96.4, 4: 98.5.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fcn.metrics import ConfusionMatrix

PUBLISHED = {128: 50.9, 64: 73.3, 32: 86.1, 16: 92.8, 8: 96.4, 4: 98.5}
NUM_CLASSES = 21


def coarsened(label: Tensor, factor: int) -> Tensor:
    """label: (H, W) uint8 -> the same size, each cell of factor x factor pixels one value: its middle pixel's."""
    height, width = label.shape
    rows = (torch.arange(height) // factor * factor + factor // 2).clamp(max=height - 1)
    columns = (torch.arange(width) // factor * factor + factor // 2).clamp(max=width - 1)
    return label[rows][:, columns]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    files = sorted(parser.parse_args().folder.glob("*.png"))
    labels = [torch.from_numpy(np.array(Image.open(file))) for file in files]
    print(f"{len(labels)} labels")
    for factor, published in PUBLISHED.items():
        confusion = ConfusionMatrix(NUM_CLASSES)
        for label in labels:
            prediction = coarsened(label, factor)
            confusion.update(torch.where(prediction == 255, 0, prediction), label)
        print(f"{factor:4}  {100 * confusion.scores().mean_iu:.1f}  published {published}", flush=True)


if __name__ == "__main__":
    main()
