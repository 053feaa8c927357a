"""PASCAL VOC segmentation in its published layout: JPEGImages, SegmentationClass, ImageSets/Segmentation.

http://host.robots.ox.ac.uk/pascal/VOC/voc2012/. Labels are palette PNGs: an index is a class, and 255 the void border
around each object. A user's own list beside the published ones is one more split.
"""

from pathlib import Path

from pipeline.datasets.layout import Layout
from pipeline.shards.labels import decode_label

LAYOUT = Layout(
    "voc",
    lists="ImageSets/Segmentation",
    images="JPEGImages",
    labels="SegmentationClass",
    suffix=".png",
    decode=decode_label,
)

# By year, as the development kits tabulate them; trainaug and seg11valid are derived, see splits.py
PUBLISHED_COUNTS = {
    "voc2007/train": 209,
    "voc2007/val": 213,
    "voc2007/trainval": 422,
    "voc2007/test": 210,
    "voc2011/train": 1112,
    "voc2011/val": 1111,
    "voc2011/trainval": 2223,
    "voc2011/seg11valid": 736,
    "voc2012/train": 1464,
    "voc2012/val": 1449,
    "voc2012/trainval": 2913,
    "voc2012/test": 1456,
    "voc2012/trainaug": 10582,
    "voc2012/seg11valid": 736,
}


def root(raw: Path, year: int = 2012) -> Path:
    """Return the folder of JPEGImages where the year's archive unpacks it, whether it exists or not."""
    folder = raw / "VOCdevkit" / f"VOC{year}"
    below_trainval = raw / "TrainVal" / folder.relative_to(raw)  # as VOCtrainval_25-May-2011.tar unpacks
    return below_trainval if below_trainval.is_dir() and not folder.is_dir() else folder
