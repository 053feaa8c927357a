"""`fcn submit`: predictions of a VOC list in the tar that VOC's evaluation server takes.

http://host.robots.ox.ac.uk/pascal/VOC/voc2012/htmldoc/: results/VOC2012/Segmentation/<competition>_<list>_cls/<id>.png
"""

import io
import sys
import tarfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO

from PIL import Image

from fcn.voc import CLASSES
from pipeline.datasets import voc
from pipeline.datasets.lists import read_bytes
from pipeline.errors import DatasetError, UserError
from pipeline.files import and_more, whole
from pipeline.models.predictor import Predictor
from pipeline.prediction.predict import LEGEND, legend_names, predict_photos
from pipeline.shards.labels import decode_label, voc_palette

# comp5: trained on VOC's images alone; comp6: on any images but those of the test set
COMPETITIONS = ("comp5", "comp6")
NUM_CLASSES = len(CLASSES)


def submit(source: Path, root: Path, split: str, dest: Path, *, competition: str, side: int | None) -> int:
    """Write a tar of a list's predictions; return how many it holds. The same PNGs give the same bytes.

    source: a folder of `fcn predict`, or a model file, which is then run on the list's images.
    root: the folder that holds JPEGImages and ImageSets.
    split: a list of ImageSets/Segmentation, such as "test".
    dest: the .tar to write.
    competition: "comp5" or "comp6".
    side: of the tiles of large photos, for a model; see Predictor.parts.

    Raises UserError, and writes nothing, unless VOC would score all of it; the message names ids and reasons.
    """
    if competition not in COMPETITIONS:
        raise UserError(f"unknown competition {competition!r}; known: {', '.join(COMPETITIONS)}")
    if dest.suffix != ".tar":
        raise UserError(f"{dest} is written as a tar; give a name that ends in .tar")
    keys = sorted(voc.LAYOUT.ids(root, split))
    predictor = None if source.is_dir() else Predictor.load(source)
    _require_classes(source, predictor.classes if predictor else legend_names(source / LEGEND))
    if predictor is None:
        pngs = read_predictions(source, root, keys)
    else:
        with TemporaryDirectory() as scratch:
            photos = [voc.LAYOUT.files(root, key)[0] for key in keys]
            if unreadable := predict_photos(predictor, photos, Path(scratch), side=side):
                raise DatasetError(
                    f"{len(unreadable)} of {len(keys)} images of {split} cannot be read: {and_more(unreadable)}"
                )
            pngs = read_predictions(Path(scratch), root, keys)
    with whole(dest) as file:
        write_tar(file, f"results/VOC2012/Segmentation/{competition}_{split}_cls", pngs)
    return len(pngs)


def _require_classes(source: Path, names: Sequence[str]) -> None:
    """Refuse a net that has a class of VOC under another index: VOC's server would score all of it as another class.

    Names that VOC does not have are printed. A folder without a legend of `fcn predict` is taken as it is.
    """
    ours = {name: index for index, name in enumerate(names)}
    if moved := [name for index, name in enumerate(CLASSES) if ours.get(name, index) != index]:
        raise UserError(
            f"{source} has VOC's classes in another order: {moved[0]} is class {ours[moved[0]]}, VOC's "
            f"{CLASSES.index(moved[0])} ({and_more(moved)}); submit the predictions of a net with VOC's order"
        )
    if others := [name for name in ours if name not in CLASSES]:
        print(
            f"warning: {source} has classes that VOC does not have: {and_more(others)}; VOC's server takes them for "
            "its own of the same index",
            file=sys.stderr,
        )


def read_predictions(folder: Path, root: Path, keys: Sequence[str]) -> dict[str, bytes]:
    """Return the PNG of each id.

    Raises UserError that names all ids whose PNG is missing or would not be scored, and PNGs of other ids.
    """
    faults: dict[str, list[str]] = defaultdict(list)
    names = {path.stem for path in folder.glob("*.png")}
    faults["no prediction"] = [key for key in keys if key not in names]
    faults["not in the list"] = sorted(names - set(keys))
    pngs = {key: read_bytes(folder / f"{key}.png", key) for key in keys if key in names}
    for key, png in pngs.items():
        if fault := _fault(png, voc.LAYOUT.files(root, key)[0]):
            faults[fault].append(key)
    reasons = [f"{fault}: {and_more(wrong)}" for fault, wrong in faults.items() if wrong]
    if reasons:
        raise UserError(
            f"{folder} cannot be submitted; {'; '.join(reasons)}. Run `fcn predict` on the list's images again"
        )
    return pngs


def _fault(png: bytes, photo: Path) -> str:
    """Return why VOC would not score this PNG for this photo, without naming them; "" if it would."""
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
    """Return (height, width) from the header alone."""
    try:
        with Image.open(photo, formats=["JPEG"]) as image:
            return image.height, image.width
    except OSError as error:
        raise DatasetError(f"its image is missing or damaged in {photo.parent}") from error


def write_tar(file: IO[bytes], folder: str, pngs: Mapping[str, bytes]) -> None:
    """Write folder/<id>.png of each PNG, in the order of ids, without times, owners or other traces of the machine."""
    with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for key in sorted(pngs):
            member = tarfile.TarInfo(f"{folder}/{key}.png")
            member.size = len(pngs[key])
            tar.addfile(member, io.BytesIO(pngs[key]))
