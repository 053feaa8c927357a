"""PASCAL VOC segmentation in its published layout: JPEGImages, SegmentationClass, ImageSets/Segmentation.

http://host.robots.ox.ac.uk/pascal/VOC/voc2012/. Labels are palette PNGs whose indices are the classes and
255 the void border around each object. A list of your own beside the published ones is one more split.
"""

from collections.abc import Iterator
from pathlib import Path

from pipeline.datasets import Sample
from pipeline.datasets.files import (
    check_key,
    check_label,
    decode_label,
    jpeg_size,
    read_bytes,
    read_ids,
    require_folder,
)

# By year; seg11valid is the paper's: VOC2011's segmentation val without SBD's train, all of it in VOC2012's val
PUBLISHED_COUNTS = {
    "voc2012/train": 1464,
    "voc2012/val": 1449,
    "voc2012/test": 1456,
    "voc2012/seg11valid": 736,
    "voc2011/seg11valid": 736,
}


def root(raw: Path, year: int = 2012) -> Path:
    """The folder that holds JPEGImages, where the archive of that year unpacks it; not checked to exist."""
    folder = raw / "VOCdevkit" / f"VOC{year}"
    quirk = raw / "TrainVal" / folder.relative_to(raw)  # so does VOCtrainval_25-May-2011.tar
    return quirk if quirk.is_dir() and not folder.is_dir() else folder


def ids(root: Path, split: str) -> list[str]:
    """The ids of ImageSets/Segmentation/<split>.txt, in its order."""
    require_folder(root, "voc")
    return read_ids(root / "ImageSets" / "Segmentation", split, "voc")


def files(root: Path, key: str) -> tuple[Path, Path]:
    """Where an id's image and label lie; not checked to exist."""
    return root / "JPEGImages" / f"{key}.jpg", root / "SegmentationClass" / f"{key}.png"


def sample(root: Path, key: str, num_classes: int) -> Sample:
    """One image and its label, both decoded in full and found to fit each other; DatasetError if not."""
    require_folder(root, "voc")
    check_key(key, "voc")
    image, mask = files(root, key)
    jpeg = read_bytes(image, f"voc {key}")
    size = jpeg_size(jpeg, f"voc {key}: {image}")
    label = decode_label(read_bytes(mask, f"voc {key}"), f"voc {key}: {mask}")
    check_label(label, size, num_classes, f"voc {key}: {mask}")
    return Sample(key, jpeg, label)


def samples(root: Path, split: str, num_classes: int) -> Iterator[Sample]:
    """Every sample of a split, in the list's order; the list is checked at once, each sample on its turn."""
    return (sample(root, key, num_classes) for key in ids(root, split))
