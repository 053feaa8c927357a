"""`fcn import`: an export becomes a folder of docs/own-data.md, whole or not at all."""

import contextlib
import csv
import hashlib
import io
import json
import os
import shutil
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import DatasetError, UserError
from pipeline.files import and_more, lock, replace_folder, sha256_file
from pipeline.importing import formats, names, splits
from pipeline.importing.classes import ClassMap
from pipeline.importing.export import Item, Options
from pipeline.importing.making import VERSION, Maker, lasting, make_all, refuse_faults, write_file
from pipeline.importing.source import Source, open_source
from pipeline.inspection import near_duplicates

RECORD = "import.json"
JOURNAL = "journal.jsonl"


@dataclass(frozen=True)
class Settings:
    """The options of `fcn import`.

    format: --format; None: recognised.
    class_map: --map.
    shares: --split.
    seed: --seed.
    group: --group.
    folds: --folds; 0: none.
    value_range: --range.
    workers: --workers.
    """

    format: str | None = None
    class_map: ClassMap = field(default_factory=ClassMap)
    shares: str = "0.8/0.2"
    seed: int = 0
    group: str | None = None
    folds: int = 0
    value_range: tuple[float, float] | None = None
    workers: int = 1


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
        or (dest.is_dir() and any(dest.iterdir()) and not (dest / RECORD).is_file())
    ):
        raise DatasetError(f"{dest}: exists and is no earlier import; choose a new folder, or remove it")


def _import(source: Source, dest: Path, work: Path, settings: Settings) -> Summary:
    name, evidence, chosen = formats.recognise(source, settings.format)
    print(f"{source.name}: {name} ({evidence})", flush=True)
    options = Options(settings.class_map, settings.workers)
    export = chosen.read(source, options)
    if not export.items:
        raise DatasetError(f"{source.name}: {name}, but no photo with a label; {_reasons(export.left_out)}")
    if not export.has_mask_values:
        settings.class_map.refuse_values(export.classes, name)
    classes, table = settings.class_map.apply(export.classes)
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
    earlier = _prepare(dest, work)
    maker = Maker(source, work, table, settings.value_range, len(classes))
    records = make_all(maker, items, keys, earlier, work / JOURNAL, settings.workers)
    refuse_faults(records, source.name)
    members = [
        splits.Member(
            record["key"], record["source"], frozenset(v for v, n in enumerate(record["pixels"][:-1]) if n)
        )
        for record in records
    ]
    lists, sentence = make_lists(items, members, settings, work)
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
    write_file(work / RECORD, _as_text(used).encode())
    (work / JOURNAL).unlink(missing_ok=True)
    _remove_strangers(work, records, list_digests)
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
        _warnings(classes, pixels, records, lists),
    )


def _as_text(values: Mapping[str, Any]) -> str:
    """Return JSON with a line for each value, file and photo; json's own indent is slow."""
    lines = []
    for key, value in values.items():
        text = json.dumps(value, ensure_ascii=False)
        if key == "photos":
            text = "[\n  " + ",\n  ".join(json.dumps(photo, ensure_ascii=False) for photo in value) + "\n ]"
        elif key in ("files", "left_out") and value:
            pairs = (
                f"{json.dumps(k, ensure_ascii=False)}: {json.dumps(v, ensure_ascii=False)}"
                for k, v in value.items()
            )
            text = "{\n  " + ",\n  ".join(pairs) + "\n }"
        lines.append(f' "{key}": {text}')
    return "{\n" + ",\n".join(lines) + "\n}\n"


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
    return "left out: " + ", ".join(f"{num} files ({reason})" for reason, num in counts.most_common(4))


def _prepare(dest: Path, work: Path) -> dict[str, dict[str, Any]]:
    """Make the working folder; return the records of photos that are finished there, by key.

    Files of an earlier import in `dest` are linked to it. Refuse an import that was changed since.
    """
    if (dest / RECORD).is_file():
        earlier = _earlier_import(dest)
        if not work.is_dir():
            _link(dest, work, earlier)
    for folder in ("images", "masks", "splits"):
        (work / folder).mkdir(parents=True, exist_ok=True)
    records = {}
    if (work / JOURNAL).is_file():
        for line in (work / JOURNAL).read_text("utf-8").splitlines():
            with contextlib.suppress(ValueError, KeyError, TypeError):  # a line cut off by a kill
                record = json.loads(line)
                records[record["key"]] = record
    return records


def _earlier_import(dest: Path) -> list[dict[str, Any]]:
    """Return the records of the photos in `dest`; refuse an import to which files were added or changed since."""
    try:
        used = json.loads((dest / RECORD).read_text("utf-8"))
        written = {name: digest for record in used["photos"] for name, digest in record["written"].items()}
        written |= used["written"]
        records = list(used["photos"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DatasetError(f"{dest / RECORD}: damaged ({error}); remove {dest} and import again") from error
    found = {path.relative_to(dest).as_posix() for path in dest.rglob("*") if not path.is_dir()}
    strange = sorted(found - {RECORD} - written.keys())
    changed = sorted(name for name in written.keys() & found if sha256_file(dest / name) != written[name])
    if strange or changed:
        raise DatasetError(
            f"{dest}: {and_more(strange + changed)}: added or changed since the import; mend the source instead, or "
            "import into a new folder"
        )
    return records


def _link(dest: Path, work: Path, records: Sequence[dict[str, Any]]) -> None:
    """Give the working folder the files of an earlier import, without a copy where the disk has links."""
    lines = []
    for record in records:
        for name in record["written"]:
            if not (dest / name).is_file():
                continue
            (work / name).parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(dest / name, work / name)
            except OSError:
                shutil.copyfile(dest / name, work / name)
        lines.append(json.dumps(record) + "\n")
    work.mkdir(exist_ok=True)
    write_file(work / JOURNAL, "".join(lines).encode())


def make_lists(
    items: Sequence[Item], members: Sequence[splits.Member], settings: Settings, work: Path
) -> tuple[dict[str, list[str]], str]:
    """Return the keys of each list in splits/, and a sentence that states the rule.

    work: the folder with images/, whose near duplicates stay in one list.
    """
    by_source = {member.source: member for member in members}
    given: dict[str, list[str]] = defaultdict(list)
    for item in items:
        for split in item.splits:
            given[split].append(by_source[item.photo].key)
    lists = {name: sorted(keys) for name, keys in given.items()}
    num_unlisted = sum(not item.splits for item in items)
    sentence = "splits: the export's own" + (
        f"; {num_unlisted} photos are in no list" if num_unlisted else ""
    )
    if not (lists.get("train") and lists.get("val")):
        taken = {key for name, keys in lists.items() if name not in ("train", "val") for key in keys}
        pool = [member for member in members if member.key not in taken]
        shares = splits.ratios(settings.shares)
        if not pool:
            raise DatasetError("the export has a test split alone; give it photos for training")
        groups, rule = _groups(pool, settings, work)
        parts = splits.assign(pool, shares, groups, settings.seed)
        named = dict(zip(splits.NAMES, parts, strict=False))
        if "test" in named and "test" in lists:
            raise DatasetError("--split: the export has a test split; give shares of train/val alone")
        kept = f"{', '.join(sorted(set(lists) - {'train', 'val'}))} kept, the rest " if taken else ""
        lists = {name: keys for name, keys in lists.items() if name not in ("train", "val")} | named
        sentence = (
            f"splits: {kept}divided {settings.shares} by seed {settings.seed}, stratified by class; {rule}"
        )
    if settings.folds:
        held_back = set(lists.get("test", ()))
        pool = [member for member in members if member.key not in held_back]
        groups, rule = _groups(pool, settings, work)
        parts = splits.assign(pool, [1 / settings.folds] * settings.folds, groups, settings.seed)
        everything = {member.key for member in pool}
        for number, part in enumerate(parts, start=1):
            lists[f"fold{number}-train"] = sorted(everything - set(part))
            lists[f"fold{number}-val"] = part
        sentence += f"; {settings.folds} folds; {rule}"
    return dict(sorted(lists.items())), sentence


def _groups(pool: Sequence[splits.Member], settings: Settings, work: Path) -> tuple[dict[str, str], str]:
    """Return each photo's group by key, near duplicates in one group, and a sentence that states the rule."""
    groups, rule = splits.group_of(pool, settings.group)
    photos = {path.stem: path for path in (work / "images").iterdir()}
    keys = [member.key for member in pool]
    thumbnails = np.stack([near_duplicates.thumbnail(photos[key].read_bytes()) for key in keys])
    duplicates = [
        [keys[index] for index in indices]
        for indices in near_duplicates.groups(thumbnails)
        if len(indices) > 1
    ]
    if duplicates:
        num_photos = sum(map(len, duplicates))
        rule += f"; {num_photos} near duplicates in {len(duplicates)} groups stay together"
    return splits.joined(groups, duplicates), rule


def _write_lists(
    work: Path, classes: Sequence[str], lists: Mapping[str, Sequence[str]], records: Sequence[dict[str, Any]]
) -> dict[str, str]:
    """Write classes.txt, names.csv and splits/; return their sha256 by path."""
    wrong = [name for name in classes if "\n" in name or "\r" in name or name != name.strip() or not name]
    if wrong:
        raise DatasetError(
            f"class {wrong[0]!r}: a name has a line break, outer spaces or no letters; rename it by --map"
        )
    table = io.StringIO()
    rows = csv.writer(table, lineterminator="\n")
    rows.writerow(("key", "source"))
    rows.writerows((record["key"], record["source"]) for record in records)
    texts = {"classes.txt": "".join(f"{name}\n" for name in classes), "names.csv": table.getvalue()}
    texts |= {f"splits/{name}.txt": "".join(f"{key}\n" for key in keys) for name, keys in lists.items()}
    for name, text in texts.items():
        write_file(work / name, text.encode())
    return {name: hashlib.sha256(text.encode()).hexdigest() for name, text in texts.items()}


def _remove_strangers(work: Path, records: Sequence[dict[str, Any]], list_names: Iterable[str]) -> None:
    """Remove what an earlier run with another source or other options had made."""
    wanted = {name for record in records for name in record["written"]}
    wanted |= {RECORD, *list_names}
    for path in work.rglob("*"):
        if path.is_file() and path.relative_to(work).as_posix() not in wanted:
            path.unlink()


def _warnings(
    classes: Sequence[str],
    pixels: Sequence[int],
    records: Sequence[dict[str, Any]],
    lists: Mapping[str, Sequence[str]],
) -> list[str]:
    by_key = {record["key"]: record["pixels"] for record in records}
    warnings = []
    for value, name in enumerate(classes):
        if not sum(by_key[key][value] for key in lists["train"]):
            where = "in no photo" if not pixels[value] else "in no training photo"
            warnings.append(
                f"class {name} is {where}; leave it out by --map '{name}=void', or add photos of it"
            )
    return warnings
