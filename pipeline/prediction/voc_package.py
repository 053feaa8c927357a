"""The package that VOC's evaluation server takes: palette PNGs of a list's images in a tar, checked before it appears.

http://host.robots.ox.ac.uk/pascal/VOC/voc2012/htmldoc/: results/VOC2012/Segmentation/<competition>_<list>_cls/<id>.png
"""

import io
import tarfile
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from PIL import Image

from pipeline.datasets import voc
from pipeline.datasets.lists import read_bytes
from pipeline.errors import DatasetError, UserError
from pipeline.files import and_more
from pipeline.prediction.predict import predict_photos, write_whole
from pipeline.shards.labels import decode_label, voc_palette

# comp5: trained on VOC's own images alone; comp6: on any others but the test set's
COMPETITIONS = ("comp5", "comp6")
NUM_CLASSES = 21


def submit(source: Path, root: Path, split: str, dest: Path, *, competition: str, side: int) -> int:
    """Writes the tar of a list's predictions to dest; returns how many there are. The same PNGs give the same bytes.

    source: a folder of `fcn predict`, or a model file, which is then run on the list's images.
    root: the folder that holds JPEGImages and ImageSets.   split: a list of ImageSets/Segmentation, such as "test".
    side: of tiles, for a model.   UserError that names ids and reasons, and no file, unless VOC would score all of it.
    """
    if competition not in COMPETITIONS:
        raise UserError(f"unknown competition {competition!r}; known: {', '.join(COMPETITIONS)}")
    if dest.suffix != ".tar":
        raise UserError(f"{dest} must end in .tar, which is what it will be")
    keys = sorted(voc.LAYOUT.ids(root, split))
    if not source.is_dir():
        with TemporaryDirectory() as folder:
            photos = [voc.LAYOUT.files(root, key)[0] for key in keys]
            if failed := predict_photos(source, photos, Path(folder), side=side):
                raise DatasetError(
                    f"{len(failed)} of {len(keys)} images of {split} cannot be read: {and_more(failed)}"
                )
            pngs = checked(Path(folder), root, keys)
    else:
        pngs = checked(source, root, keys)
    folder = f"results/VOC2012/Segmentation/{competition}_{split}_cls"
    write_whole(dest, lambda file: file.write(packed(folder, pngs)))
    return len(pngs)


def checked(folder: Path, root: Path, keys: Sequence[str]) -> dict[str, bytes]:
    """The PNG of each id; UserError that names all ids whose is missing or would not be scored, and ids too many."""
    faults: dict[str, list[str]] = defaultdict(list)
    there = {path.stem for path in folder.glob("*.png")}
    faults["no prediction"] = [key for key in keys if key not in there]
    faults["not in the list"] = sorted(there - set(keys))
    pngs = {key: read_bytes(folder / f"{key}.png", key) for key in keys if key in there}
    for key, png in pngs.items():
        if fault := _fault(png, voc.LAYOUT.files(root, key)[0]):
            faults[fault].append(key)
    said = "; ".join(f"{fault}: {and_more(wrong)}" for fault, wrong in faults.items() if wrong)
    if said:
        raise UserError(
            f"{folder} cannot be submitted; {said}. `fcn predict` of the list's images makes what can be"
        )
    return pngs


def _fault(png: bytes, photo: Path) -> str:
    """Why VOC would not score this PNG for this photo, in words that do not name them; "" if it would."""
    try:
        label = decode_label(png, "")
        with Image.open(io.BytesIO(png), formats=["PNG"]) as image:
            mode, palette = image.mode, image.getpalette("RGB") or []
        if mode != "P":
            return f"mode {mode}, expected P"
        if palette[: 3 * NUM_CLASSES] != voc_palette()[:NUM_CLASSES].flatten().tolist():
            return "not VOC's palette"
        if label.max() >= NUM_CLASSES:
            return f"index {label.max()}, expected 0..{NUM_CLASSES - 1}"
        if label.shape != _size(photo):
            return "not of its image's size"
    except DatasetError as error:
        return str(error).removeprefix(": ").partition(";")[0]
    return ""


def _size(photo: Path) -> tuple[int, int]:
    """(height, width), of its header alone."""
    try:
        with Image.open(photo, formats=["JPEG"]) as image:
            return image.height, image.width
    except OSError as error:
        raise DatasetError(f"its image is missing or damaged in {photo.parent}") from error


def packed(folder: str, pngs: dict[str, bytes]) -> bytes:
    """A tar of folder/<id>.png, in the order of ids, without times, owners or anything else of this machine."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for key in sorted(pngs):
            member = tarfile.TarInfo(f"{folder}/{key}.png")
            member.size = len(pngs[key])
            tar.addfile(member, io.BytesIO(pngs[key]))
    return file.getvalue()
