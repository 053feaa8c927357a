"""Zip archives of exports, unpacked with suspicion."""

import posixpath
import stat
import zipfile
import zlib
from pathlib import Path

from pipeline.download import archive
from pipeline.errors import ArchiveError
from pipeline.files import whole_folder
from pipeline.progress import bytes_bar

_COPY_BYTES = 2**20


def is_zip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(2) == b"PK"


def extract_zip(path: Path, dest: Path) -> None:
    """Unpack a zip into the new folder `dest`: all of it, or nothing and an ArchiveError.

    The rules are those for tars (download/archive.py): regular files and folders below `dest`, each once; limits on
    members, bytes and ratio.
    """
    try:
        with zipfile.ZipFile(path) as packed, whole_folder(dest) as folder:
            members = packed.infolist()
            if len(members) > archive.MAX_MEMBERS:
                raise ArchiveError(f"{path}: more than {archive.MAX_MEMBERS} members; it may be a bomb")
            packed_bytes = path.stat().st_size
            limit = min(archive.MAX_BYTES, max(archive.RATIO_FREE_BYTES, archive.MAX_RATIO * packed_bytes))
            seen: set[str] = set()
            left = limit
            with bytes_bar(sum(member.file_size for member in members), f"unpack {path.name}") as bar:
                for member in members:
                    name = _checked_name(path, member, seen)
                    if member.is_dir():
                        (folder / name).mkdir(parents=True, exist_ok=True)
                        continue
                    (folder / name).parent.mkdir(parents=True, exist_ok=True)
                    with packed.open(member) as content, (folder / name).open("xb") as file:
                        while chunk := content.read(_COPY_BYTES):
                            left -= len(chunk)
                            if left < 0:
                                raise ArchiveError(
                                    f"{path}: unpacks to more than {limit} bytes; it may be a bomb"
                                )
                            file.write(chunk)
                            bar.update(len(chunk))
    except ArchiveError:
        raise
    except (OSError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError) as error:
        raise ArchiveError(
            f"{path}: damaged, encrypted or of another kind ({error}); download it again"
        ) from error


def _checked_name(path: Path, member: zipfile.ZipInfo, seen: set[str]) -> str:
    name = member.orig_filename.rstrip("/") if member.is_dir() else member.orig_filename
    kind = stat.S_IFMT(member.external_attr >> 16)
    fault = None
    if archive.UNSAFE_NAME.search(name):
        fault = "has an unsafe name: empty, absolute, or with '..', a backslash, a drive or a zero byte"
    elif len(name) > archive.MAX_NAME or name.count("/") >= archive.MAX_DEPTH:
        fault = f"has more than {archive.MAX_NAME} characters or {archive.MAX_DEPTH} folders in its name"
    elif kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        fault = "is neither a regular file nor a folder"
    elif posixpath.normpath(name).casefold() in seen:
        fault = "occurs twice, or differs from another only in case"
    if fault:
        raise ArchiveError(f"{path}: member {name[: archive.MAX_NAME]!r} {fault}; nothing was unpacked")
    seen.add(posixpath.normpath(name).casefold())
    return name
