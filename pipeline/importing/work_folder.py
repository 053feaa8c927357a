"""The folder that an import works in: it goes on where a stopped one was, and keeps what an earlier one made."""

import contextlib
import json
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.errors import DatasetError
from pipeline.files import and_more, sha256_file
from pipeline.importing.making import write_file

RECORD = "import.json"
JOURNAL = "journal.jsonl"


def is_debris(path: Path) -> bool:
    """Return whether a file is what a file manager leaves in each folder that it shows, which may be lost.

    Other hidden files are the user's here: the folder may be a repository with .git.
    """
    is_named_so = path.name.lower() in (".ds_store", "thumbs.db", "desktop.ini") or path.name.startswith("._")
    return is_named_so and path.is_file()


def prepare(dest: Path, work: Path) -> dict[str, dict[str, Any]]:
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
    found = {
        path.relative_to(dest).as_posix()
        for path in dest.rglob("*")
        if not path.is_dir() and not is_debris(path)
    }
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


def remove_strangers(work: Path, records: Sequence[dict[str, Any]], list_names: Iterable[str]) -> None:
    """Remove what an earlier run with another source or other options had made."""
    wanted = {name for record in records for name in record["written"]}
    wanted |= {RECORD, *list_names}
    for path in work.rglob("*"):
        if path.is_file() and path.relative_to(work).as_posix() not in wanted:
            path.unlink()


def as_text(values: Mapping[str, Any]) -> str:
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
