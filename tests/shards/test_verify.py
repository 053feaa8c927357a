"""pipeline/shards/verify.py: every damage to a set of shards is found and named; intact shards are not read again."""

import io
import json
import os
import pickle
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import ShardError
from pipeline.shards.manifest import MANIFEST
from pipeline.shards.read import all_damage, open_shards
from pipeline.storage import Folder
from tests.small_shards import KEYS, write

FIRST, SECOND, LAST = SHARDS = [f"shard-00000{number}.tar" for number in range(3)]


# --- structural damage, as a disk, a copy or another program causes it


def rewrite(path: Path, change: Callable[[list[tuple[tarfile.TarInfo, bytes]]], object]) -> None:
    """Save the tar with other members, as a program that writes tars would."""
    with tarfile.open(path) as tar:
        members = [(member, tar.extractfile(member).read()) for member in tar]  # pyright: ignore
    change(members)
    with tarfile.open(path, "w") as tar:
        for member, data in members:
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


def rewrite_manifest(path: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    """Save the manifest, header and all, as another Parquet writer would."""
    pq.write_table(change(pq.read_table(path)), path)


def swap(folder: Path, one: str, other: str) -> None:
    (folder / one).rename(folder / "spare")
    (folder / other).rename(folder / one)
    (folder / "spare").rename(folder / other)


def zero(path: Path, start: int, length: int) -> None:
    data = bytearray(path.read_bytes())
    data[start : start + length] = bytes(length)
    path.write_bytes(data)


def append(path: Path, data: bytes) -> None:
    with path.open("ab") as file:
        file.write(data)


def copy_from_other_seed(folder: Path, name: str) -> None:
    shutil.copyfile(write(folder.parent / "other", seed=4) / name, folder / name)


class Bomb:
    """Unpickled, it would make a folder."""

    def __reduce__(self):
        return os.mkdir, ("executed",)


def add_member(path: Path, name: str, data: bytes) -> None:
    rewrite(path, lambda members: members.append((tarfile.TarInfo(name), data)))


DAMAGE: dict[str, tuple[str, Callable[[Path], object]]] = {  # by name: the file that is named, and the damage
    "cut in a header": (FIRST, lambda f: os.truncate(f / FIRST, 300)),
    "cut at a member's end": (FIRST, lambda f: os.truncate(f / FIRST, 1024)),
    "cut in an image": (FIRST, lambda f: os.truncate(f / FIRST, 700)),
    "cut in the end mark": (FIRST, lambda f: os.truncate(f / FIRST, (f / FIRST).stat().st_size - 512)),
    "empty": (LAST, lambda f: os.truncate(f / LAST, 0)),
    "longer": (LAST, lambda f: append(f / LAST, b"\0")),
    "a zeroed header": (FIRST, lambda f: zero(f / FIRST, 0, 512)),
    "a zeroed block": (SECOND, lambda f: zero(f / SECOND, 512, 128)),
    "a missing shard": (SECOND, lambda f: (f / SECOND).unlink()),
    "all shards missing": (LAST, lambda f: [path.unlink() for path in f.glob("*.tar")]),
    "two swapped": (FIRST, lambda f: swap(f, FIRST, SECOND)),
    "a long and a short one swapped": (FIRST, lambda f: swap(f, FIRST, LAST)),
    "one twice, the other gone": (SECOND, lambda f: shutil.copyfile(f / FIRST, f / SECOND)),
    "a shard of another seed": (FIRST, lambda f: copy_from_other_seed(f, FIRST)),
    "a manifest of another seed": (FIRST, lambda f: copy_from_other_seed(f, MANIFEST)),
    "an extra shard": ("shard-000003.tar", lambda f: shutil.copyfile(f / FIRST, f / "shard-000003.tar")),
    "an extra file": ("notes.txt", lambda f: (f / "notes.txt").touch()),
    "an extra folder": ("more", lambda f: (f / "more").mkdir()),
    "a mask missing": (FIRST, lambda f: rewrite(f / FIRST, lambda members: members.pop(1))),
    "an image missing": (FIRST, lambda f: rewrite(f / FIRST, lambda members: members.pop(0))),
    "a sample less": (FIRST, lambda f: rewrite(f / FIRST, lambda m: m.__delitem__(slice(0, 2)))),
    "a key twice": (FIRST, lambda f: rewrite(f / FIRST, lambda members: members.extend(members[:2]))),
    "samples in another order": (FIRST, lambda f: rewrite(f / FIRST, lambda members: members.reverse())),
    "a member more, pickled": (FIRST, lambda f: add_member(f / FIRST, "x.pyd", pickle.dumps(Bomb()))),
    "a member of a command's name": (FIRST, lambda f: add_member(f / FIRST, "pipe:mkdir executed", b"")),
    "no manifest": (MANIFEST, lambda f: (f / MANIFEST).unlink()),
    "an empty manifest": (MANIFEST, lambda f: os.truncate(f / MANIFEST, 0)),
    "a longer manifest": (MANIFEST, lambda f: append(f / MANIFEST, b"\0")),
    "a manifest of another format": (MANIFEST, lambda f: (f / MANIFEST).write_bytes(b"PAR1")),
    "a seal alone": (MANIFEST, lambda f: (f / MANIFEST).write_bytes(b'"seal": "' + b"0" * 64 + b'"')),
    "the manifest saved again": (MANIFEST, lambda f: rewrite_manifest(f / MANIFEST, lambda t: t)),
    "a row less": (MANIFEST, lambda f: rewrite_manifest(f / MANIFEST, lambda t: t.slice(1))),
    "a row twice": (
        MANIFEST,
        lambda f: rewrite_manifest(f / MANIFEST, lambda t: pa.concat_tables([t, t.slice(0, 1)])),
    ),
    "a column less": (
        MANIFEST,
        lambda f: rewrite_manifest(f / MANIFEST, lambda t: t.drop_columns(["jpg_offset"])),
    ),
    "no header": (
        MANIFEST,
        lambda f: rewrite_manifest(f / MANIFEST, lambda t: t.replace_schema_metadata({})),
    ),
    "a location that is a command": (
        "pipe:mkdir executed",
        lambda f: (f / "location").write_text("pipe:mkdir executed"),
    ),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_no_structural_damage_is_accepted(folder: Path, name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(folder.parent)
    file, damage = DAMAGE[name]
    damage(folder)
    with pytest.raises(ShardError, match=file) as caught:
        open_shards(folder)
    if "location" not in name:
        assert str(folder) in str(caught.value)
        assert "run `dvc repro" in str(caught.value)
        assert file in "".join(all_damage(folder))
    assert not (folder.parent / "executed").exists()


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_a_bit_flipped_or_a_file_cut_anywhere_is_found_and_the_file_named(whole: Path, data: st.DataObject):
    path = whole / data.draw(st.sampled_from([MANIFEST, *SHARDS]))
    intact = path.read_bytes()
    index = data.draw(st.integers(0, len(intact) - 1))
    damaged = bytearray(intact)
    if data.draw(st.booleans()):
        del damaged[index:]
    else:
        damaged[index] ^= 1 << data.draw(st.integers(0, 7))
    try:
        path.write_bytes(damaged)
        with pytest.raises(ShardError, match=f"{path}.*run `dvc repro -f shard`"):
            open_shards(whole)
    finally:
        path.write_bytes(intact)


@pytest.mark.parametrize("url", ["pipe:mkdir executed", "pipe:mkdir executed; cat {}", "|mkdir executed"])
def test_a_url_that_is_a_command_is_never_executed(
    folder: Path, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ShardError, match=r"missing|cannot be listed"):
        open_shards(url.format(folder / FIRST))
    assert not (tmp_path / "executed").exists()


# --- the report of all damage


def test_all_damage_is_reported_with_the_samples_it_hurts(folder: Path):
    shards = open_shards(folder)
    row = shards.table.slice(4, 1).to_pylist()[0]
    zero(folder / SECOND, row["png_offset"], row["png_size"])
    os.truncate(folder / LAST, 0)
    (folder / FIRST).unlink()
    (folder / "notes.txt").touch()
    missing, extra, second, samples_of_second, last, samples_of_last = all_damage(folder)
    assert missing.endswith(FIRST)
    assert extra.endswith("notes.txt")
    assert second.startswith(f"{folder / SECOND}: sha256 ")
    assert samples_of_second == f"  1 of 3 samples damaged: {shards.keys[4]}.png"
    assert last.startswith(f"{folder / LAST}: 0 bytes, expected ")
    assert samples_of_last == f"  1 of 1 samples damaged: {shards.keys[6]}.jpg, {shards.keys[6]}.png"


def test_the_command_prints_the_damage_and_exits_with_1_or_2_without_shards(folder: Path):
    def verify(path: Path) -> tuple[int, str]:
        command = [sys.executable, "-m", "pipeline.cli.main", "shards", "verify", str(path)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        return done.returncode, done.stdout + done.stderr

    assert verify(folder) == (0, f"{folder}: whole\n")
    (folder / FIRST).unlink()
    code, output = verify(folder)
    assert (code, FIRST in output) == (1, True)
    code, output = verify(folder.parent / "none")
    assert (code, f"{folder.parent / 'none'}: no files there" in output) == (2, True)


# --- the cache of intact shards


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The shards whose every byte was read since the list was cleared."""
    names: list[str] = []
    sha256 = Folder.sha256
    monkeypatch.setattr(Folder, "sha256", lambda folder, file: names.append(file) or sha256(folder, file))
    return names


def test_intact_shards_are_not_read_again_until_they_change(folder: Path, tmp_path: Path, read: list[str]):
    cache = tmp_path / "cache"
    open_shards(folder, cache=cache)
    assert read == SHARDS
    del read[:]
    open_shards(folder, cache=cache)
    assert read == []
    os.utime(folder / SECOND, ns=(0, time.time_ns()))
    open_shards(folder, cache=cache)
    assert read == [SECOND]
    del read[:]
    open_shards(folder, cache=cache, verify_all=True)
    assert read == SHARDS


def test_a_damaged_shard_is_found_though_it_was_intact_before(folder: Path, tmp_path: Path):
    open_shards(folder, cache=tmp_path / "cache")
    zero(folder / SECOND, 512, 128)
    for _ in range(2):
        with pytest.raises(ShardError, match=f"{folder / SECOND}: sha256"):
            open_shards(folder, cache=tmp_path / "cache")


def test_other_shards_in_the_same_folder_and_the_same_ones_in_another_are_read(
    folder: Path, tmp_path: Path, read: list[str]
):
    cache = tmp_path / "cache"
    open_shards(folder, cache=cache)
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    write(folder, seed=8)
    for other in (folder, copy):
        del read[:]
        open_shards(other, cache=cache)
        assert read == SHARDS


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"shard-000000.tar": 3}'])
def test_a_damaged_cache_is_replaced(folder: Path, tmp_path: Path, read: list[str], content: str):
    cache = tmp_path / "cache"
    open_shards(folder, cache=cache)
    del read[:]
    (file,) = cache.iterdir()
    file.write_text(content)
    open_shards(folder, cache=cache)
    assert read == SHARDS
    assert set(json.loads(file.read_text())) == set(SHARDS)
    assert len(open_shards(folder)) == len(KEYS)
