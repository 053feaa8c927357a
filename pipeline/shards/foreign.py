"""The manifest of anyone's WebDataset tars, which are read once, from first to last byte, and not written again.

A sample is what webdataset calls one: the consecutive members of a tar with the same name up to the first dot.
"""

import hashlib
import re
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from webdataset.shardlists import expand_urls
from webdataset.tariterators import base_plus_ext

from fcn import IGNORE_LABEL
from pipeline.errors import DatasetError, ShardError
from pipeline.files import NUM_NAMED, and_more
from pipeline.progress import bar
from pipeline.shards import manifest
from pipeline.shards.images import check_photo
from pipeline.shards.labels import check_label, decode_label
from pipeline.shards.manifest import MANIFEST, MEMBERS, PHOTO, Table
from pipeline.storage import Folder, again

UNPACK = "compressed tars must be unpacked, because samples are read by their offset"
UNREADABLE = (
    "a link or sparse, and has no bytes of its own in the tar; pack files as they are: tar --hard-dereference "
    "--dereference, without --sparse"
)
META = re.compile(r"__[^/]*__($|/)")  # members that webdataset skips


@dataclass(frozen=True)
class Members:
    """The names, after the first dot, of a sample's photo and label: ("jpg", "seg.png")."""

    image: str
    label: str


@dataclass
class _Tar:
    """What a tar holds.

    rows: of the manifest.
    names: by key, the sample's name in the tar.
    mistakes: a line for each sample that cannot be used.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    names: dict[str, str] = field(default_factory=dict)
    mistakes: list[str] = field(default_factory=list)
    size: int = 0
    sha256: str = ""


class _Reader:
    """A stream that hashes and counts what is read. end: of the last byte that is not zero."""

    def __init__(self, stream: Any):
        self._stream, self.size, self.sha256, self.end = stream, 0, hashlib.sha256(), 0

    def read(self, size: int) -> bytes:
        data = self._stream.read(size)
        if content := data.rstrip(b"\0"):
            self.end = self.size + len(content)
        self.size += len(data)
        self.sha256.update(data)
        return data


def expand(urls: Sequence[str]) -> tuple[Folder, list[str]]:
    """Return the folder and the names of tars: URLs or paths with {000000..000146}, or a folder for all of its tars.

    A path that exists is taken as it is, also with braces in it.
    """
    paths = [path for url in urls for path in ([url] if Path(url).exists() else expand_urls(url))]
    if len(paths) == 1 and not re.search(r"\.(tar|tgz)(\.\w+)?$", paths[0]):
        folder = Folder(paths[0].rstrip("/"))
        names = sorted(name for name in folder.list() if name.endswith(".tar"))
        if not names:
            raise ShardError(f"{folder.where}: no .tar there; name the tars' folder, or the tars; {UNPACK}")
        return folder, names
    folders, names = zip(
        *((path.rpartition("/")[0] or ".", path.rpartition("/")[2]) for path in paths), strict=True
    )
    if len(set(folders)) > 1:
        raise ShardError(f"tars of one folder are expected, got {', '.join(sorted(set(folders)))}")
    if len(set(names)) < len(names):
        raise ShardError(f"a tar is given twice: {next(name for name in names if names.count(name) > 1)}")
    if strange := [name for name in names if not manifest.SHARD_NAME.fullmatch(name)]:
        raise ShardError(f"files whose names end in .tar are expected, got {and_more(strange)}; {UNPACK}")
    return Folder(folders[0]), sorted(names)


def index(
    urls: Sequence[str], members: Members, classes: Sequence[str], split: str, dest: Path | None
) -> int:
    """Write the manifest of tars; return the number of samples.

    urls: see `expand`.
    dest: a folder for the manifest, which then names the tars' folder; its other files stay. Beside the tars if None.

    Raises DatasetError with the first samples that cannot be used, if there are any, or ShardError if the manifest
    cannot be written there. Nothing is written then.
    """
    _require_classes(classes)
    folder, names = expand(urls)
    _require_place(folder if dest is None else Folder(str(dest)), split)
    tables: list[Table] = []
    shards: list[dict[str, Any]] = []
    tar_of: dict[str, str] = {}  # by key
    mistakes: list[str] = []
    with bar(len(names), f"index {folder.where}", unit="shard") as progress:
        for name in names:
            read = partial(_read, folder, name, members, len(classes), split)
            tar = again(read) if folder.is_remote else read()
            mistakes += tar.mistakes
            mistakes += [f"{name}: {key} is in {tar_of[key]}, too" for key in tar.names if key in tar_of]
            tar_of |= dict.fromkeys(tar.names, name)
            if tar.rows:
                tables.append(manifest.table_of(tar.rows))
                shards.append({"name": name, "bytes": tar.size, "sha256": tar.sha256})
            elif tar.mistakes:
                break  # such as a wrong name of a member; the other tars would be read for nothing
            progress.update()
    if mistakes:
        more = "\n  ..." * (len(mistakes) > NUM_NAMED)
        lines = "".join(f"\n  {line}" for line in mistakes[:NUM_NAMED])
        raise DatasetError(f"{folder.where}: {len(mistakes)} samples cannot be used:{lines}{more}")
    if not tables:
        raise DatasetError(
            f"{folder.where}: no sample with .{members.image} and .{members.label} in its tars"
        )
    table = manifest.joined(tables)
    header = {"split": split, "classes": list(classes), "shards": shards, "refused": []}
    header |= {"format": manifest.format_of(table), "members": [members.image, members.label]}
    if dest is not None:
        where = folder.where if folder.is_remote else str(Path(folder.where).absolute())
        manifest.write(dest / MANIFEST, table, header | {"where": where})
    elif folder.is_remote:
        with tempfile.TemporaryDirectory() as scratch:
            manifest.write(Path(scratch, MANIFEST), table, header)
            folder.put(Path(scratch, MANIFEST), MANIFEST)
    else:
        manifest.write(Path(folder.where, MANIFEST), table, header)
    return len(table)


def _require_place(folder: Folder, split: str) -> None:
    """Raise ShardError unless the manifest may be written to a folder; before the tars are read, which takes hours."""
    if not folder.can_write:
        raise ShardError(f"{folder.where} is read only; name a folder for the manifest: --output FOLDER")
    if MANIFEST not in folder.list():
        return
    try:
        _, header = manifest.parse(folder.read(MANIFEST), MANIFEST)
    except ShardError:
        return  # a damaged manifest may be replaced
    if "members" not in header or header["split"] != split:
        owner = (
            f"of the split {header['split']!r}" if "members" in header else "as `dvc repro shard` wrote it"
        )
        raise ShardError(
            f"{folder.name(MANIFEST)} is there already, {owner}; name another folder: --output FOLDER"
        )


def _require_classes(classes: Sequence[str]) -> None:
    if not 1 <= len(classes) <= IGNORE_LABEL:
        raise DatasetError(f"--classes: 1 to {IGNORE_LABEL} names are expected, got {len(classes)}")
    if doubled := sorted({name for name in classes if classes.count(name) > 1}):
        raise DatasetError(f"--classes: each name is expected once; doubled: {and_more(doubled)}")


def _read(folder: Folder, name: str, members: Members, num_classes: int, split: str) -> _Tar:
    """Return what a tar holds; ShardError if it cannot be read to its end."""
    found = _Tar()
    try:
        with folder.stream(name) as stream:
            reader = _Reader(stream)
            sample: str | None = None
            files: dict[str, tuple[int, bytes] | None] = {}
            with tarfile.open(fileobj=reader, mode="r|") as tar:  # pyright: ignore[reportArgumentType, reportCallIssue]
                for entry, entry_sample, member in _entries(tar):
                    if entry_sample != sample:
                        _add(name, sample, files, members, num_classes, split, found)
                        sample, files = entry_sample, {}
                    if member in files:
                        found.mistakes.append(f"{name}: {sample}.{member} is there twice")
                    is_wanted = member in (members.image, members.label)
                    if is_wanted and (entry.issparse() or not entry.isreg()):
                        found.mistakes.append(f"{name}: {entry.name} is {UNREADABLE}")
                        files[member] = None
                        continue
                    data = tar.extractfile(entry).read() if is_wanted else b""  # pyright: ignore
                    files[member] = (entry.offset_data, data)
                    tar.members = []  # pyright: ignore[reportAttributeAccessIssue]  # or every header is kept
                end = tar.offset  # pyright: ignore[reportAttributeAccessIssue]  # of the last member
            _add(name, sample, files, members, num_classes, split, found)
            while reader.read(2**20):
                pass
    except ShardError:
        raise
    except Exception as error:  # stores' clients have their own
        raise ShardError(f"{folder.name(name)} cannot be read as a whole tar: {error}") from error
    # A damaged header ends tarfile's iteration without an error
    if reader.end > end or reader.size < end + tarfile.BLOCKSIZE:
        raise ShardError(f"{folder.name(name)} is damaged or cut off after byte {end}")
    found.size, found.sha256 = reader.size, reader.sha256.hexdigest()
    return found


def _entries(tar: tarfile.TarFile) -> Iterator[tuple[tarfile.TarInfo, str, str]]:
    """Yield each file or link with the name of its sample and of its member."""
    for entry in tar:
        sample, member = base_plus_ext(entry.name)
        is_file = entry.isreg() or entry.islnk() or entry.issym()
        if is_file and sample is not None and member is not None and not META.match(entry.name):
            yield entry, sample, member.lower()


def _add(
    shard: str,
    name: str | None,
    files: dict[str, tuple[int, bytes] | None],
    members: Members,
    num_classes: int,
    split: str,
    found: _Tar,
) -> None:
    """Add a sample's row, or the reason why it cannot be used.

    files: by member, the offset and the bytes of those that are wanted; None for one that is a mistake already.
    """
    if name is None:
        return
    key = name.removeprefix("./").replace("/", "__").replace(".", "_")
    if re.search("[\ud800-\udfff]", key):  # bytes that tarfile cannot decode
        found.mistakes.append(f"{shard}: {name!a} is not UTF-8; rename its members")
        return
    if key in found.names:
        other = found.names[key]
        is_split = "is split: its members are not one after the other"
        found.mistakes.append(
            f"{shard}: {key} {is_split if other == name else f'stands for both {other} and {name}'}"
        )
        return
    found.names[key] = name
    missing = [member for member in (members.image, members.label) if member not in files]
    if missing:
        there = ", ".join(sorted(files))
        found.mistakes.append(f"{shard}: {key} has no .{missing[0]}; it has {there}")
        return
    if not (photo_file := files[members.image]) or not (label_file := files[members.label]):
        return
    (image_offset, image), (label_offset, label) = photo_file, label_file
    where = (f"{shard}: {key}.{members.image}", f"{shard}: {key}.{members.label}")
    try:
        photo = check_photo(image, where[0])
        counts = check_label(decode_label(label, where[1]), photo.size, num_classes, where[1])
        if photo.data != image:
            raise DatasetError(
                f"{where[0]}: a JPEG or an 8-bit RGB or grey PNG is expected; `fcn import` converts others"
            )
    except DatasetError as error:
        found.mistakes.append(str(error))
        return
    height, width = photo.size
    row = {
        "key": key,
        "split": split,
        "shard": shard,
        "height": height,
        "width": width,
        PHOTO: photo.member,
    }
    row |= {"mode": photo.mode, "pixel_sha256": photo.pixel_sha256}
    row |= {"class_pixels": counts[:num_classes], "void_pixels": int(counts[IGNORE_LABEL])}
    for kind, offset, data in zip(MEMBERS, (image_offset, label_offset), (image, label), strict=True):
        row |= {
            f"{kind}_offset": offset,
            f"{kind}_size": len(data),
            f"{kind}_sha256": hashlib.sha256(data).digest(),
        }
    found.rows.append(row)
