"""Zip archives of exports, unpacked with suspicion."""

import lzma
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from pipeline.download import archive
from pipeline.errors import ArchiveError
from pipeline.files import whole_folder
from pipeline.progress import bytes_bar

_COPY_BYTES = 2**20
_UTF8_FLAG = 0x800
_BY_HAND = "unpack it, and give the folder"
_DAMAGE = (OSError, EOFError, ValueError, struct.error, zipfile.BadZipFile, zlib.error, lzma.LZMAError)


def is_zip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(2) == b"PK"


def extract_zip(path: Path, dest: Path) -> None:
    """Unpack a zip into the new folder `dest`: all of it, or nothing and an ArchiveError.

    The rules are those for tars (download/archive.py): regular files and folders below `dest`, each once; limits on
    members, bytes and ratio. Only a folder may be listed again.
    """
    try:
        with _opened(path) as packed, whole_folder(dest) as folder:
            _extract(packed, folder, path)
    except ArchiveError as error:
        raise ArchiveError(f"{path}: {error}") from error.__cause__
    except OSError as error:  # a full disk, a name too long for this file system
        raise ArchiveError(f"{path}: cannot be unpacked to {dest}: {error.strerror or error}") from error


def _opened(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except NotImplementedError as error:
        raise ArchiveError(f"a zip of a kind that is not read ({error}); {_BY_HAND}") from error
    except UnicodeError as error:
        raise ArchiveError(f"names of members are not UTF-8 ({error}); {_BY_HAND}") from error
    except _DAMAGE as error:
        raise ArchiveError(f"a damaged zip ({error}); download it again") from error


def _extract(packed: zipfile.ZipFile, folder: Path, path: Path) -> None:
    members = packed.infolist()
    if len(members) > archive.MAX_MEMBERS:
        raise ArchiveError(f"more than {archive.MAX_MEMBERS} members; it may be a bomb")
    packed_bytes = path.stat().st_size
    left = limit = min(archive.MAX_BYTES, max(archive.RATIO_FREE_BYTES, archive.MAX_RATIO * packed_bytes))
    names = archive.Names()
    folders: set[str] = set()
    with bytes_bar(sum(member.file_size for member in members), f"unpack {path.name}") as bar:
        for member in members:
            text = _name(member)
            if member.is_dir() and text in folders:
                continue
            name = names.claim(text, is_folder=member.is_dir(), fault=_fault(member, text))
            if member.is_dir():
                folders.add(text)
                (folder / name).mkdir(parents=True, exist_ok=True)
                continue
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            with (folder / name).open("xb") as file:
                for chunk in _content(packed, member, name):
                    left -= len(chunk)
                    if left < 0:
                        raise ArchiveError(f"unpacks to more than {limit} bytes; it may be a bomb")
                    file.write(chunk)
                    bar.update(len(chunk))


def _content(packed: zipfile.ZipFile, member: zipfile.ZipInfo, name: str) -> Iterator[bytes]:
    try:
        with packed.open(member) as content:
            while chunk := content.read(_COPY_BYTES):
                yield chunk
    except (RuntimeError, NotImplementedError) as error:  # a password, another compression
        raise ArchiveError(f"member {name!r} cannot be read ({error}); {_BY_HAND}") from error
    except _DAMAGE as error:
        raise ArchiveError(f"member {name!r} is damaged ({error}); download it again") from error


def _name(member: zipfile.ZipInfo) -> str:
    """Return a member's name. macOS's Finder and others write UTF-8 without the flag that states it."""
    if "\0" in member.orig_filename or member.flag_bits & _UTF8_FLAG:
        return member.orig_filename
    try:
        return member.filename.encode("cp437").decode("utf-8")
    except UnicodeError:
        return member.filename


def _fault(member: zipfile.ZipInfo, name: str) -> str | None:
    if stat.S_IFMT(member.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
        return "is neither a regular file nor a folder"
    if "\\" in name:
        return f"has a backslash in its name, as some tools of Windows write; {_BY_HAND}"
    return None
