"""The files of one photo: made in a worker process, recorded in a journal, and kept if nothing changed since."""

import hashlib
import json
import pickle
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import DatasetError, UserError
from pipeline.files import sha256_file
from pipeline.importing.export import Item, Label
from pipeline.importing.masks import value_counts
from pipeline.importing.photos import Photo, finished, read_photo, turned_label
from pipeline.importing.source import Source
from pipeline.importing.workers import mapped
from pipeline.inspection import same_picture
from pipeline.progress import bar
from pipeline.shards.labels import encode_label

VERSION = 1  # of what an import writes for the same input; a change makes every photo again
REMEDY_EXIF = (
    "if the mask fits the photo as viewers show it, turn its pixels (exiftran -ai, or open and save it); if it fits "
    "the stored pixels, remove the tag (exiftool -Orientation= FILE)"
)
_TRANSIENT = ("kept", "unknown", "error", "thumbnail")  # entries of a record that are not written


def lasting(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the entries of a record that are written."""
    return {key: value for key, value in record.items() if key not in _TRANSIENT}


@dataclass
class Maker:
    """Makes the files of one photo; runs in a worker process.

    source: the export's files.
    work: the folder that is filled.
    table: (256,) uint8, label values of the export -> final ones.
    value_range: --range.
    num_classes: final ones.
    compares: whether photos will be compared, for which records have a thumbnail.
    """

    source: Source
    work: Path
    table: NDArray[np.uint8]
    value_range: tuple[float, float] | None
    num_classes: int
    compares: bool

    def make(self, job: tuple[Item, str, dict[str, Any] | None]) -> dict[str, Any]:
        """Return the record of a photo; its "error" is set if it cannot be used."""
        item, key, earlier = job
        identity = self._identity(item)
        if earlier and earlier.get("item") == identity and (kept := self._finished_photo(earlier, item)):
            small = same_picture.thumbnail(kept.read_bytes()) if self.compares else None
            return earlier | {"kept": True, "unknown": {}, "error": None, "thumbnail": small}
        self.source.digests.clear()
        record: dict[str, Any] = {"key": key, "source": item.photo, "item": identity, "kept": False}
        try:
            result = self._make(item, key)
        except DatasetError as error:
            return record | {
                "error": str(error),
                "unknown": {},
                "notes": [],
                "pixels": [],
                "read": {},
                "written": {},
            }
        return record | {"error": None, "read": dict(sorted(self.source.digests.items()))} | result

    def _identity(self, item: Item) -> str:
        parts = (VERSION, item, self.table.tobytes(), self.value_range, self.num_classes)
        return hashlib.sha256(pickle.dumps(parts)).hexdigest()

    def _finished_photo(self, record: dict[str, Any], item: Item) -> Path | None:
        """Return the file in images/ of a record whose files are unchanged, else None."""
        try:
            is_whole = record["source"] == item.photo and all(
                sha256_file(folder / name) == digest
                for folder, files in ((self.source.root, record["read"]), (self.work, record["written"]))
                for name, digest in files.items()
            )
            photos = [name for name in record["written"] if name.startswith("images/")]
        except (OSError, KeyError):
            return None
        return self.work / photos[0] if is_whole and photos else None

    def _make(self, item: Item, key: str) -> dict[str, Any]:
        data = item.embedded(self.source) if item.embedded else self.source.read(item.photo)
        photo = read_photo(data, item.photo)
        label = item.label(self.source, photo.upright_size)
        turn = photo.orientation != 1
        turn_label = self._is_to_be_turned(label, photo, item)
        if label.unknown:
            num_pixels = photo.size[0] * photo.size[1]
            return {"unknown": dict(label.unknown), "notes": [], "pixels": [num_pixels], "written": {}}
        image, suffix, notes = finished(photo, turn=turn, value_range=self.value_range, where=item.photo)
        pixels = [0] * 256
        is_final = True
        counts = label.counts or value_counts(label.values_of(photo.upright_size))
        for value, num in counts.items():
            pixels[self.table[value]] += num
            is_final = is_final and value == self.table[value]
        if is_final and label.png and not turn:
            mask = label.png
        else:
            values = label.values_of(photo.upright_size)
            values = turned_label(values, photo.orientation) if turn_label else values
            mask = encode_label(values if is_final else self.table[values])
        small = None
        if self.compares:
            is_kept = image is data
            small = same_picture.squeezed(photo.image) if is_kept else same_picture.thumbnail(image)
        kept_bytes = {} if item.embedded else {id(data): self.source.digests[item.photo]}
        files = {f"images/{key}{suffix}": image, f"masks/{key}.png": mask}
        for name, content in files.items():
            write_file(self.work / name, content)
        return {
            "written": {
                name: kept_bytes.get(id(content)) or hashlib.sha256(content).hexdigest()
                for name, content in files.items()
            },
            "pixels": [*pixels[: self.num_classes], pixels[255]],
            "notes": notes,
            "unknown": {},
            "thumbnail": small,
        }

    def _is_to_be_turned(self, label: Label, photo: Photo, item: Item) -> bool:
        """Return whether EXIF turns the label too; refuse one whose size shows that it belongs to another photo."""
        stored, upright = photo.size, photo.upright_size
        size = label.shape or upright
        if size not in (stored, upright):
            raise DatasetError(
                f"{item.photo}: the photo is {upright}, its mask {size} (height, width); it may be the mask of another "
                "photo, or one of them was resized: export it again"
            )
        if photo.orientation == 1 or label.shape is None:
            return False
        is_upright = item.is_upright if stored == upright else size == upright
        if is_upright is None:
            raise DatasetError(
                f"{item.photo}: EXIF orientation {photo.orientation}, and its mask fits turned and not; {REMEDY_EXIF}"
            )
        return not is_upright


def make_all(
    maker: Maker,
    items: Sequence[Item],
    keys: Mapping[str, str],
    earlier: Mapping[str, dict[str, Any]],
    journal: Path,
    workers: int,
) -> list[dict[str, Any]]:
    """Make the files of all photos; return their records in the order of the items.

    keys: of the photos, by their path.
    earlier: records of photos that may be finished, by key.
    journal: a file to which each record is added as a line of JSON.
    """
    records = []
    jobs: Iterator[Any] = ((item, keys[item.photo], earlier.get(keys[item.photo])) for item in items)
    with (
        mapped(maker.make, workers) as run,
        journal.open("a", encoding="utf-8") as log,
        bar(len(items), "import", unit="photo") as progress,
    ):
        for record in run(jobs):
            records.append(record)
            if not record["error"] and not record["unknown"] and not record["kept"]:
                log.write(json.dumps(lasting(record)) + "\n")
                log.flush()
            progress.update()
    return records


def refuse_faults(records: Sequence[dict[str, Any]], name: str) -> None:
    """Raise one error about all photos that cannot be used, and values and colours without a class."""
    errors = [record["error"] for record in records if record["error"]]
    if errors:
        more = f"\n  and {len(errors) - 8} more" if len(errors) > 8 else ""
        head = f"{name}: {len(errors)} photos cannot be imported:\n  " if len(errors) > 1 else ""
        raise DatasetError(head + "\n  ".join(errors[:8]) + more)
    unknown = Counter[str]()
    first: dict[str, str] = {}
    total = 0
    for record in records:
        total += sum(record["pixels"])
        for value, num in record["unknown"].items():
            unknown[value] += num
            first.setdefault(value, record["source"])
    if unknown:
        shares = ", ".join(
            f"{value} ({num / total:.2%} of the pixels, first in the mask of {first[value]})"
            for value, num in unknown.most_common(6)
        )
        more = f" and {len(unknown) - 6} more" if len(unknown) > 6 else ""
        pairs = ",".join(f"{value}=NAME" for value, _ in unknown.most_common(6))
        option = "--map=" if pairs.startswith("-") else "--map "  # else a value below 0 looks like an option
        raise DatasetError(
            f"{name}: masks hold values or colours without a class: {shares}{more}. Give them a class, or void: "
            f"{option}'{pairs}'"
        )


def write_file(path: Path, content: bytes) -> None:
    """Write a file of the working folder. A file that is there is replaced, because it may be a link to a kept one."""
    try:
        path.unlink(missing_ok=True)
        path.write_bytes(content)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}") from error
