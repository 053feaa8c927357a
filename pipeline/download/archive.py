"""Unpack a downloaded tar archive without trusting it.

tarfile's extraction and iteration are not used, only its parser of one 512-byte header, `TarInfo.frombuf`:
- extraction with `filter="data"` can be led outside its folder (CVE-2025-4517);
- a negative size makes iteration loop (CVE-2025-8194), and a crafted pax header makes it slow (CVE-2024-6232);
- iteration ends silently at a damaged header or a missing end mark, so a truncated archive seems complete.
"""

import bz2
import gzip
import os
import re
import tarfile
import unicodedata
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from pipeline.errors import ArchiveError
from pipeline.files import whole_folder
from pipeline.progress import bytes_bar

MAX_MEMBERS = 200_000  # VOC2012 has about 40 thousand, SBD 34 thousand
MAX_BYTES = 16 * 2**30  # unpacked; VOC2012 has 2 GB
MAX_RATIO = 100  # unpacked to packed; photos give 1, label images under 20, a gzip bomb 1000
RATIO_FREE_BYTES = 2**20  # exempt from the ratio: padding alone packs 100 to 1, and so little is harmless
MAX_EXTENSION_BYTES = 2**20  # of one pax header or GNU long name, which are read into memory
MAX_NAME, MAX_DEPTH = 1000, 50  # characters and folders; far beyond any data set
BLOCK = tarfile.BLOCKSIZE
CHUNK_BYTES = 2**20
FILE_MODE, FOLDER_MODE = 0o644, 0o755  # instead of the archive's: no set-user-id, no unreadable folders
OTHER_KINDS = {b"\xfd7zXZ\0": "xz", b"\x28\xb5\x2f\xfd": "zstd", b"7z\xbc\xaf\x27\x1c": "7z", b"Rar!": "rar"}
UNSAFE_NAME = re.compile(
    r"""\A\Z | \A/ | (?:\A|/)\.\.(?:/|\Z)    # empty, absolute, or with a '..'
    | \\ | (?:\A|/)[A-Za-z]: | \0            # separators and drives of Windows; a zero byte
    | [\ud800-\udfff]                        # not UTF-8""",
    re.VERBOSE,
)


def extract(archive: Path, dest: Path) -> None:
    """Unpack a tar, tar.gz or tar.bz2 into the new folder `dest`: all of it, or nothing and an ArchiveError.

    Only regular files and folders below `dest` are accepted, each once. Any other member refuses the archive.
    Two processes must not unpack to the same `dest` at the same time.

    archive: the file; its compression is found from its first bytes.
    dest: absent, or an empty folder.
    """
    try:
        if dest.is_symlink() or dest.is_file() or (dest.is_dir() and any(dest.iterdir())):
            raise ArchiveError(f"{dest} exists already; remove it to unpack again")
        packed_bytes = archive.stat().st_size
        limit = min(MAX_BYTES, max(RATIO_FREE_BYTES, MAX_RATIO * packed_bytes))
        with (
            archive.open("rb") as packed,
            _decompress(packed) as unpacked,
            bytes_bar(packed_bytes, f"unpack {archive.name}") as bar,
            whole_folder(dest) as folder,
        ):
            reader, names = _Reader(unpacked, limit), Names()
            for member in _members(reader):
                name = names.claim(member.name, is_folder=member.isdir(), fault=_fault(member))
                _write(reader, member, folder / name)
                bar.update(packed.tell() - bar.n)
            for made_folder, _, _ in os.walk(folder):
                os.chmod(made_folder, FOLDER_MODE)  # mkdir's own mode is cut by the umask
    except ArchiveError as error:
        raise ArchiveError(f"{archive}: {error}") from error.__cause__
    except OSError as error:
        raise ArchiveError(f"{archive}: cannot be unpacked to {dest}: {error}") from error


def _decompress(packed: IO[bytes]) -> IO[bytes]:
    """Return the unpacked bytes. xz is not accepted: its header may demand 4 GiB of memory."""
    magic = packed.read(6)
    packed.seek(0)
    for start, kind in OTHER_KINDS.items():
        if magic.startswith(start):
            raise ArchiveError(
                f"an archive of the kind {kind}, which is not read; unpack it, and give the folder"
            )
    if magic.startswith(b"\x1f\x8b"):
        return gzip.open(packed)  # pyright: ignore[reportReturnType]
    return bz2.open(packed) if magic.startswith(b"BZh") else packed  # pyright: ignore[reportReturnType]


def _write(reader: "_Reader", member: tarfile.TarInfo, path: Path) -> None:
    try:
        (path if member.isdir() else path.parent).mkdir(parents=True, exist_ok=True)
        if member.isfile():
            with path.open("xb") as file:  # O_EXCL: never through a link, never over another member
                os.fchmod(file.fileno(), FILE_MODE)
                for chunk in reader.content(member):
                    file.write(chunk)
    except OSError as error:  # a full disk, a name too long for this file system
        raise ArchiveError(f"cannot write member {member.name!r}: {error.strerror}") from error


@dataclass
class _Reader:
    """Read the unpacked bytes from front to back. It never seeks, so no offset can lead backwards."""

    file: IO[bytes]
    limit: int
    num_read: int = 0

    def content(self, member: tarfile.TarInfo) -> Iterator[bytes]:
        """Yield the bytes of a member in chunks, then skip the padding after them."""
        what = f"member {member.name!r}"
        if self.num_read + member.size > self.limit:
            raise ArchiveError(f"{what} has {member.size} bytes, beyond the limit of {self.limit} in all")
        for start in range(0, member.size, CHUNK_BYTES):
            yield self.read(min(CHUNK_BYTES, member.size - start), what)
        self.read(-member.size % BLOCK, what)

    def read(self, size: int, what: str) -> bytes:
        """Return exactly `size` bytes of `what`."""
        data = self.read_some(size)
        if len(data) < size:
            raise ArchiveError(f"truncated in {what}; download it again")
        return data

    def read_some(self, size: int) -> bytes:
        """Return `size` bytes, fewer at the end of the file."""
        try:
            data = self.file.read(size)
        except (OSError, EOFError, zlib.error) as error:  # how gzip and bz2 report damage
            raise ArchiveError(f"damaged or truncated ({error}); download it again") from error
        self.num_read += len(data)
        if self.num_read > self.limit:
            raise ArchiveError(f"unpacks to more than {self.limit} bytes; it may be a bomb")
        return data


def _members(reader: _Reader) -> Iterator[tarfile.TarInfo]:
    """Yield the header of each member, with its long name. The caller then reads the content of a file."""
    num_headers, long_name = 0, None
    while any(block := reader.read(BLOCK, "a header or before the end mark")):
        num_headers += 1
        if num_headers > MAX_MEMBERS:
            raise ArchiveError(f"more than {MAX_MEMBERS} members; it may be a bomb")
        try:  # an owner's name may have any encoding; UNSAFE_NAME refuses a member name that is not UTF-8
            header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except tarfile.HeaderError as error:
            raise ArchiveError(f"not a tar archive, or damaged: {error}") from error
        if header.type in (tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, tarfile.XGLTYPE):
            long_name = _extension_name(reader, header) or long_name
        else:
            header.name, long_name = long_name or header.name, None
            yield header
    if long_name:
        raise ArchiveError("damaged: an extension header without its member")
    if any(reader.read_some(BLOCK)):
        raise ArchiveError("damaged: a lone zero block between members")
    while reader.read_some(CHUNK_BYTES):  # gzip and bz2 verify their checksums at the end
        pass


def _extension_name(reader: _Reader, header: tarfile.TarInfo) -> str | None:
    """Return the name that an extension header gives to the member after it, if it gives one."""
    if not 0 <= header.size <= MAX_EXTENSION_BYTES:
        raise ArchiveError(
            f"extension header {header.name!r} has {header.size} bytes, not 0 to {MAX_EXTENSION_BYTES}"
        )
    data = b"".join(reader.content(header))
    if header.type == tarfile.GNUTYPE_LONGNAME:
        name = data.rstrip(b"\0")
    else:
        records = _pax_records(data)
        name = records.get(b"path")
        if b"size" in records or any(key.startswith(b"GNU.sparse.") for key in records):
            raise ArchiveError("a pax header sets the size of a member; only files under 8 GiB are accepted")
        if name and header.type == tarfile.XGLTYPE:
            raise ArchiveError("a global header sets the name of all members")
    return None if name is None else name.decode("utf-8", "surrogateescape")


def _pax_records(data: bytes) -> dict[bytes, bytes]:
    r"""Parse records of the form b"<length> <key>=<value>\n", where the length counts the whole record."""
    records: dict[bytes, bytes] = {}
    start = 0
    while start < len(data):
        length = re.match(rb"([1-9][0-9]{0,7}) ", data[start : start + 9])
        end = start + int(length[1]) if length else start
        key, equals, value = data[start:end].partition(b" ")[2].partition(b"=")
        if not equals or not value.endswith(b"\n") or end > len(data):
            raise ArchiveError("a pax header is damaged")
        records[key] = value[:-1]
        start = end
    return records


@dataclass
class Names:
    """The names of the members so far, of a tar or a zip."""

    spellings: dict[str, str] = field(default_factory=dict)  # folded path -> as first spelled; parents too
    members: set[str] = field(default_factory=set)

    def claim(self, name: str, *, is_folder: bool, fault: str | None = None) -> str:
        """Return the path of a new member below the destination, '' for the destination itself.

        fault: what is wrong with the member beside its name.
        """
        parts = [part for part in name.split("/") if part not in ("", ".")]
        path = "/".join(parts)
        fault = fault or _name_fault(name, is_folder=is_folder)
        if not fault:
            for depth in range(1, len(parts) + 1):
                spelling = "/".join(parts[:depth])
                first = self.spellings.setdefault(_folded(spelling), spelling)
                if first != spelling:
                    fault = f"differs from {first!r} only in case, or in how letters with marks are stored"
            if path in self.members:
                fault = "occurs twice"
        if fault:
            raise ArchiveError(f"member {name[:MAX_NAME]!r} {fault}; nothing was unpacked")
        self.members.add(path)
        return path


def _fault(member: tarfile.TarInfo) -> str | None:
    """Return what is wrong with the member beside its name, or None."""
    if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.DIRTYPE):
        return f"is neither a regular file nor a folder (type {member.type!r})"
    if member.size < 0 or (member.isdir() and member.size > 0):
        return f"has an impossible size, {member.size}"
    return None


def _name_fault(name: str, *, is_folder: bool) -> str | None:
    """Return what is wrong with a member's name by itself, or None."""
    parts = name.split("/")
    if len(name) > MAX_NAME or len(parts) > MAX_DEPTH:
        return f"has more than {MAX_NAME} characters or {MAX_DEPTH} folders in its name"
    if UNSAFE_NAME.search(name):
        return "has an unsafe name: empty, absolute, not UTF-8, or with '..', a backslash, a drive or a zero byte"
    if not is_folder and parts[-1] in ("", "."):
        return "is a file with the name of a folder"
    return None


def _folded(path: str) -> str:
    """Return the same text for paths that are one file to macOS or Windows, where one would overwrite the other."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", path).casefold())
