"""`fcn import`: an export becomes a folder of docs/own-data.md, whole or not at all."""

import csv
import hashlib
import io
import os
import posixpath
import shlex
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.config.data import CLASS_NAME, is_class_name
from pipeline.errors import DatasetError, UserError
from pipeline.files import and_more, counted, lock, replace_folder
from pipeline.importing import formats, names, splits
from pipeline.importing.export import SHARES, Item, Options, Settings
from pipeline.importing.lists import divides, make_lists
from pipeline.importing.making import VERSION, Maker, lasting, make_all, refuse_faults, write_file
from pipeline.importing.source import Source, open_source
from pipeline.importing.work_folder import JOURNAL, RECORD, as_text, is_debris, prepare, remove_strangers


@dataclass
class Summary:
    """The result of an import, for the user.

    format, evidence: the format and the files that show it.
    decisions: sentences.
    classes: final names.
    num_pixels: of each class, and of void at the end, in all labels.
    lists: photos of each list.
    notes: photos of each conversion.
    left_out: files that were not used, with the reason.
    num_passed_over: files that systems and tools leave behind.
    num_kept: photos that an earlier run had finished.
    """

    format: str
    evidence: str
    decisions: list[str]
    classes: list[str]
    num_pixels: list[int]
    lists: dict[str, int]
    notes: dict[str, int]
    left_out: dict[str, str]
    num_passed_over: int
    num_photos: int
    num_kept: int
    warnings: list[str] = field(default_factory=list)


def import_data(path: Path, dest: Path, settings: Settings) -> Summary:
    """Import an export to the folder `dest`.

    The work is done in a hidden folder beside `dest` and renamed at the end. A stopped run goes on there. After an
    error nothing is left. If `dest` is an earlier import, photos whose files are unchanged are kept.
    """
    dest = Path(os.path.abspath(dest))  # without '..', which has no name
    work = dest.with_name(f".{dest.name}.importing")
    unpacked = dest.with_name(f".{dest.name}.source")
    lock_file = dest.with_name(f".{dest.name}.lock")
    _check_places(path, dest)
    try:
        dest.parent.mkdir(parents=True, exist_ok=True)
        with lock(lock_file, f"imports to {dest}", patience_s=0):
            try:
                with open_source(path, unpacked) as source:
                    summary = _import(source, dest, work, settings)
            except UserError:
                shutil.rmtree(work, ignore_errors=True)
                raise
            finally:
                lock_file.unlink(missing_ok=True)
    except OSError as error:
        raise DatasetError(f"{dest}: cannot be written: {error.strerror or error}") from error
    return summary


def _check_places(path: Path, dest: Path) -> None:
    if path.is_dir():
        source = path.resolve()
        if dest.resolve().is_relative_to(source) or source.is_relative_to(dest.resolve()):
            raise DatasetError(f"{dest}: lies in {path}, or the other way round; choose a folder beside it")
    if (
        dest.is_symlink()
        or dest.is_file()
        or (dest.is_dir() and not (dest / RECORD).is_file() and not all(map(is_debris, dest.iterdir())))
    ):
        raise DatasetError(
            f"{dest}: exists and was not written by an earlier import; choose a new folder, or remove it"
        )


def _import(source: Source, dest: Path, work: Path, settings: Settings) -> Summary:
    name, evidence, chosen = formats.recognise(source, settings.format)
    print(f"{source.name}: {name} ({evidence})", flush=True)
    options = Options(settings.class_map, settings.workers)
    export = chosen.read(source, options)
    if not export.items:
        raise DatasetError(f"{source.name}: {name}, but no photo with a label; {_reasons(export.left_out)}")
    if not export.has_mask_values:
        settings.class_map.refuse_values(export.classes, name)
    classes, table = settings.class_map.apply(export.classes, export.background)
    if len(classes) < 2:
        raise DatasetError(
            f"{source.name}: one class, {classes[0]}; a net needs two: check the masks, or --map"
        )
    for decision in export.decisions:
        print(f"  {decision}", flush=True)
    items = sorted(export.items, key=lambda item: item.photo)
    repeated = [photo for photo, num in Counter(item.photo for item in items).items() if num > 1]
    if repeated:
        raise DatasetError(
            f"{source.name}: {and_more(repeated)}: annotated more than once; keep one annotation of each"
        )
    plan_digests = dict(source.digests)
    source.forget()
    keys = names.keys(item.photo for item in items)
    earlier = prepare(dest, work)
    maker = Maker(source, work, table, settings.value_range, len(classes), compares=divides(items, settings))
    records = make_all(maker, items, keys, earlier, work / JOURNAL, settings.workers)
    refuse_faults(records, source.name)
    members = [
        splits.Member(
            record["key"], record["source"], frozenset(v for v, n in enumerate(record["pixels"][:-1]) if n)
        )
        for record in records
    ]
    thumbnails = {record["key"]: record["thumbnail"] for record in records}
    lists, sentence = make_lists(items, members, settings, thumbnails)
    print(f"  {sentence}", flush=True)
    digests = dict(plan_digests)
    for record in records:
        digests |= record["read"]
    unused = {path: _reason(path) for path in source.files if path not in digests}
    left_out = dict(sorted((unused | source.left_out | dict(export.left_out)).items()))
    pixels = [sum(record["pixels"][value] for record in records) for value in range(len(classes) + 1)]
    notes = Counter(note for record in records for note in record["notes"])
    decisions = [*export.decisions, sentence]
    list_digests = _write_lists(work, classes, lists, records)
    used = {
        "version": VERSION,
        "source": source.name,
        "archive_sha256": source.archive_sha256,
        "format": name,
        "evidence": evidence,
        "decisions": decisions,
        "classes": classes,
        "map": [list(pair) for pair in settings.class_map.pairs],
        "range": settings.value_range,
        "pixels": dict(zip([*classes, "void"], pixels, strict=True)),
        "lists": {key: len(ids) for key, ids in lists.items()},
        "written": list_digests,
        "conversions": dict(sorted(notes.items())),
        "passed_over": source.num_passed_over,
        "left_out": left_out,
        "files": dict(sorted(digests.items())),
        "photos": [lasting(record) for record in records],
    }
    write_file(work / RECORD, as_text(used).encode())
    (work / JOURNAL).unlink(missing_ok=True)
    remove_strangers(work, records, list_digests)
    os.sync()
    replace_folder(work, dest)
    return Summary(
        name,
        evidence,
        decisions,
        classes,
        pixels,
        {key: len(ids) for key, ids in lists.items()},
        dict(sorted(notes.items())),
        left_out,
        source.num_passed_over,
        len(records),
        sum(record["kept"] for record in records),
        _warnings(classes, pixels, records, lists, _another_division(items, settings)),
    )


def _reason(path: str) -> str:
    """Return why a file that no format mentions is left out."""
    if path.lower().endswith(
        (".heic", ".heif", ".avif", ".jp2", ".jxl", ".dng", ".cr2", ".nef", ".arw", ".gif")
    ):
        return "a picture of a format that is not read; convert it to PNG or JPEG"
    return "not part of the format"


def _reasons(left_out: Mapping[str, str]) -> str:
    if not left_out:
        return "it is empty"
    counts = Counter(left_out.values())
    return "left out: " + ", ".join(
        f"{counted(num, 'file')} ({reason})" for reason, num in counts.most_common(4)
    )


def _write_lists(
    work: Path, classes: Sequence[str], lists: Mapping[str, Sequence[str]], records: Sequence[dict[str, Any]]
) -> dict[str, str]:
    """Write classes.txt, names.csv and splits/; return their sha256 by path."""
    if wrong := [name for name in classes if not is_class_name(name)]:
        raise DatasetError(f"class {wrong[0]!r}: {CLASS_NAME}; rename it by --map")
    table = io.StringIO()
    rows = csv.writer(table, lineterminator="\n")
    rows.writerow(("key", "source"))
    rows.writerows((record["key"], record["source"]) for record in records)
    texts = {"classes.txt": "".join(f"{name}\n" for name in classes), "names.csv": table.getvalue()}
    texts |= {f"splits/{name}.txt": "".join(f"{key}\n" for key in keys) for name, keys in lists.items()}
    for name, text in texts.items():
        write_file(work / name, text.encode())
    return {name: hashlib.sha256(text.encode()).hexdigest() for name, text in texts.items()}


def _another_division(items: Sequence[Item], settings: Settings) -> str:
    """Return the option that divides the photos otherwise, "" if there is none but other lists."""
    unlisted = [item for item in items if not item.splits]
    if not divides(items, settings):
        is_whole = {"train", "val"} <= {split for item in items for split in item.splits}
        return "" if is_whole else f"divide all photos by --split {SHARES}"
    folders = {posixpath.dirname(item.photo) for item in unlisted}
    is_by_folder = settings.group is None and len(folders) > 1
    return "photos of one folder stay together unless you give --group '(.*)'" if is_by_folder else ""


def _warnings(
    classes: Sequence[str],
    pixels: Sequence[int],
    records: Sequence[dict[str, Any]],
    lists: Mapping[str, Sequence[str]],
    another_division: str,
) -> list[str]:
    """Return warnings about classes that are not trained.

    another_division: the way to divide the photos otherwise.
    """
    by_key = {record["key"]: record["pixels"] for record in records}
    warnings = []
    for value, name in enumerate(classes):
        if not sum(by_key[key][value] for key in lists["train"]):
            where = "in no photo" if not pixels[value] else "in no training photo"
            quoted = f'"{name}"' if "," in name else name
            remedy = f"leave it out by --map {shlex.quote(f'{quoted}=void')}, or add photos of it"
            if pixels[value] and another_division:
                remedy = f"{another_division}; or {remedy}"
            warnings.append(f"class {name} is {where}; {remedy}")
    return warnings
