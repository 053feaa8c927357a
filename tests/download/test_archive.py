import bz2
import gzip
import io
import os
import re
import resource
import signal
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.download import archive as module
from pipeline.download.archive import extract
from pipeline.errors import ArchiveError
from tests.conftest import ROOT

ZEROS = bytes(512)
END = ZEROS * 2


def header(
    name: str | bytes,
    data: bytes = b"",
    kind: bytes = tarfile.REGTYPE,
    link: str = "",
    size: int | None = None,
    raw_size: bytes | None = None,
) -> bytes:
    """One 512-byte ustar header made by hand, for what tarfile would refuse to write."""
    raw_name = name if isinstance(name, bytes) else name.encode()
    block = bytearray(512)
    block[0 : len(raw_name)] = raw_name
    block[100:108] = b"0000644\0"
    block[108:124] = b"0000000\0" * 2
    block[124:136] = raw_size or b"%011o\0" % (len(data) if size is None else size)
    block[136:148] = b"00000000000\0"
    block[156:157] = kind
    block[157 : 157 + len(link)] = link.encode()
    block[257:265] = b"ustar\x0000"
    block[148:156] = b"%06o\0 " % (sum(block[:148]) + 8 * 32 + sum(block[156:]))
    return bytes(block)


def member(name: str | bytes, data: bytes = b"", kind: bytes = tarfile.REGTYPE, link: str = "") -> bytes:
    return header(name, data, kind, link) + data + bytes(-len(data) % 512)


def tar(*members: bytes) -> bytes:
    return b"".join(members) + END


def pax(**records: str | bytes) -> bytes:
    """An extended header for the member after it."""
    lines = b""
    for key, value in records.items():
        text = b" %s=%s\n" % (key.encode(), value if isinstance(value, bytes) else value.encode())
        length = len(text) + 1
        while len(str(length)) + len(text) != length:
            length += 1
        lines += str(length).encode() + text
    return member("pax", lines, tarfile.XHDTYPE)


def folder(name: str) -> bytes:
    return member(name, kind=tarfile.DIRTYPE)


def link(name: str, target: str, kind: bytes = tarfile.SYMTYPE) -> bytes:
    return member(name, kind=kind, link=target)


def cve_2025_4517() -> bytes:
    """The published chain: a path too long to resolve hides that its links climb out of the folder."""
    file = io.BytesIO()
    long_name, steps, path = "d" * 247, "abcdefghijklmnop", ""
    with tarfile.open(fileobj=file, mode="w") as archive:

        def add(name: str, kind: bytes, target: str = "", data: bytes = b""):
            info = tarfile.TarInfo(name)
            info.type, info.linkname, info.size = kind, target, len(data)
            archive.addfile(info, io.BytesIO(data))

        for step in steps:
            add(path + long_name, tarfile.DIRTYPE)
            add(path + step, tarfile.SYMTYPE, long_name)
            path += long_name + "/"
        chain = "/".join(steps) + "/" + "l" * 254
        add(chain, tarfile.SYMTYPE, "../" * len(steps))
        add("escape", tarfile.SYMTYPE, chain + "/../outside")
        add("evil", tarfile.LNKTYPE, "escape/evil")
        add("evil", tarfile.REGTYPE, data=b"escaped")
    return file.getvalue()


def sparse() -> bytes:
    block = bytearray(header("huge", kind=tarfile.GNUTYPE_SPARSE))
    block[483:495] = b"77777777777\0"  # claims 8 GiB
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block) + END


BAD = b"hostile"
HOSTILE: dict[str, bytes] = {
    "parent": tar(member("../escaped", BAD)),
    "parent_inside": tar(member("a/../../escaped", BAD)),
    "parent_that_stays_inside": tar(member("a/../escaped", BAD)),
    "parent_at_the_end": tar(folder("a/..")),
    "parent_folder": tar(folder("../escaped")),
    "parent_in_pax": tar(pax(path="../escaped") + member("innocent", BAD)),
    "parent_in_gnu_long_name": tar(member("L", b"../escaped\0", tarfile.GNUTYPE_LONGNAME), member("x", BAD)),
    "absolute": tar(member("/tmp/escaped", BAD)),
    "absolute_doubled": tar(member("//escaped", BAD)),
    "absolute_in_pax": tar(pax(path="/tmp/escaped") + member("innocent", BAD)),
    "drive": tar(member("C:/escaped", BAD)),
    "drive_relative": tar(member("c:escaped", BAD)),
    "drive_inside": tar(member("a/C:/escaped", BAD)),
    "backslash": tar(member("..\\escaped", BAD)),
    "network_path": tar(member("\\\\host\\share\\escaped", BAD)),
    "symlink": tar(link("link", "/etc")),
    "symlink_inside": tar(member("file"), link("link", "file")),
    "symlink_then_file_through_it": tar(link("link", ".."), member("link/escaped", BAD)),
    "symlink_replaced_by_file": tar(link("link", "../escaped"), member("link", BAD)),
    "hardlink": tar(link("link", "/etc/passwd", tarfile.LNKTYPE)),
    "hardlink_inside": tar(member("file"), link("link", "file", tarfile.LNKTYPE)),
    "fifo": tar(member("pipe", kind=tarfile.FIFOTYPE)),
    "character_device": tar(member("null", kind=tarfile.CHRTYPE)),
    "block_device": tar(member("disk", kind=tarfile.BLKTYPE)),
    "contiguous_file": tar(member("file", BAD, tarfile.CONTTYPE)),
    "unknown_type": tar(member("file", BAD, b"Z")),
    "gnu_sparse": sparse(),
    "pax_sparse": tar(pax(**{"GNU.sparse.realsize": "99"}) + member("file", BAD)),
    "cve_2025_4517": cve_2025_4517(),
    "not_utf8": tar(member(b"f\xe9", BAD)),
    "not_utf8_in_pax": tar(pax(path=b"f\xe9") + member("innocent", BAD)),
    "surrogate_in_utf8": tar(member(b"f\xed\xa0\x80", BAD)),
    "zero_byte_in_pax": tar(pax(path="a\0b") + member("innocent", BAD)),
    "empty_name": tar(member("", BAD)),
    "file_named_as_folder": tar(member("a/", BAD)),
    "file_named_dot": tar(member(".", BAD)),
    "twice": tar(member("a", BAD), member("a", b"other")),
    "twice_spelled_otherwise": tar(member("a/b", BAD), member("./a//b", b"other")),
    "folder_twice": tar(folder("a"), folder("a/")),
    "file_then_folder": tar(member("a", BAD), folder("a")),
    "folder_then_file": tar(folder("a"), member("a", BAD)),
    "parent_then_file": tar(member("a/b", BAD), member("a", BAD)),
    "below_a_file": tar(member("a", BAD), member("a/b", BAD)),
    "case": tar(member("name", BAD), member("NAME", BAD)),
    "case_of_a_parent": tar(member("a/x", BAD), member("A/y", BAD)),
    "case_of_sharp_s": tar(member("stra\u00dfe", BAD), member("STRASSE", BAD)),
    "composed_and_decomposed": tar(member("\u00e9", BAD), member("e\u0301", BAD)),
    "negative_size": tar(header("file", raw_size=b"\xff" * 11 + b"\x00")),
    "negative_size_minus_512": tar(header("file", raw_size=(-512 & (256**12 - 1)).to_bytes(12, "big"))),
    "negative_size_of_a_long_name": tar(header("L", kind=tarfile.GNUTYPE_LONGNAME, raw_size=b"\xff" * 12)),
    "negative_size_of_a_pax_header": tar(header("x", kind=tarfile.XHDTYPE, raw_size=b"\xff" * 12)),
    "negative_size_in_pax": tar(pax(size="-512") + member("file", BAD)),
    "size_with_underscore_in_pax": tar(pax(size="1_0") + member("file", BAD)),
    "size_of_5000_digits_in_pax": tar(pax(size="9" * 5000) + member("file", BAD)),
    "folder_with_contents": tar(member("folder", bytes(512), tarfile.DIRTYPE)),
    "size_beyond_the_archive": tar(header("file", size=10**9)),
    "size_of_many_gigabytes": tar(header("file", raw_size=b"\x80" + (2**60).to_bytes(11, "big"))),
    "size_not_octal": tar(header("file", raw_size=b"notanumber!\0")),
    "huge_pax_header": tar(header("x", kind=tarfile.XHDTYPE, size=2**30)),
    "huge_long_name": tar(header("L", kind=tarfile.GNUTYPE_LONGNAME, size=2**30)),
    "pax_record_of_length_0": tar(member("x", b"0 path=a\n", tarfile.XHDTYPE), member("a")),
    "pax_record_too_long": tar(member("x", b"99 path=a\n", tarfile.XHDTYPE), member("a")),
    "pax_record_too_short": tar(member("x", b"5 path=a\n", tarfile.XHDTYPE), member("a")),
    "pax_record_without_length": tar(member("x", b"path=a\n", tarfile.XHDTYPE), member("a")),
    "pax_header_at_the_end": tar(pax(path="a")),
    "global_pax_path": tar(member("g", b"10 path=a\n", tarfile.XGLTYPE), member("b", BAD)),
    "solaris_header": tar(member("X", b"10 path=a\n", b"X"), member("b", BAD)),
    "name_too_long": tar(pax(path="n" * 300) + member("innocent", BAD)),
    "path_too_long": tar(pax(path="n/" * 2000 + "n") + member("innocent", BAD)),
    "checksum_wrong": tar(member("file", BAD).replace(b"file", b"fili", 1)),
    "lone_zero_block": member("a", BAD) + ZEROS + member("b", BAD) + END,
    "no_end_mark": member("a", BAD),
    "truncated_in_a_header": tar(member("a", BAD))[:300],
    "truncated_in_a_file": member("a", bytes(2000))[:1500],
    "truncated_in_padding": member("a", BAD)[:-1],
    "truncated_gzip": gzip.compress(tar(member("a", os.urandom(5000))))[:-2000],
    "truncated_gzip_sum": gzip.compress(tar(member("a", BAD)))[:-4],
    "wrong_gzip_sum": gzip.compress(tar(member("a", BAD)))[:-8] + bytes(8),
    "damaged_gzip": gzip.compress(tar(member("a", os.urandom(5000))))[:1000] + b"!" * 2000,
    "truncated_bzip2": bz2.compress(tar(member("a", os.urandom(5000))))[:-1000],
    "empty": b"",
    "not_a_tar": b"<!DOCTYPE html>" * 100,
    "zip": b"PK\x03\x04" + bytes(2000),
    "xz": b"\xfd7zXZ\x00" + bytes(2000),
    "gzip_bomb": gzip.compress(tar(member("zeros", bytes(2**24)))),
    "gzip_bomb_after_the_end": gzip.compress(tar(member("a", BAD)) + bytes(2**24)),
    "gzip_bomb_in_a_long_name": gzip.compress(tar(member("L", bytes(2**24), tarfile.GNUTYPE_LONGNAME))),
    "bzip2_bomb": bz2.compress(tar(member("zeros", bytes(2**24)))),
}


def unpack(content: bytes, root: Path) -> Path:
    archive = root / "archive.tar"
    archive.write_bytes(content)
    extract(archive, root / "parent" / "dest")
    return root / "parent" / "dest"


def everything(root: Path) -> dict[str, bytes | None]:
    """Every path below `root`, with the bytes of files and None for folders."""
    paths = sorted(root.rglob("*"))
    return {str(path.relative_to(root)): path.read_bytes() if path.is_file() else None for path in paths}


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_archive_is_refused_by_name_and_leaves_no_byte(content: bytes, tmp_path):
    with pytest.raises(ArchiveError, match=r"archive\.tar: "):
        unpack(content, tmp_path)
    left = everything(tmp_path)
    left.pop("parent", None)  # a folder without files
    assert left == {"archive.tar": content}
    assert not Path("/tmp/escaped").exists()


@pytest.mark.parametrize("kind", ["parent", "symlink", "twice", "case", "not_utf8", "fifo"])
def test_the_message_names_the_member(kind: str, tmp_path):
    with pytest.raises(ArchiveError, match=r"member '.+' "):
        unpack(HOSTILE[kind], tmp_path)


@pytest.mark.parametrize(
    ("limit", "too_small", "enough"),
    [("MAX_MEMBERS", 2, 3), ("MAX_BYTES", 3000, 7168), ("MAX_BYTES", 7167, 7168), ("MAX_RATIO", 0.5, 1)],
)
def test_members_bytes_and_ratio_are_limited(limit: str, too_small, enough, tmp_path, monkeypatch):
    """7168 bytes: three headers, ten blocks of content with its padding, one of the end mark's two."""
    content = member("a") + folder("b") + member("c", bytes(5000)) + ZEROS
    monkeypatch.setattr(module, "RATIO_FREE_BYTES", 0)
    monkeypatch.setattr(module, limit, too_small)
    with pytest.raises(ArchiveError, match=r"archive\.tar: "):
        unpack(content, tmp_path)
    assert everything(tmp_path / "parent") == {}
    monkeypatch.setattr(module, limit, enough)
    unpack(content, tmp_path)


def test_padding_of_less_than_1_mib_is_not_held_against_the_ratio(tmp_path):
    content = gzip.compress(tar(member("zeros", bytes(2**20 - 4096))))
    assert (2**20 - 4096) / len(content) > module.MAX_RATIO
    unpack(content, tmp_path)


# What is accepted


def made_by_tarfile(compression: str, tar_format: int = tarfile.PAX_FORMAT) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=f"w:{compression}", format=tar_format) as archive:  # pyright: ignore
        for name, data in FILES.items():
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(data), 0o4777
            archive.addfile(info, io.BytesIO(data))
    return file.getvalue()


FILES = {
    "VOCdevkit/VOC2012/JPEGImages/2007_000027.jpg": bytes(range(256)) * 9,
    "VOCdevkit/VOC2012/empty": b"",
    "VOCdevkit/VOC2012/exactly_one_block": b"b" * 512,
    "VOCdevkit/VOC2012/" + "long/" * 20 + "name" * 30: b"long",
    "VOCdevkit/\u00fcml\u00e4ut": b"utf-8",
    "VOCdevkit/name with: spaces and colons": b"",
}


@pytest.mark.parametrize("tar_format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
@pytest.mark.parametrize("compression", ["", "gz", "bz2"])
def test_what_tarfile_writes_comes_out_the_same(compression: str, tar_format: int, tmp_path):
    dest = unpack(made_by_tarfile(compression, tar_format), tmp_path)
    assert {name: data for name, data in everything(dest).items() if data is not None} == FILES


def test_what_the_system_tar_writes_comes_out_the_same(tmp_path):
    source = tmp_path / "source"
    for name, data in FILES.items():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes(data)
    made = subprocess.run(["tar", "-C", str(source), "-czf", "-", "."], capture_output=True, check=True)
    assert everything(unpack(made.stdout, tmp_path)) == everything(source)


def owner_in_latin_1() -> bytes:
    block = bytearray(header("a"))
    block[265:271] = b"M\xfcller"
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return tar(bytes(block))


XATTR = pax(mtime="1.5", **{"LIBARCHIVE.xattr.com.apple.quarantine": "x"})
ACCEPTED = {
    "by_macos": (
        tar(
            folder("./"),
            XATTR + member("./._benchmark_RELEASE", b"apple"),
            XATTR + folder("./benchmark_RELEASE/"),
            member("./benchmark_RELEASE/Icon\r", b"odd"),
        ),
        {"._benchmark_RELEASE": b"apple", "benchmark_RELEASE": None, "benchmark_RELEASE/Icon\r": b"odd"},
    ),
    "by_git": (tar(member("g", b"14 comment=ab\n", tarfile.XGLTYPE), member("a", b"1")), {"a": b"1"}),
    "folder_after_its_file": (
        tar(member("a/b", b"1"), folder("a"), member("a/c", b"2")),
        {"a": None, "a/b": b"1", "a/c": b"2"},
    ),
    "owner_in_latin_1": (owner_in_latin_1(), {"a": b""}),
    "half_an_end_mark": (member("a", b"1") + ZEROS, {"a": b"1"}),
    "end_mark_padded": (member("a", b"1") + ZEROS * 18, {"a": b"1"}),
    "end_mark_then_garbage": (member("a", b"1") + END + b"garbage of an old tar", {"a": b"1"}),
}


@pytest.mark.parametrize(("content", "expected"), ACCEPTED.values(), ids=ACCEPTED)
def test_an_unusual_but_harmless_archive_is_unpacked(content, expected, tmp_path):
    assert everything(unpack(content, tmp_path)) == expected


def test_files_get_0644_and_folders_0755_whatever_the_archive_and_the_umask_say(tmp_path):
    old = os.umask(0o077)
    try:
        dest = unpack(made_by_tarfile("gz"), tmp_path)
    finally:
        os.umask(old)
    modes = {path.is_dir(): set[int]() for path in (dest, tmp_path / "archive.tar")}
    for path in (dest, *dest.rglob("*")):
        modes[path.is_dir()].add(path.stat().st_mode & 0o7777)
    assert modes == {True: {0o755}, False: {0o644}}


# The folder


def test_an_empty_folder_is_filled(tmp_path):
    (tmp_path / "parent" / "dest").mkdir(parents=True)
    assert everything(unpack(tar(member("a", b"1")), tmp_path)) == {"a": b"1"}


@pytest.mark.parametrize("kind", ["folder", "file", "link"])
def test_what_is_there_already_is_not_touched(kind: str, tmp_path):
    dest = tmp_path / "parent" / "dest"
    (tmp_path / "parent" / "elsewhere").mkdir(parents=True)
    if kind == "folder":
        dest.mkdir()
        (dest / "mine").write_text("keep")
    elif kind == "file":
        dest.write_text("keep")
    else:
        dest.symlink_to("elsewhere")
    before = everything(dest.parent)
    with pytest.raises(ArchiveError, match=re.escape(str(dest))):
        unpack(tar(member("a", b"1")), tmp_path)
    assert everything(dest.parent) == before


@pytest.mark.parametrize("name", ["absent.tar", ""])
def test_an_archive_that_is_absent_or_a_folder_is_named(name: str, tmp_path):
    with pytest.raises(ArchiveError, match=str(tmp_path / name)):
        extract(tmp_path / name, tmp_path / "dest")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_named_with_the_member_and_nothing_is_left(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    content = gzip.compress(tar(member("a", bytes(200_000))))
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))  # the system's own error on writing more
    try:
        with pytest.raises(ArchiveError, match="member 'a'"):
            unpack(content, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert everything(tmp_path / "parent") == {}


def test_a_killed_run_leaves_nothing_at_the_final_name_and_the_next_one_cleans_up(tmp_path):
    program = (
        "import os, signal, sys; from pathlib import Path; from pipeline.download import archive\n"
        "claim = archive.Names.claim\n"
        "def kill(names, name, **options):\n"
        "    if name == 'b': os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return claim(names, name, **options)\n"
        "archive.Names.claim = kill\n"
        "archive.extract(Path(sys.argv[1]), Path(sys.argv[2]))\n"
    )
    archive, dest = tmp_path / "archive.tar", tmp_path / "parent" / "dest"
    content = tar(member("a", b"1"), member("b", b"2"))
    archive.write_bytes(content)
    killed = subprocess.run([sys.executable, "-c", program, archive, dest], cwd=ROOT, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert everything(dest.parent) == {".dest.partial": None, ".dest.partial/a": b"1"}
    assert everything(unpack(content, tmp_path)) == {"a": b"1", "b": b"2"}
    assert everything(dest.parent).keys() == {"dest", "dest/a", "dest/b"}


# Any damage at all

SMALL = tar(folder("d"), member("d/a", b"a" * 700), pax(path="d/" + "n" * 120) + member("n", b"b"))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(length=st.integers(0, len(SMALL) - len(END)))
def test_an_archive_cut_anywhere_before_its_end_mark_is_refused(length: int, tmp_path):
    with pytest.raises(ArchiveError):
        unpack(SMALL[:length], tmp_path)


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(position=st.integers(0, len(SMALL) - 1), value=st.integers(0, 255))
def test_a_changed_byte_never_writes_outside_and_never_fails_otherwise(
    position: int, value: int, tmp_path_factory
):
    root = tmp_path_factory.mktemp("changed")
    try:
        unpack(SMALL[:position] + bytes([value]) + SMALL[position + 1 :], root)
    except ArchiveError:
        assert everything(root / "parent") == {}
    assert {path.name for path in root.iterdir()} == {"archive.tar", "parent"}
    assert {path.name for path in (root / "parent").iterdir()} <= {"dest"}
