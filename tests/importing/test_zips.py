"""Zips of many tools are unpacked; damaged ones and those of other kinds are refused with their remedy."""

import resource
import unicodedata
import zipfile
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import ArchiveError
from pipeline.importing.source import open_source
from pipeline.importing.zips import extract_zip


def packed(
    path: Path, *members: tuple[str | zipfile.ZipInfo, bytes], method: int = zipfile.ZIP_STORED
) -> Path:
    with zipfile.ZipFile(path, "w", method) as file:
        for name, content in members:
            file.writestr(name, content)
    return path


def content_of(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


def without_the_flag(path: Path) -> Path:
    """Clear the flag that states UTF-8, in both headers of each member."""
    data = bytearray(path.read_bytes())
    for mark, offset in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        start = data.find(mark)
        while start >= 0:
            data[start + offset + 1] &= ~0x08
            start = data.find(mark, start + 1)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_utf8_names_without_the_flag_keep_their_letters(form: str, tmp_path: Path):
    name = unicodedata.normalize(form, "ph\u00f6tos/\u00e9 \u65e5\u672c_0.jpg")
    path = without_the_flag(packed(tmp_path / "a.zip", (name, b"1"), ("plain.jpg", b"2")))
    extract_zip(path, tmp_path / "out")
    assert content_of(tmp_path / "out") == {name: b"1", "plain.jpg": b"2"}


def test_names_of_old_dos_tools_keep_their_letters(tmp_path: Path):
    data = packed(tmp_path / "a.zip", ("M#nchen.jpg", b"1")).read_bytes()
    (tmp_path / "a.zip").write_bytes(data.replace(b"M#nchen", b"M\x81nchen"))
    extract_zip(tmp_path / "a.zip", tmp_path / "out")
    assert content_of(tmp_path / "out") == {"M\u00fcnchen.jpg": b"1"}


def test_a_folder_may_be_listed_twice(tmp_path: Path):
    path = tmp_path / "a.zip"
    with pytest.warns(UserWarning, match="Duplicate"):
        packed(path, ("images/", b""), ("images/a.jpg", b"1"), ("images/", b""))
    extract_zip(path, tmp_path / "out")
    assert content_of(tmp_path / "out") == {"images/a.jpg": b"1"}


@pytest.mark.parametrize(
    "names",
    [("Img/a", "img/b"), ("\u00e9.jpg", "e\u0301.jpg"), ("stra\u00dfe", "STRASSE"), ("a/b", "a//b")],
)
def test_names_that_are_one_file_on_other_systems_are_refused_as_in_tars(
    names: tuple[str, str], tmp_path: Path
):
    path = packed(tmp_path / "a.zip", *((name, b"x") for name in names))
    with pytest.raises(ArchiveError, match=r"a\.zip"):
        extract_zip(path, tmp_path / "out")
    assert {entry.name for entry in tmp_path.iterdir()} == {"a.zip"}


def damaged(path: Path, kind: str) -> Path:
    noise = np.random.default_rng(0).integers(0, 255, 5000, dtype=np.uint8).tobytes()
    method = {"lzma": zipfile.ZIP_LZMA, "bzip2": zipfile.ZIP_BZIP2}.get(kind, zipfile.ZIP_DEFLATED)
    data = bytearray(packed(path, ("\u00e9.jpg", noise), method=method).read_bytes())
    if kind == "names":
        path.write_bytes(bytes(data).replace("\u00e9".encode(), b"\xff\xfe"))
    else:
        data[60:200] = bytes(140)
        path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("kind", "remedy"),
    [("lzma", "download"), ("bzip2", "download"), ("deflate", "download"), ("names", "unpack")],
)
def test_damage_of_any_compression_and_names_that_are_not_utf8_are_refused(
    kind: str, remedy: str, tmp_path: Path
):
    with pytest.raises(ArchiveError, match=rf"a\.zip.*{remedy}"):
        extract_zip(damaged(tmp_path / "a.zip", kind), tmp_path / "out")


def test_backslashes_a_password_and_an_unknown_compression_are_refused_with_what_to_do(tmp_path: Path):
    packed(tmp_path / "slash.zip", ("images\\a.jpg", b"1"))
    data = bytearray(packed(tmp_path / "plain.zip", ("a.jpg", b"1")).read_bytes())
    central = data.find(b"PK\1\2")
    for name, offsets, value in (("password", (6, central + 8), 1), ("deflate64", (8, central + 10), 9)):
        changed = bytearray(data)
        for offset in offsets:
            changed[offset] |= value
        (tmp_path / f"{name}.zip").write_bytes(changed)
    for name in ("slash", "password", "deflate64"):
        with pytest.raises(ArchiveError, match=rf"{name}\.zip.*give the folder"):
            extract_zip(tmp_path / f"{name}.zip", tmp_path / "out")


def test_a_full_disk_is_not_called_damage(tmp_path: Path):
    noise = np.random.default_rng(0).integers(0, 255, 200_000, dtype=np.uint8).tobytes()
    packed(tmp_path / "a.zip", ("a.jpg", noise))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))  # the system's own error on writing more
    try:
        with pytest.raises(ArchiveError) as error:
            extract_zip(tmp_path / "a.zip", tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "download" not in str(error.value)
    assert {entry.name for entry in tmp_path.iterdir()} == {"a.zip"}


@pytest.mark.parametrize(
    ("kind", "start"),
    [
        ("xz", b"\xfd7zXZ\0"),
        ("zstd", b"\x28\xb5\x2f\xfd"),
        ("7z", b"7z\xbc\xaf\x27\x1c"),
        ("rar", b"Rar!\x1a\7"),
    ],
)
def test_archives_of_other_kinds_are_named_with_what_to_do(kind: str, start: bytes, tmp_path: Path):
    path = tmp_path / "export"
    path.write_bytes(start + bytes(2000))
    with (
        pytest.raises(ArchiveError, match=rf"export.* {kind}.*give the folder"),
        open_source(path, tmp_path / "work"),
    ):
        pass
