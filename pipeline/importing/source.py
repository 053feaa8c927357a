"""The files of an export: a folder, or a zip or tar as it was downloaded. Nothing outside it is ever read."""

import csv
import hashlib
import io
import json
import os
import posixpath
import re
import shutil
import stat
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePath
from typing import Any, NamedTuple

from pipeline.datasets.names import is_left_behind
from pipeline.download import archive
from pipeline.errors import DatasetError
from pipeline.files import sha256_file
from pipeline.importing.zips import extract_zip, is_zip
from pipeline.shards.images import MAX_BYTES

MAX_JSON_BYTES = 2**30  # instances_train2017.json of COCO has 450 MB
PHOTO_SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".tif", ".tiff", ".webp", ".bmp", ".gif")
_UPLOAD_PREFIX = re.compile(r"^[0-9a-f]{8}-")  # Label Studio's, before the name of an uploaded photo


@contextmanager
def open_source(path: Path, work: Path) -> Iterator["Source"]:
    """Give the files of an export. An archive is unpacked to the folder `work`, which is removed at the end.

    path: a folder, .zip, .tar, .tar.gz or .tar.bz2; an archive is recognised by its first bytes.
    work: a folder that does not exist, or was left by a killed process.
    """
    if path.is_dir():
        yield Source(path.resolve(), path.name or path.resolve().name)
        return
    if not path.is_file():
        raise DatasetError(f"{path}: no such folder or archive; give the export's folder, or its zip or tar")
    shutil.rmtree(work, ignore_errors=True)
    try:
        if is_zip(path):
            extract_zip(path, work)
        else:
            archive.extract(path, work)
        yield Source(work, path.name, sha256_file(path))
    finally:
        shutil.rmtree(work, ignore_errors=True)


class Outline(NamedTuple):
    """The kind of a JSON file.

    is_list: a list, not an object.
    keys: of the object.
    first: keys of the first element of the list, or of the object's "annotations".
    """

    is_list: bool
    keys: frozenset[str]
    first: frozenset[str]


class Source:
    """The files below a folder, by path with '/' from the folder on. Links are not followed.

    name: of the folder or archive, for messages.
    archive_sha256: of the archive; None for a folder.
    files: sorted paths.
    left_out: links and special files, by path, with the reason.
    num_passed_over: files that operating systems and tools leave behind.
    digests: the sha256 of every file read so far, by path.
    """

    def __init__(self, root: Path, name: str, archive_sha256: str | None = None) -> None:
        self.root = root
        self.name = name
        self.archive_sha256 = archive_sha256
        self.left_out: dict[str, str] = {}
        self.num_passed_over = 0
        self.digests: dict[str, str] = {}
        self.files = sorted(self._walk())
        self._paths = {nfc(path): path for path in self.files}
        self._folders = {folder for path in self._paths for folder in path.split("/")[:-1]}
        self._by_name: dict[str, list[str]] | None = None
        self._json: tuple[str, Any] = ("", None)
        self._outlines: dict[str, Outline] = {}

    def _walk(self) -> Iterator[str]:
        for folder, folders, names in os.walk(self.root):
            relative = Path(folder).relative_to(self.root)
            for name in names + [name for name in folders if os.path.islink(os.path.join(folder, name))]:
                path = (relative / name).as_posix()
                if is_left_behind(PurePath(name)):
                    self.num_passed_over += 1
                elif not stat.S_ISREG(os.lstat(os.path.join(folder, name)).st_mode):
                    self.left_out[path] = "a link or special file; copy the file itself (cp -rL)"
                elif not _is_text(path):
                    raise DatasetError(f"{self.name}: the name {path!r} is not UTF-8; rename the file")
                else:
                    yield path
            hidden = [name for name in folders if is_left_behind(PurePath(name))]
            for name in hidden:
                self.num_passed_over += sum(len(inner) for _, _, inner in os.walk(os.path.join(folder, name)))
            folders[:] = [name for name in folders if name not in hidden]

    def __contains__(self, path: str) -> bool:
        return nfc(path) in self._paths

    def find(self, path: str) -> str | None:
        """Return a path as the export spells it, None if it is not there."""
        return self._paths.get(nfc(posixpath.normpath(path)))

    def named(self, name: str) -> list[str]:
        """Return the paths whose last part is `name`, those nearest to the root first."""
        if self._by_name is None:
            self._by_name = {}
            for path in sorted(self.files, key=lambda path: (path.count("/"), path)):
                self._by_name.setdefault(posixpath.basename(nfc(path)), []).append(path)
        return self._by_name.get(nfc(name), [])

    def under(self, folder: str) -> list[str]:
        """Return the paths below a folder; "" is the root."""
        return [path for path in self.files if path.startswith(f"{folder}/")] if folder else self.files

    def read(self, path: str, max_bytes: int = MAX_BYTES) -> bytes:
        """Return a file's bytes, and record their sha256."""
        try:
            with (self.root / path).open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                if size > max_bytes:
                    raise DatasetError(f"{path}: {size} bytes, more than the limit of {max_bytes}")
                data = file.read()
        except OSError as error:
            raise DatasetError(f"{path}: cannot be read: {error.strerror}") from error
        self.digests[path] = hashlib.sha256(data).hexdigest()
        return data

    def text(self, path: str, max_bytes: int = MAX_BYTES) -> str:
        """Return a UTF-8 file's text, with or without a byte order mark."""
        try:
            return self.read(path, max_bytes).decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise DatasetError(f"{path}: not UTF-8 text ({error.reason}); save it as UTF-8") from error

    def lines(self, path: str) -> list[str]:
        """Return the lines of a text file without blank ones and outer spaces."""
        return [line.strip() for line in self.text(path).splitlines() if line.strip()]

    def json(self, path: str) -> Any:
        """Return the content of a JSON file. The last one is kept."""
        if self._json[0] != path:
            try:
                self._json = (path, json.loads(self.text(path, MAX_JSON_BYTES)))
            except (ValueError, RecursionError) as error:
                if isinstance(error, DatasetError):
                    raise
                raise DatasetError(f"{path}: damaged JSON ({error}); export it again") from error
        return self._json[1]

    def outline(self, path: str) -> "Outline":
        """Return the keys of a JSON file, by which formats are recognised; each file is parsed once for it."""
        if path not in self._outlines:
            content = self.json(path)
            first: Any = content[0] if isinstance(content, list) and content else None
            if isinstance(content, dict) and isinstance(content.get("annotations"), list):
                first = next(iter(content["annotations"]), None)
            self._outlines[path] = Outline(
                isinstance(content, list),
                frozenset(content) if isinstance(content, dict) else frozenset(),
                frozenset(first) if isinstance(first, dict) else frozenset(),
            )
        return self._outlines[path]

    def forget(self) -> None:
        """Drop the JSON file that is kept."""
        self._json = ("", None)

    def csv(self, path: str) -> list[dict[str, str]]:
        """Return the rows of a CSV file with a header; outer spaces are dropped, column names are in lower case."""
        text = self.text(path)
        header = text.partition("\n")[0]
        rows = csv.reader(io.StringIO(text), delimiter=max(",;\t", key=header.count), skipinitialspace=True)
        try:
            lines = [[value.strip() for value in row] for row in rows if any(map(str.strip, row))]
        except csv.Error as error:
            raise DatasetError(f"{path}: damaged CSV ({error})") from error
        if not lines:
            raise DatasetError(f"{path}: empty; expected a line of column names and a line for each class")
        names = [name.casefold() for name in lines[0]]
        wrong = [number for number, row in enumerate(lines[1:], start=2) if len(row) != len(names)]
        if wrong:
            raise DatasetError(f"{path}: line {wrong[0]} has another number of columns than the header")
        return [dict(zip(names, row, strict=True)) for row in lines[1:]]

    def photo(self, reference: str, base: str, where: str) -> str | None:
        """Return the path of the photo that an annotation file names, None if it is not there.

        First the path from the annotation file's folder and from the root, then the one photo with the longest equal
        end of its path, also without the prefix that Label Studio gives uploads. A photo of that name in another folder
        is taken only if the export has no folder of the name that is stated.

        reference: a path, absolute or with '\\' if the tool writes so, or a URL.
        base: the annotation file's folder.
        where: the annotation file, for messages.
        """
        name = reference.replace("\\", "/")
        for folder in (base, ""):
            if path := self.find(posixpath.join(folder, name.lstrip("/"))):
                return path
        parts = [part for part in name.split("?")[0].split("/") if part not in ("", ".", "..")]
        if not parts:
            raise DatasetError(f"{where}: {reference!r} names no photo")
        found = [path for path in self.named(parts[-1]) or self.named(_UPLOAD_PREFIX.sub("", parts[-1]))]
        if ".." in name.split("/") and not found:
            raise DatasetError(f"{where}: {reference!r} leads outside the export; put the photo into it")
        if len(parts) > 1 and nfc(parts[-2]) in self._folders:
            found = [path for path in found if nfc(path).split("/")[-2:-1] == [nfc(parts[-2])]]
        best = _longest_equal_end(found, parts)
        if len(best) > 1:
            raise DatasetError(
                f"{where}: {reference!r} may be {' or '.join(best[:3])}; keep one of these photos"
            )
        return best[0] if best else None


def is_photo(path: str) -> bool:
    return path.lower().endswith(PHOTO_SUFFIXES)


def nfc(path: str) -> str:
    """Return a path as most systems spell it: macOS writes letters with marks as two characters."""
    return unicodedata.normalize("NFC", path)


def stem(path: str) -> str:
    """Return the path without its ending: "a/b.c.png" -> "a/b.c"."""
    return posixpath.splitext(path)[0]


def _is_text(path: str) -> bool:
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True


def _longest_equal_end(paths: list[str], parts: list[str]) -> list[str]:
    def length(path: str) -> int:
        pairs = list(zip(reversed(path.split("/")[:-1]), reversed(parts[:-1]), strict=False))
        return next((number for number, (one, other) in enumerate(pairs) if one != other), len(pairs))

    longest = max(map(length, paths), default=0)
    return [path for path in paths if length(path) == longest]
