"""pipeline/shards/verify.py: every damage to a set of shards is said, and what was found whole is not read again."""

import io
import json
import os
import pickle
import random
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.errors import ShardError
from pipeline.shards.manifest import MANIFEST
from pipeline.shards.read import all_damage, open_shards
from pipeline.storage import Folder
from tests.small_shards import KEYS, write

FIRST, SECOND, LAST = (f"shard-00000{number}.tar" for number in range(3))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("whole") / "train")


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    """A good folder, to be damaged."""
    return Path(shutil.copytree(whole, tmp_path / "train"))


# --- structural damage, as a disk, a copy or another program does it


def rewritten(path: Path, change: Callable[[list[tuple[tarfile.TarInfo, bytes]]], None]) -> None:
    """The tar with other members, as a program that writes tars would save it."""
    with tarfile.open(path) as tar:
        members = [(member, tar.extractfile(member).read()) for member in tar]  # pyright: ignore
    change(members)
    with tarfile.open(path, "w") as tar:
        for member, data in members:
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


def swapped(folder: Path, one: str, other: str) -> None:
    (folder / one).rename(folder / "spare")
    (folder / other).rename(folder / one)
    (folder / "spare").rename(folder / other)


def cut(path: Path, size: int) -> None:
    os.truncate(path, size)


def zeroed(path: Path, start: int, length: int) -> None:
    data = bytearray(path.read_bytes())
    data[start : start + length] = bytes(length)
    path.write_bytes(data)


class Bomb:
    """Unpickled, it would leave a file."""

    def __reduce__(self):
        return os.mkdir, ("executed",)


def with_member(path: Path, name: str, data: bytes) -> None:
    rewritten(path, lambda members: members.append((tarfile.TarInfo(name), data)))


STRUCTURAL: dict[str, Callable[[Path], object]] = {
    "cut in a header": lambda f: cut(f / FIRST, 300),
    "cut at a member's end": lambda f: cut(f / FIRST, 1024),
    "cut in an image": lambda f: cut(f / FIRST, 700),
    "cut before the end mark": lambda f: cut(f / FIRST, (f / FIRST).stat().st_size - 512),
    "empty": lambda f: cut(f / LAST, 0),
    "a zeroed header": lambda f: zeroed(f / FIRST, 0, 512),
    "a zeroed block": lambda f: zeroed(f / SECOND, 512, 128),
    "a missing shard": lambda f: (f / SECOND).unlink(),
    "all shards missing": lambda f: [path.unlink() for path in f.glob("*.tar")],
    "two swapped": lambda f: swapped(f, FIRST, SECOND),
    "one twice, the other gone": lambda f: shutil.copyfile(f / FIRST, f / SECOND),
    "an extra shard": lambda f: shutil.copyfile(f / FIRST, f / "shard-000003.tar"),
    "an extra folder": lambda f: (f / "more").mkdir(),
    "a mask missing": lambda f: rewritten(f / FIRST, lambda members: members.pop(1)),
    "an image missing": lambda f: rewritten(f / FIRST, lambda members: members.pop(0)),
    "a sample less": lambda f: rewritten(f / FIRST, lambda members: members.__delitem__(slice(0, 2))),
    "a key twice": lambda f: rewritten(f / FIRST, lambda members: members.extend(members[:2])),
    "samples in another order": lambda f: rewritten(f / FIRST, lambda members: members.reverse()),
    "a member more, pickled": lambda f: with_member(f / FIRST, "x.pyd", pickle.dumps(Bomb())),
    "a member of a command's name": lambda f: with_member(f / FIRST, "pipe:mkdir executed", b""),
    "no manifest": lambda f: (f / MANIFEST).unlink(),
    "an empty manifest": lambda f: cut(f / MANIFEST, 0),
}


@pytest.mark.parametrize("name", STRUCTURAL)
def test_no_structural_damage_is_accepted(folder: Path, name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(folder.parent)
    STRUCTURAL[name](folder)
    assert list(all_damage(folder))
    with pytest.raises(ShardError):
        open_shards(folder)
    assert not (folder.parent / "executed").exists()


def test_none_of_200_flipped_bits_is_accepted(folder: Path):
    draw, refused = random.Random(4), 0
    paths = sorted(folder.iterdir())
    for number in range(200):
        path = paths[number % len(paths)]
        good = path.read_bytes()
        bad = bytearray(good)
        bad[draw.randrange(len(good))] ^= 1 << draw.randrange(8)
        path.write_bytes(bad)
        with pytest.raises(ShardError):
            open_shards(folder)
        refused += 1
        path.write_bytes(good)
    assert refused == 200
    assert len(open_shards(folder)) == len(KEYS)


@pytest.mark.parametrize("url", ["pipe:mkdir executed", "pipe:mkdir executed; cat {}", "|mkdir executed"])
def test_a_url_that_is_a_command_is_never_executed(
    folder: Path, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ShardError, match=r"missing|cannot be listed"):
        open_shards(url.format(folder / FIRST))
    assert not (tmp_path / "executed").exists()


def test_a_location_that_is_a_command_is_never_executed(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(folder.parent)
    (folder / "location").write_text("pipe:mkdir executed")
    with pytest.raises(ShardError, match="cannot be read"):
        open_shards(folder)
    assert not (folder.parent / "executed").exists()


def test_a_folder_of_another_split_is_refused(folder: Path):
    assert len(open_shards(folder, split="train")) == len(KEYS)
    with pytest.raises(ShardError, match=f"{folder} holds the split 'train', expected 'val'; run"):
        open_shards(folder, split="val")


# --- all of it is said


def test_everything_that_is_damaged_is_said_with_the_samples_it_hurts(folder: Path):
    opened = open_shards(folder)
    row = opened.table.slice(4, 1).to_pylist()[0]
    zeroed(folder / SECOND, row["png_offset"], row["png_size"])
    cut(folder / LAST, 0)
    (folder / FIRST).unlink()
    (folder / "notes.txt").touch()
    missing, extra, second, hurt_second, last, hurt_last = all_damage(folder)
    assert missing == f"{folder}: shards missing: {FIRST}"
    assert extra == f"{folder}: not in the manifest: notes.txt"
    assert second.startswith(f"{folder / SECOND}: sha256 ")
    assert hurt_second == f"  1 of 3 samples damaged: {opened.keys[4]}.png"
    assert last.startswith(f"{folder / LAST}: 0 bytes, expected ")
    assert hurt_last == f"  1 of 1 samples damaged: {opened.keys[6]}.jpg, {opened.keys[6]}.png"


def fcn(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pipeline.cli.main", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_command_says_what_is_damaged_and_exits_with_1(folder: Path):
    done = fcn("shards", "verify", str(folder))
    assert (done.returncode, done.stdout) == (0, f"{folder}: whole\n")
    (folder / FIRST).unlink()
    done = fcn("shards", "verify", str(folder))
    assert (done.returncode, done.stdout) == (1, f"{folder}: shards missing: {FIRST}\n")
    done = fcn("shards", "verify", str(folder.parent / "none"))
    assert done.returncode == 2
    assert "none: no files there; give the folder of one split" in done.stderr


# --- what was found whole


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The shards whose every byte was read since the list was cleared."""
    names: list[str] = []
    sha256 = Folder.sha256
    monkeypatch.setattr(Folder, "sha256", lambda folder, file: names.append(file) or sha256(folder, file))
    return names


def test_what_was_found_whole_is_not_read_again_until_it_changes(
    folder: Path, tmp_path: Path, read: list[str]
):
    cache = tmp_path / "cache"
    open_shards(folder, cache=cache)
    assert read == [FIRST, SECOND, LAST]
    del read[:]
    open_shards(folder, cache=cache)
    assert read == []
    os.utime(folder / SECOND, ns=(0, time.time_ns()))
    open_shards(folder, cache=cache)
    assert read == [SECOND]
    del read[:]
    open_shards(folder, cache=cache, anew=True)
    assert read == [FIRST, SECOND, LAST]


def test_a_damaged_shard_is_found_though_it_was_whole_before(folder: Path, tmp_path: Path):
    open_shards(folder, cache=tmp_path / "cache")
    zeroed(folder / SECOND, 512, 128)
    for _ in range(2):
        with pytest.raises(ShardError, match=f"{folder / SECOND}: sha256"):
            open_shards(folder, cache=tmp_path / "cache")


def test_other_shards_in_the_same_place_are_read(folder: Path, tmp_path: Path, read: list[str]):
    open_shards(folder, cache=tmp_path / "cache")
    del read[:]
    write(folder, seed=8)
    del read[:]
    open_shards(folder, cache=tmp_path / "cache")
    assert read == [FIRST, SECOND, LAST]


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"shard-000000.tar": 3}'])
def test_a_cache_that_is_not_ours_is_as_none(folder: Path, tmp_path: Path, read: list[str], content: str):
    cache = tmp_path / "cache"
    open_shards(folder, cache=cache)
    del read[:]
    (file,) = cache.iterdir()
    file.write_text(content)
    open_shards(folder, cache=cache)
    assert read == [FIRST, SECOND, LAST]
    assert set(json.loads(file.read_text())) == {FIRST, SECOND, LAST}


def test_two_folders_do_not_share_what_was_found(folder: Path, tmp_path: Path, read: list[str]):
    open_shards(folder, cache=tmp_path / "cache")
    del read[:]
    open_shards(Path(shutil.copytree(folder, tmp_path / "copy")), cache=tmp_path / "cache")
    assert read == [FIRST, SECOND, LAST]
