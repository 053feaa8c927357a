"""Unpacks a downloaded tar archive, trusting nothing in it.

tarfile's own extraction is not used: on the Pythons people have, `filter='data'` can be led outside its
folder (CVE-2025-4517), a negative size makes it loop (CVE-2025-8194), and an archive cut between two members
passes for whole. Only its parser of one 512-byte header serves here; checking and writing are done below.
"""

import bz2
import contextlib
import fcntl
import gzip
import os
import re
import shutil
import tarfile
import unicodedata
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from tqdm import tqdm

from pipeline.errors import ArchiveError
from pipeline.progress import interval_s

MAX_MEMBERS = 200_000  # VOC2012 has about 40 thousand, SBD 34 thousand
MAX_BYTES = 16 * 2**30  # unpacked; VOC2012 has 2 GB
MAX_RATIO = 100  # unpacked to packed; photos give 1, label images under 20, a gzip bomb 1000
RATIO_FREE_BYTES = 2**20  # exempt from the ratio: padding alone packs 100 to 1, and so little does no harm
MAX_EXTENSION_BYTES = 2**20  # of one pax header or GNU long name, which are read into memory whole
MAX_NAME, MAX_DEPTH = 1000, 50  # characters and folders; far beyond any data set, and keeps _Paths small
BLOCK = tarfile.BLOCKSIZE
CHUNK_BYTES = 2**20  # memory for file contents
FILE_MODE, FOLDER_MODE = 0o644, 0o755  # whatever the archive says: no set-user-id, no unreadable folders


def extract(
    archive: Path,
    dest: Path,
    *,
    max_members: int = MAX_MEMBERS,
    max_bytes: int = MAX_BYTES,
    max_ratio: float = MAX_RATIO,
) -> None:
    """Unpacks a tar, tar.gz or tar.bz2 into the new folder `dest`: all of it, or nothing and an ArchiveError.

    Accepted are regular files and folders below `dest`, each once; any other member refuses the archive.
    max_members: headers.   max_bytes: unpacked, headers included.   max_ratio: unpacked / packed bytes.
    dest: absent or an empty folder. Files are written to `.<name>.partial` beside it, renamed at the end.
    """
    partial = dest.with_name(f".{dest.name}.partial")
    try:
        dest.parent.mkdir(parents=True, exist_ok=True)
        with _only_one(dest.parent):
            if dest.is_symlink() or dest.is_file() or (dest.is_dir() and any(dest.iterdir())):
                raise ArchiveError(f"{dest} exists already; remove it to unpack again")
            shutil.rmtree(partial, ignore_errors=True)  # left by a killed process
            partial.mkdir(mode=0o700)  # closed to others while it fills
            try:
                _unpack(archive, partial, max_members, max_bytes, max_ratio)
                partial.chmod(FOLDER_MODE)
                partial.rename(dest)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
    except ArchiveError as error:
        raise ArchiveError(f"{archive}: {error}") from error.__cause__
    except OSError as error:
        raise ArchiveError(f"{archive}: cannot be unpacked to {dest}: {error}") from error


@contextlib.contextmanager
def _only_one(folder: Path) -> Iterator[None]:
    """Keeps a second process off the partial folder; the lock is on `folder` itself, so no file is left."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)  # frees the lock, as the death of the process does


def _unpack(archive: Path, root: Path, max_members: int, max_bytes: int, max_ratio: float) -> None:
    packed_bytes = archive.stat().st_size
    limit = min(max_bytes, max(RATIO_FREE_BYTES, int(max_ratio * packed_bytes)))
    progress = {"total": packed_bytes, "desc": f"unpack {archive.name}", "mininterval": interval_s()}
    with (
        archive.open("rb") as packed,
        tqdm.wrapattr(packed, "read", **progress) as counted,
        _decompressed(packed, counted) as unpacked,
    ):
        tar, paths = _Tar(unpacked, limit, max_members), _Paths()
        while (member := tar.next_member()) is not None:
            path = root / paths.claim(member)
            try:
                _write(tar, member, path)
            except OSError as error:  # a name too long for this file system, a full disk
                raise ArchiveError(f"cannot write member {member.name!r}: {error.strerror}") from error


def _decompressed(packed: IO[bytes], counted: Any) -> contextlib.AbstractContextManager[Any]:
    """Chooses by the first bytes, not the name. No xz: its header may ask for 4 GiB of memory."""
    magic = packed.read(3)
    packed.seek(0)
    if magic.startswith(b"\x1f\x8b"):
        return gzip.open(counted)
    return bz2.open(counted) if magic == b"BZh" else contextlib.nullcontext(counted)


def _write(tar: "_Tar", member: tarfile.TarInfo, path: Path) -> None:
    _make_folder(path if member.isdir() else path.parent)
    if member.isdir():
        return
    # x is O_EXCL: never through a link and never over another file, even if a check elsewhere should fail.
    with path.open("xb") as file:
        os.fchmod(file.fileno(), FILE_MODE)
        for chunk in tar.contents(member):
            file.write(chunk)


def _make_folder(path: Path) -> None:
    if not path.is_dir():
        _make_folder(path.parent)
        path.mkdir()
        path.chmod(FOLDER_MODE)  # mkdir's own mode is cut by the umask


@dataclass
class _Tar:
    """Reads a tar from front to back; it never seeks, so no offset can make it go back or loop."""

    file: IO[bytes]
    limit: int
    max_members: int
    num_read: int = 0
    num_headers: int = 0

    def next_member(self) -> tarfile.TarInfo | None:
        """The header of the next file, folder or whatever the archive holds; None at its end."""
        records: dict[bytes, bytes] = {}  # what extension headers say of the member after them
        while (header := self._header()) is not None:
            if header.type == tarfile.GNUTYPE_LONGNAME:
                records[b"path"] = self._extension(header).rstrip(b"\0")
            elif header.type == tarfile.XHDTYPE:
                records |= _pax_records(self._extension(header))
            elif header.type == tarfile.XGLTYPE:
                if _pax_records(self._extension(header)).keys() & {b"path", b"size"}:
                    raise ArchiveError("a global header sets the name or size of all members")
            else:
                return _with_records(header, records)
        if records:
            raise ArchiveError("damaged: an extension header without its member")
        return None

    def contents(self, member: tarfile.TarInfo) -> Iterator[bytes]:
        """The bytes of a file in chunks; ends where the next header begins."""
        what = f"member {member.name!r}"
        if self.num_read + member.size > self.limit:
            raise ArchiveError(f"{what} has {member.size} bytes, beyond the limit of {self.limit} in all")
        for start in range(0, member.size, CHUNK_BYTES):
            yield self._read(min(CHUNK_BYTES, member.size - start), what)
        self._read(-member.size % BLOCK, what)

    def _header(self) -> tarfile.TarInfo | None:
        """One header; None at the end mark. The rest after the mark is read too: gzip then checks its sum."""
        block = self._read(BLOCK, "a header or before the end mark")
        if any(block):
            self.num_headers += 1
            if self.num_headers > self.max_members:
                raise ArchiveError(f"more than {self.max_members} members; it may be a bomb")
            try:  # owner names may come in any encoding; the member's own name is held to UTF-8 in _fault
                return tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
            except tarfile.HeaderError as error:
                raise ArchiveError(f"not a tar archive, or damaged: {error}") from error
        if any(self._read_some(BLOCK)):
            raise ArchiveError("damaged: a lone zero block between members")
        while self._read_some(CHUNK_BYTES):
            pass
        return None

    def _extension(self, header: tarfile.TarInfo) -> bytes:
        if not 0 <= header.size <= MAX_EXTENSION_BYTES:
            raise ArchiveError(f"extension header {header.name!r} has {header.size} bytes")
        return b"".join(self.contents(header))

    def _read(self, size: int, what: str) -> bytes:
        data = self._read_some(size)
        if len(data) < size:
            raise ArchiveError(f"truncated in {what}; download it again")
        return data

    def _read_some(self, size: int) -> bytes:
        try:
            data = self.file.read(size)
        except (OSError, EOFError, zlib.error) as error:  # how gzip and bz2 report damage
            raise ArchiveError(f"damaged or truncated ({error}); download it again") from error
        self.num_read += len(data)
        if self.num_read > self.limit:
            raise ArchiveError(f"unpacks to more than {self.limit} bytes; it may be a bomb")
        return data


def _pax_records(data: bytes) -> dict[bytes, bytes]:
    r"""Reads records of the form b"<length> <key>=<value>\n", the length counting all of the record."""
    records: dict[bytes, bytes] = {}
    start = 0
    while start < len(data):
        length = re.match(rb"([1-9][0-9]{0,7}) ", data[start : start + 9])
        end = start + int(length[1]) if length else start
        key, equals, value = data[start:end].partition(b" ")[2].partition(b"=")
        if not equals or not value.endswith(b"\n") or end > len(data) or key.startswith(b"GNU.sparse."):
            raise ArchiveError("a pax header is damaged, or describes a sparse file")
        records[key] = value[:-1]
        start = end
    return records


def _with_records(header: tarfile.TarInfo, records: dict[bytes, bytes]) -> tarfile.TarInfo:
    if b"path" in records:
        header.name = records[b"path"].decode("utf-8", "surrogateescape")
    if b"size" in records:
        # int() would take b"-1" and b"1_0" too; -1 is refused in _fault
        header.size = int(records[b"size"]) if re.fullmatch(rb"[0-9]{1,18}", records[b"size"]) else -1
    return header


@dataclass
class _Paths:
    """Says where each member goes, and refuses whatever is not a new plain file or folder below the root."""

    spelling: dict[str, str] = field(default_factory=dict)  # folded path -> as first spelled; parents too
    is_folder: dict[str, bool] = field(default_factory=dict)  # folded path of each member so far

    def claim(self, member: tarfile.TarInfo) -> str:
        """The member's path below the root, '' for the root itself."""
        path = "/".join(part for part in member.name.split("/") if part not in ("", "."))
        fault = _fault(member) or self._clash(path, member.isdir())
        if fault:
            raise ArchiveError(f"member {member.name[:MAX_NAME]!r} {fault}; nothing was unpacked")
        return path

    def _clash(self, path: str, is_folder: bool) -> str | None:
        folder = ""
        for part in path.split("/")[:-1]:
            folder = f"{folder}/{part}".lstrip("/")
            if self._first_spelling(folder) != folder:
                return f"differs from {self._first_spelling(folder)!r} only in case"
            if self.is_folder.get(_folded(folder)) is False:
                return f"lies below {folder!r}, which is a file"
        if self._first_spelling(path) != path:
            return f"differs from {self._first_spelling(path)!r} only in case"
        if _folded(path) in self.is_folder:
            return "occurs twice"
        self.is_folder[_folded(path)] = is_folder
        return None

    def _first_spelling(self, path: str) -> str:
        return self.spelling.setdefault(_folded(path), path)


def _folded(path: str) -> str:
    """Equal for names that macOS or Windows take for one, where such an archive would lose files."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", path).casefold())


def _fault(member: tarfile.TarInfo) -> str | None:
    """What is wrong with a member taken alone."""
    name, parts = member.name, member.name.split("/")
    if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.DIRTYPE):
        return f"is neither a regular file nor a folder (type {member.type!r})"
    if member.size < 0 or (member.isdir() and member.size > 0):
        return f"has an impossible size, {member.size}"
    if len(name) > MAX_NAME or len(parts) > MAX_DEPTH:
        return "has too long a name"
    if any("\ud800" <= character <= "\udfff" for character in name):
        return "has a name that is not UTF-8"
    if parts[0] == "" or ".." in parts or "\\" in name or "\0" in name:
        return "has an empty or absolute name, or '..', a backslash or a zero byte in it"
    if any(re.match("[A-Za-z]:", part) for part in parts):
        return "has a drive letter in its name"
    if not member.isdir() and parts[-1] in ("", "."):
        return "is a file with the name of a folder"
    return None
