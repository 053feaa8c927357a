"""Lists of ids and the files they name, read from a data set's folder. Errors are DatasetErrors."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from pipeline.datasets.names import is_key
from pipeline.errors import DatasetError
from pipeline.files import and_more
from pipeline.shards.images import MAX_BYTES, REMEDY


def check_key(key: str, where: str) -> None:
    """Refuse an id that cannot name a file and a tar member on every system."""
    if not is_key(key):
        ending = ", without ending" * (key.lower().endswith((".jpg", ".jpeg", ".png")))
        raise DatasetError(
            f"{where}: malformed id {key!r}; expected letters, digits, '_' and '-' only{ending}"
        )


def read_ids(folder: Path, split: str, name: str) -> list[str]:
    """Return the ids of folder/<split>.txt in the file's order; each stands on a line of its own, once.

    Blank lines are passed over.
    """
    path = folder / f"{split}.txt"
    if Path(split).name != split or not path.is_file():
        lists = ", ".join(sorted(file.stem for file in folder.glob("*.txt"))) or "none"
        raise DatasetError(f"{name}: no list {split!r} in {folder}; lists there: {lists}")
    ids = []
    for number, line in enumerate(read_lines(path, f"{name} {split}"), start=1):
        if key := line.strip():
            check_key(key, f"{name} {split}: {path}, line {number}")
            ids.append(key)
    if not ids:
        raise DatasetError(f"{name} {split}: {path} lists no ids; {REMEDY}")
    refuse_repeated(ids, f"{name} {split}: {path}", REMEDY)
    return ids


def refuse_repeated(ids: Sequence[str], where: str, remedy: str) -> None:
    repeated = [key for key, count in Counter(ids).items() if count > 1]
    if repeated:
        raise DatasetError(f"{where} lists more than once: {and_more(repeated)}; {remedy}")


def read_lines(path: Path, where: str) -> list[str]:
    """Return the lines of a UTF-8 file, with or without a byte order mark, however they end."""
    try:
        return read_bytes(path, where).decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise DatasetError(f"{where}: {path} is not a text file: {error}; {REMEDY}") from error


def read_bytes(path: Path, where: str, shown: str = "") -> bytes:
    """Return a whole file of at most MAX_BYTES bytes.

    shown: the file's name in messages, if it is another than the path.
    """
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise DatasetError(f"{where}: {shown or path} has {size} bytes, more than {MAX_BYTES}; {REMEDY}")
        return path.read_bytes()
    except FileNotFoundError as error:
        raise DatasetError(f"{where}: {shown or path} is missing; {REMEDY}") from error
    except OSError as error:
        raise DatasetError(f"{where}: {shown or path} cannot be read: {error.strerror}") from error
