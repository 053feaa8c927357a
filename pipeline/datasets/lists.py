"""Lists of ids and the files they name, read from a data set's folder. Errors are DatasetErrors."""

import re
from collections import Counter
from pathlib import Path

from pipeline.errors import DatasetError
from pipeline.files import and_more
from pipeline.shards.images import MAX_BYTES, REMEDY

_KEY = re.compile(r"[A-Za-z0-9_-]+")  # a key names files and tar members: no '.', no '/', nothing to escape


def check_key(key: str, where: str) -> None:
    """Refuse an id that cannot name a file and a tar member on every system."""
    if not _KEY.fullmatch(key):
        raise DatasetError(f"{where}: malformed id {key!r}; expected letters, digits, '_' and '-' only")


def read_ids(folder: Path, split: str, name: str) -> list[str]:
    """Return the ids of folder/<split>.txt in the file's order; each stands on a line of its own, once."""
    path = folder / f"{split}.txt"
    if Path(split).name != split or not path.is_file():
        lists = ", ".join(sorted(file.stem for file in folder.glob("*.txt"))) or "none"
        raise DatasetError(f"{name}: no list {split!r} in {folder}; lists there: {lists}")
    ids = [line.rstrip(" \t") for line in read_lines(path, f"{name} {split}")]
    if not any(ids):
        raise DatasetError(f"{name} {split}: {path} lists no ids; {REMEDY}")
    for number, key in enumerate(ids, start=1):
        check_key(key, f"{name} {split}: {path}, line {number}")
    repeated = [key for key, count in Counter(ids).items() if count > 1]
    if repeated:
        raise DatasetError(f"{name} {split}: {path} lists more than once: {and_more(repeated)}; {REMEDY}")
    return ids


def read_lines(path: Path, where: str) -> list[str]:
    """Return the lines of a UTF-8 file, with or without a byte order mark, however they end."""
    try:
        return read_bytes(path, where).decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise DatasetError(f"{where}: {path} is not a text file: {error}; {REMEDY}") from error


def read_bytes(path: Path, where: str) -> bytes:
    """Return a whole file of at most MAX_BYTES bytes."""
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise DatasetError(f"{where}: {path} has {size} bytes, more than {MAX_BYTES}; {REMEDY}")
        return path.read_bytes()
    except FileNotFoundError as error:
        raise DatasetError(f"{where}: {path} is missing; {REMEDY}") from error
    except OSError as error:
        raise DatasetError(f"{where}: {path} cannot be read: {error.strerror}") from error
