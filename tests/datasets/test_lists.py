"""pipeline/datasets/lists.py: lists of ids and the files they name."""

import re
from pathlib import Path

import pytest

from pipeline.datasets import lists
from pipeline.datasets.lists import read_bytes, read_ids
from pipeline.errors import DatasetError


def ids_of(folder: Path, content: bytes) -> list[str]:
    (folder / "train.txt").write_bytes(content)
    return read_ids(folder, "train", "voc")


@pytest.mark.parametrize(
    "content",
    [
        b"b_2\na-1\n",
        b"b_2\r\na-1",
        b"\xef\xbb\xbfb_2\na-1 \n",
        b"\r\n b_2\n\n\ta-1\t\r\n\r\n  \n",
        b"b_2\ra-1\r",
    ],
)
def test_ids_keep_the_order_of_their_list_however_its_lines_end(tmp_path: Path, content: bytes):
    assert ids_of(tmp_path, content) == ["b_2", "a-1"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "lists no ids"),
        (b"\n\n", "lists no ids"),
        (b"a\nb\na\n", "more than once: a;"),
        (b"../a\n", "line 1: malformed id '../a'"),
        (b"a/b\n", "line 1: malformed id 'a/b'"),
        (b"a\\b\n", "line 1: malformed id"),
        (
            b"\na.jpg\n",
            "line 2: malformed id 'a.jpg'; expected letters, digits, '_' and '-' only, without ending",
        ),
        (b"..\n", "line 1: malformed id '..'"),
        (b"a -1\n", "line 1: malformed id 'a -1'"),
        (b"a\0\n", "line 1: malformed id"),
        ("ä\n".encode(), "line 1: malformed id 'ä'"),
        (b"\xff\xfe\x00", "not a text file"),
    ],
)
def test_a_list_with_unusable_ids_is_refused_with_file_and_value(tmp_path: Path, content: bytes, reason: str):
    with pytest.raises(DatasetError, match=rf"train\.txt.*{re.escape(reason)}"):
        ids_of(tmp_path, content)


@pytest.mark.parametrize("split", ["trian", "", ".", "..", "../train", "sub/train"])
def test_an_unknown_list_is_refused_and_the_known_ones_named(tmp_path: Path, split: str):
    (tmp_path / "lists").mkdir()
    for name in ("train.txt", "lists/val.txt", "lists/seg11valid.txt"):
        (tmp_path / name).write_text("a\n")
    with pytest.raises(DatasetError, match=re.escape(f"no list {split!r}") + r".*: seg11valid, val$"):
        read_ids(tmp_path / "lists", split, "voc")
    with pytest.raises(DatasetError, match=r"none$"):
        read_ids(tmp_path / "nowhere", split, "voc")


def test_a_file_that_is_missing_or_a_folder_or_too_large_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with pytest.raises(DatasetError, match=r"voc 7: .*a\.jpg is missing"):
        read_bytes(tmp_path / "a.jpg", "voc 7")
    with pytest.raises(DatasetError, match="cannot be read: Is a directory"):
        read_bytes(tmp_path, "voc 7")
    (tmp_path / "a.jpg").write_bytes(b"12345")
    assert read_bytes(tmp_path / "a.jpg", "voc 7") == b"12345"
    monkeypatch.setattr(lists, "MAX_BYTES", 4)
    with pytest.raises(DatasetError, match="has 5 bytes, more than 4"):
        read_bytes(tmp_path / "a.jpg", "voc 7")
