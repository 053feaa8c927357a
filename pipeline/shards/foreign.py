"""The manifest of anyone's WebDataset tars, which are read once, from first to last byte, and not written again.

A sample is what webdataset calls one: the consecutive members of a tar with the same name up to the first dot.
"""

import hashlib
import re
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from webdataset.shardlists import expand_urls
from webdataset.tariterators import base_plus_ext

from fcn import IGNORE_LABEL
from pipeline.errors import DatasetError, ShardError
from pipeline.files import NUM_NAMED
from pipeline.progress import bar
from pipeline.shards import manifest
from pipeline.shards.labels import decode_label
from pipeline.shards.manifest import MANIFEST, MEMBERS, PHOTO, Table
from pipeline.shards.sample import Sample
from pipeline.storage import Folder

META = re.compile(r"__[^/]*__($|/)")  # members that webdataset skips
TAIL_BYTES = 2**15  # more than the zeros at the end of any tar


@dataclass(frozen=True)
class Members:
    """The names, after the first dot, of a sample's photo and label: ("jpg", "seg.png")."""

    image: str
    label: str


@dataclass
class _Found:
    """What the tars hold so far. rows: of the tar in hand. mistakes: a line for each sample that cannot be used."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    shards: list[dict[str, Any]] = field(default_factory=list)
    where: dict[str, str] = field(default_factory=dict)  # the shard of each key
    mistakes: list[str] = field(default_factory=list)


class _Reader:
    """A stream that hashes and counts what is read, and keeps the last bytes."""

    def __init__(self, stream: Any):
        self._stream, self.size, self.sha256, self.tail = stream, 0, hashlib.sha256(), b""

    def read(self, size: int) -> bytes:
        data = self._stream.read(size)
        self.size += len(data)
        self.sha256.update(data)
        self.tail = (self.tail + data)[-TAIL_BYTES:]
        return data


def expand(urls: Sequence[str]) -> tuple[Folder, list[str]]:
    """Return the folder and the names of tars: URLs or paths with {000000..000146}, or a folder for all of its tars.

    A path that exists is taken as it is, also with braces in it.
    """
    paths = [path for url in urls for path in ([url] if Path(url).exists() else expand_urls(url))]
    if len(paths) == 1 and not paths[0].endswith(".tar"):
        folder = Folder(paths[0].rstrip("/"))
        names = sorted(name for name in folder.list() if name.endswith(".tar"))
        if not names:
            raise ShardError(f"{folder.where}: no tars there; name their folder, or the tars themselves")
        return folder, names
    folders, names = zip(
        *((path.rpartition("/")[0] or ".", path.rpartition("/")[2]) for path in paths), strict=True
    )
    if len(set(folders)) > 1:
        raise ShardError(f"tars of one folder are expected, got {', '.join(sorted(set(folders)))}")
    if len(set(names)) < len(names):
        raise ShardError(f"a tar is given twice: {next(name for name in names if names.count(name) > 1)}")
    return Folder(folders[0]), sorted(names)


def index(
    urls: Sequence[str], members: Members, classes: Sequence[str], split: str, dest: Path | None
) -> int:
    """Write the manifest of tars; return the number of samples.

    urls: see `expand`.
    dest: a folder for the manifest, which then names the tars' folder; its other files stay. Beside the tars if None.

    Raises DatasetError with the first samples that cannot be used, if there are any; nothing is written then.
    """
    folder, names = expand(urls)
    found = _Found()
    with bar(len(names), f"index {folder.where}", unit="shard") as progress:
        for name in names:
            _read(folder, name, members, len(classes), split, found)
            progress.update()
    if found.mistakes:
        more = "\n  ..." * (len(found.mistakes) > NUM_NAMED)
        lines = "".join(f"\n  {line}" for line in found.mistakes[:NUM_NAMED])
        raise DatasetError(f"{folder.where}: {len(found.mistakes)} samples cannot be used:{lines}{more}")
    if not found.tables:
        raise DatasetError(
            f"{folder.where}: no sample with .{members.image} and .{members.label} in its tars"
        )
    table = manifest.joined(found.tables)
    header = {"split": split, "classes": list(classes), "shards": found.shards, "refused": []}
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


def _read(folder: Folder, name: str, members: Members, num_classes: int, split: str, found: _Found) -> None:
    """Add the samples of a tar."""
    with folder.stream(name) as stream:
        reader, end = _Reader(stream), 0
        key, files = None, {}
        try:
            with tarfile.open(fileobj=reader, mode="r|") as tar:  # pyright: ignore[reportArgumentType, reportCallIssue]
                for entry, sample, member in _entries(tar):
                    if sample != key:
                        _add(name, key, files, members, num_classes, split, found)
                        key, files = sample, {}
                    if member in files:
                        found.mistakes.append(f"{name}: {key}.{member} is there twice")
                    data = tar.extractfile(entry).read() if member in (members.image, members.label) else b""  # pyright: ignore
                    files[member] = (entry.offset_data, data)
                    end = entry.offset_data + entry.size
                    tar.members = []  # pyright: ignore[reportAttributeAccessIssue]  # or every header is kept
        except (tarfile.TarError, EOFError, OSError) as error:
            raise ShardError(f"{folder.name(name)} is not a whole tar: {error}") from error
        _add(name, key, files, members, num_classes, split, found)
        while reader.read(2**20):
            pass
    rest = reader.size - end - -end % tarfile.BLOCKSIZE
    # A damaged header ends tarfile's iteration without an error
    if rest < tarfile.BLOCKSIZE or rest > TAIL_BYTES or any(reader.tail[-rest:]):
        raise ShardError(f"{folder.name(name)} is damaged or cut off after byte {end}")
    if not found.rows:
        return
    found.tables.append(manifest.table_of(found.rows))
    found.rows = []
    found.shards.append({"name": name, "bytes": reader.size, "sha256": reader.sha256.hexdigest()})


def _entries(tar: tarfile.TarFile) -> Iterator[tuple[tarfile.TarInfo, str, str]]:
    """Yield each file with its sample's key and its member name."""
    for entry in tar:
        key, member = base_plus_ext(entry.name)
        if entry.isreg() and key is not None and member is not None and not META.match(entry.name):
            yield entry, key.removeprefix("./").replace("/", "__"), member.lower()


def _add(
    shard: str,
    key: str | None,
    files: dict[str, tuple[int, bytes]],
    members: Members,
    num_classes: int,
    split: str,
    found: _Found,
) -> None:
    """Add a sample's row, or the reason why it cannot be used."""
    if key is None:
        return
    missing = [member for member in (members.image, members.label) if member not in files]
    if key in found.where:
        earlier = found.where[key]
        kind = "split: its members are not one after the other" if earlier == shard else f"in {earlier}, too"
        found.mistakes.append(f"{shard}: {key} is {kind}")
        return
    found.where[key] = shard
    if missing:
        there = ", ".join(sorted(files))
        found.mistakes.append(f"{shard}: {key} has no .{missing[0]}; it has {there}")
        return
    (image_offset, image), (label_offset, label) = files[members.image], files[members.label]
    where = (f"{shard}: {key}.{members.image}", f"{shard}: {key}.{members.label}")
    try:
        sample = Sample.checked(key, image, decode_label(label, where[1]), num_classes, where)
        if sample.image != image:
            raise DatasetError(
                f"{where[0]}: a JPEG or an 8-bit RGB or grey PNG is expected; `fcn import` converts others"
            )
    except DatasetError as error:
        found.mistakes.append(str(error))
        return
    height, width = sample.photo.size
    row = {
        "key": key,
        "split": split,
        "shard": shard,
        "height": height,
        "width": width,
        PHOTO: sample.photo.member,
    }
    row |= {"mode": sample.photo.mode, "pixel_sha256": sample.photo.pixel_sha256}
    row |= {"class_pixels": sample.counts[:num_classes], "void_pixels": int(sample.counts[IGNORE_LABEL])}
    for kind, offset, data in zip(MEMBERS, (image_offset, label_offset), (image, label), strict=True):
        row |= {
            f"{kind}_offset": offset,
            f"{kind}_size": len(data),
            f"{kind}_sha256": hashlib.sha256(data).digest(),
        }
    found.rows.append(row)
