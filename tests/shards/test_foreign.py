"""pipeline/shards/foreign.py: tars that webdataset's own writer wrote are trained on where they are."""

import gzip
import hashlib
import http.server
import io
import os
import subprocess
import tarfile
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import webdataset

from pipeline.cache.client import NodeCache
from pipeline.cli.main import parser
from pipeline.errors import DatasetError, ShardError, UserError
from pipeline.loading.loader import Stream, loader
from pipeline.shards.foreign import Members, index
from pipeline.shards.manifest import MANIFEST
from pipeline.shards.read import Shards, all_damage, open_shards
from pipeline.storage import Folder
from tests.noise import noise, shards_of
from tests.small_shards import files_in

CLASSES = ("a", "b", "c")
MEMBERS = Members("jpg", "seg.png")


def write(path: Path, keys: list[str], **changed: bytes | None) -> None:
    """Write samples of a photo, a label and a text. changed: by member another content, or None to leave it out."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with webdataset.TarWriter(str(path), encoder=False) as writer:
        for key in keys:
            sample = noise(key)
            files = {"jpg": sample.image, "seg.png": sample.png, "json": b"{}"} | changed
            writer.write({"__key__": f"photos/{key}"} | {k: v for k, v in files.items() if v is not None})


@pytest.fixture
def tars(tmp_path: Path) -> Path:
    for number in range(2):
        write(tmp_path / "tars" / f"{number:06d}.tar", [f"{number}{i}" for i in range(5)])
    return tmp_path / "tars"


def run(folder: Path | str, dest: Path | None = None, members: Members = MEMBERS) -> Shards:
    assert index([f"{folder}/{{000000..000001}}.tar"], members, CLASSES, "train", dest) == 10
    return open_shards(dest or folder, split="train")


@pytest.mark.parametrize("beside", [True, False])
def test_every_sample_is_read_where_it_lies(tars: Path, tmp_path: Path, beside: bool):
    before = {path.name: path.read_bytes() for path in tars.glob("*.tar")}
    (tars / "README").write_text("not a tar")
    shards = run(tars, None if beside else tmp_path / "here")
    assert shards.keys == [f"photos__{number}{i}" for number in range(2) for i in range(5)]
    assert shards.header["shards"] == [
        {"name": name, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        for name, data in sorted(before.items())
    ]
    for number, key in enumerate(shards.keys):
        photo, png = shards.read(number)
        expected = noise(key[-2:])
        assert (bytes(photo), bytes(png)) == (expected.image, expected.png)
        assert shards.table["class_pixels"][number].as_py() == expected.counts[:3].tolist()
    assert {path.name: path.read_bytes() for path in tars.glob("*.tar")} == before
    assert sum(len(batch.keys) for batch in loader(Stream(shards, 2, 0), range(5))) == 10


@pytest.mark.parametrize("is_current", [True, False])
def test_the_manifest_is_the_only_file_that_changes_in_its_folder(
    tars: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_current: bool
):
    home = tmp_path / "home"
    (home / "photos").mkdir(parents=True)
    (home / "thesis.txt").write_text("years of work")
    monkeypatch.chdir(home)
    shards = run(tars, Path() if is_current else home)
    assert len(shards) == 10
    assert {path.name for path in home.iterdir()} == {"photos", "thesis.txt", "manifest.parquet"}
    assert (home / "thesis.txt").read_text() == "years of work"


@pytest.mark.parametrize(
    ("keys", "changed", "named"),
    [
        (["20", "00"], {}, "000002.tar: photos__00 is in 000000.tar"),
        (["20", "21", "20"], {}, "000002.tar: photos__20 is split"),
        (["20"], {"seg.png": None}, "000002.tar: photos__20 has no .seg.png; it has jpg, json"),
        (["20"], {"jpg": b"no photo"}, "000002.tar: photos__20.jpg"),
        (["20"], {"seg.png": b"7"}, "000002.tar: photos__20.seg.png"),
        (["20"], {"seg.png": noise("21").png}, "000002.tar: photos__20.seg.png"),
    ],
)
def test_samples_that_cannot_be_used_are_named_and_nothing_is_written(tars: Path, keys, changed, named):
    write(tars / "000002.tar", keys, **changed)
    with pytest.raises(DatasetError) as error:
        index([str(tars)], MEMBERS, CLASSES, "train", None)
    assert named in str(error.value)
    assert not list(tars.glob("manifest*"))


def test_reading_ends_with_the_first_tar_that_has_no_sample_of_use(tars: Path):
    with pytest.raises(DatasetError) as error:
        index([str(tars)], Members("jpg", "mask.png"), CLASSES, "train", None)
    assert "000000.tar" in str(error.value)
    assert "000001.tar" not in str(error.value)


@pytest.mark.parametrize(
    ("classes", "named"),
    [((), "0"), (tuple(map(str, range(256))), "256"), (("a", "b", "a"), "a")],
)
def test_classes_that_labels_cannot_have_are_refused(tars: Path, classes: tuple[str, ...], named: str):
    with pytest.raises(DatasetError, match=rf" {named}$"):
        index([str(tars)], MEMBERS, classes, "train", None)


def add(path: Path, *members: tuple[str, bytes | None]) -> None:
    """Add members to a tar: a file if it has content, else a folder."""
    with tarfile.open(path, "a") as tar:
        for name, content in members:
            entry = tarfile.TarInfo(name)
            entry.size = len(content or b"")
            entry.type = tarfile.DIRTYPE if content is None else tarfile.REGTYPE
            tar.addfile(entry, io.BytesIO(content or b""))


@pytest.mark.parametrize(
    "last", [("README", b"text"), ("empty/", None), ("._z.jpg", b"of a Mac" * 5000)], ids=lambda last: last[0]
)
def test_any_member_may_be_the_last_one(tars: Path, last: tuple[str, bytes | None]):
    add(tars / "000001.tar", last)
    assert len(run(tars)) == 10


@pytest.mark.parametrize("num_bytes", [512, 1 << 17])
def test_a_tar_may_end_in_any_number_of_zeros(tars: Path, num_bytes: int):
    data = (tars / "000001.tar").read_bytes().rstrip(b"\0")
    (tars / "000001.tar").write_bytes(data + bytes(-len(data) % 512 + num_bytes))
    assert len(run(tars)) == 10


@pytest.mark.parametrize("name", ["my train-0.tar", "a+b.tar", "é.tar"])
def test_a_tar_may_have_any_name(tars: Path, name: str):
    (tars / "000000.tar").rename(tars / name)
    (tars / "000001.tar").unlink()
    assert index([str(tars)], MEMBERS, CLASSES, "train", None) == 5
    shards = open_shards(tars)
    assert bytes(shards.read(4)[0]) == noise("04").image


@pytest.mark.parametrize("is_folder", [True, False])
def test_compressed_tars_are_refused_with_the_remedy(tars: Path, is_folder: bool):
    for path in tars.iterdir():
        path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    urls = [str(tars)] if is_folder else [f"{tars}/000000.tar.gz"]
    with pytest.raises(ShardError, match="unpack"):
        index(urls, MEMBERS, CLASSES, "train", None)


def test_samples_of_two_names_never_become_one(tars: Path):
    sample = noise("20")
    add(tars / "000002.tar", ("a/b.jpg", sample.image), ("a__b.seg.png", sample.png))
    with pytest.raises(DatasetError) as error:
        index([str(tars)], MEMBERS, CLASSES, "train", None)
    assert "a/b" in str(error.value)
    assert "a__b" in str(error.value)


@pytest.mark.parametrize("kind", ["hard link", "link", "sparse"])
def test_a_member_without_bytes_of_its_own_is_named_and_nothing_is_written(tmp_path: Path, kind: str):
    sample = noise("1")
    for name, content in {"a.jpg": sample.image, "a.seg.png": sample.png, "b.jpg": noise("2").image}.items():
        (tmp_path / name).write_bytes(content)
    label = tmp_path / "b.seg.png"
    if kind == "hard link":
        label.hardlink_to(tmp_path / "a.seg.png")
    elif kind == "link":
        label.symlink_to("a.seg.png")
    else:
        label.write_bytes(sample.png)
        os.truncate(label, 10**6)
    names = ["a.jpg", "a.seg.png", "b.jpg", label.name]
    command = ["tar", "--sparse", "-cf", tmp_path / "a.tar", "-C", tmp_path, *names]
    subprocess.run(command, check=True)
    with pytest.raises(DatasetError, match=r"1 samples .*\n.*b\.seg\.png is a link or sparse") as caught:
        index([str(tmp_path / "a.tar")], MEMBERS, CLASSES, "train", None)
    assert "has no ." not in str(caught.value)
    assert not (tmp_path / MANIFEST).exists()


def test_a_key_has_no_dot(tars: Path):
    sample = noise("20")
    add(tars / "000002.tar", ("v1.0/b.jpg", sample.image), ("v1.0/b.seg.png", sample.png))
    assert index([str(tars)], MEMBERS, CLASSES, "train", None) == 11
    assert open_shards(tars).keys[-1] == "v1_0__b"


def test_a_name_that_is_not_utf_8_is_a_mistake(tars: Path):
    add(tars / "000002.tar", ("caf\udce9.jpg", b""), ("caf\udce9.seg.png", b""))
    with pytest.raises(DatasetError, match=r"000002\.tar.*caf.*UTF-8"):
        index([str(tars)], MEMBERS, CLASSES, "train", None)


def test_a_damaged_member_is_named_as_its_tar_names_it_with_a_remedy_for_it(tars: Path):
    shards = run(tars)
    path = tars / shards.table["shard"][7].as_py()
    data = bytearray(path.read_bytes())
    data[shards.table["png_offset"][7].as_py() + 40] ^= 1
    path.write_bytes(data)
    with pytest.raises(ShardError, match=rf"{path}: photos__12\.seg\.png .*fcn shards index"):
        shards.read(7)
    with pytest.raises(ShardError, match=rf"{path}: .*fcn shards index"):
        open_shards(tars)
    first, second = all_damage(tars)
    assert str(path) in first
    assert "photos__12.seg.png" in second


@pytest.mark.parametrize("size", [512 * 3, 512 * 5 + 100, -11000])
def test_a_tar_that_was_cut_off_is_refused(tars: Path, size: int):
    data = (tars / "000001.tar").read_bytes()
    (tars / "000001.tar").write_bytes(data[:size])
    with pytest.raises(ShardError, match=r"000001\.tar"):
        index([str(tars)], MEMBERS, CLASSES, "train", None)


def test_a_damaged_header_is_found(tars: Path):
    data = bytearray((tars / "000001.tar").read_bytes())
    second = next(i for i in range(512, len(data), 512) if data[i : i + 6] == b"photos")
    data[second + 150] ^= 1  # its checksum
    (tars / "000001.tar").write_bytes(data)
    with pytest.raises(ShardError, match=r"000001\.tar"):
        index([str(tars)], MEMBERS, CLASSES, "train", None)


@pytest.mark.parametrize("beside", [True, False])
def test_the_manifest_of_another_split_is_not_overwritten_but_that_of_the_same_one_is(
    tars: Path, tmp_path: Path, beside: bool
):
    dest = None if beside else tmp_path / "here"
    run(tars, dest)
    before = (dest or tars).joinpath(MANIFEST).read_bytes()
    with pytest.raises(ShardError, match=r"'train'.*--output"):
        index([str(tars)], MEMBERS, CLASSES, "val", dest)
    assert (dest or tars).joinpath(MANIFEST).read_bytes() == before
    assert index([f"{tars}/000000.tar"], MEMBERS, CLASSES, "train", dest) == 5
    (dest or tars).joinpath(MANIFEST).write_bytes(before[:-1])
    assert index([f"{tars}/000000.tar"], MEMBERS, CLASSES, "val", dest) == 5


def test_the_manifest_of_shards_of_ours_is_not_overwritten(tmp_path: Path):
    shards = shards_of(tmp_path / "train", ["1", "2"], noise)
    before = files_in(tmp_path / "train")
    with pytest.raises(ShardError, match=r"manifest\.parquet.*--output"):
        index([str(shards.folder)], Members("jpg", "png"), shards.classes, "train", None)
    assert files_in(tmp_path / "train") == before


def test_a_damaged_manifest_of_tars_of_others_is_written_again_by_its_own_command(tars: Path):
    run(tars)
    (tars / MANIFEST).write_bytes((tars / MANIFEST).read_bytes()[:-1])
    with pytest.raises(ShardError, match="fcn shards index"):
        open_shards(tars)


@pytest.mark.parametrize("where", ["http://127.0.0.1:1", "hf://datasets/someone/something"])
def test_a_store_that_is_read_only_is_refused_before_its_tars_are_read(where: str):
    with pytest.raises(ShardError, match="--output"):
        index([f"{where}/{{000000..000001}}.tar"], MEMBERS, CLASSES, "train", None)


def test_members_that_no_sample_has_are_a_mistake(tars: Path):
    with pytest.raises(UserError, match=r"no \.png"):
        run(tars, members=Members("jpg", "png"))


def test_the_command_takes_members_classes_and_split(
    tars: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "classes.txt").write_bytes(b"\xef\xbb\xbfa\r\nb\r\nc\r\n")  # as Windows writes it
    command = ["shards", "index", str(tars), "--label", "seg.png", "--classes", str(tmp_path / "classes.txt")]
    arguments = parser().parse_args([*command, "--split", "val", "--output", str(tmp_path / "here")])
    arguments.run(arguments)
    assert "10" in capsys.readouterr().out
    assert open_shards(tmp_path / "here", split="val").classes == CLASSES


# --- a web server, which cannot list and has no credentials


class Ranges(http.server.SimpleHTTPRequestHandler):
    """Serves files with ranges, as every static server of the web does."""

    root = Path()
    cuts: list[int] = []  # noqa: RUF012  # the first byte that is not sent, of each of the next answers

    def do_GET(self) -> None:
        path = self.root / self.path.lstrip("/")
        if not path.is_file():
            self.send_error(404)
            return
        data = path.read_bytes()
        start, end = 0, len(data)
        if given := self.headers.get("Range"):
            first, last = given.removeprefix("bytes=").split("-")
            start, end = int(first), min(int(last) + 1 if last else end, end)
        self.send_response(206 if given else 200)
        self.send_header("Content-Length", str(end - start))
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(data)}")
        self.end_headers()
        if self.command == "GET":
            cut = min(self.cuts.pop(), end) if self.cuts else end
            self.wfile.write(data[start:cut])

    do_HEAD = do_GET  # noqa: N815

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def web(tars: Path) -> Iterator[str]:
    handler = type("Handler", (Ranges,), {"root": tars})
    Ranges.cuts = []
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_a_web_servers_tars_are_indexed_and_read_by_blocks(web: str, tars: Path, tmp_path: Path):
    index([f"{web}/{{000000..000001}}.tar"], MEMBERS, CLASSES, "train", tmp_path / "here")
    shards = open_shards(tmp_path / "here", node_cache=NodeCache(str(tmp_path / "cache")))
    assert shards.folder == web
    local = run(tars)
    assert [bytes(shards.read(i)[0]) for i in range(10)] == [bytes(local.read(i)[0]) for i in range(10)]


def test_shards_on_a_web_server_are_verified_by_reading_them(web: str, tars: Path, tmp_path: Path):
    index([f"{web}/{{000000..000001}}.tar"], MEMBERS, CLASSES, "train", tmp_path / "web")
    run(tars)
    for where in (web, tmp_path / "web"):
        assert list(all_damage(where)) == []
        assert len(open_shards(where, verify_all=True)) == 10
    data = (tars / "000000.tar").read_bytes()
    (tars / "000000.tar").write_bytes(data[:5000] + b"?" + data[5001:])
    (tars / "000001.tar").unlink()
    damage = "".join(all_damage(tmp_path / "web"))
    assert f"{web}/000000.tar" in damage
    assert f"{web}/000001.tar" in damage
    with pytest.raises(ShardError, match=f"{web}/000000.tar"):
        open_shards(tmp_path / "web", verify_all=True)


def test_a_tar_whose_connection_breaks_is_read_again(web: str, tars: Path, tmp_path: Path):
    Ranges.cuts = [3000, 512]
    index([f"{web}/{{000000..000001}}.tar"], MEMBERS, CLASSES, "train", tmp_path / "here")
    assert not Ranges.cuts
    assert open_shards(tmp_path / "here").header["shards"] == run(tars).header["shards"]
    Ranges.cuts = [3000] * 20
    with pytest.raises(ShardError, match=f"{web}/000000.tar"):
        index([f"{web}/000000.tar"], MEMBERS, CLASSES, "train", tmp_path / "here")


class WholeFiles(http.server.SimpleHTTPRequestHandler):
    """Serves files without ranges, as Python's own server does."""

    def log_message(self, *_: object) -> None:
        pass


def test_a_web_server_without_ranges_is_named_as_such_at_the_first_read(tars: Path, tmp_path: Path):
    handler = partial(WholeFiles, directory=str(tars))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        run(f"http://127.0.0.1:{server.server_port}", tmp_path / "here")
        shards = open_shards(tmp_path / "here", node_cache=NodeCache(str(tmp_path / "cache")))
        with pytest.raises(ShardError, match="ranges"):
            shards.read(0)
        server.shutdown()


def test_a_file_that_a_web_server_lacks_is_named(web: str):
    with pytest.raises(ShardError, match=f"{web}/none.tar"):
        Folder(web).read("none.tar", 0, 10)


# --- plain webdataset


def test_shards_of_ours_open_in_plain_webdataset(tmp_path: Path):
    from tests.small_shards import CLASSES, KEYS, draw
    from tests.small_shards import write as write_ours

    folder = write_ours(tmp_path / "train")
    tars = sorted(map(str, folder.glob("*.tar")))
    samples = {s["__key__"]: s for s in webdataset.WebDataset(tars, shardshuffle=False, empty_check=False)}
    assert samples.keys() == set(KEYS)
    decoded = webdataset.WebDataset(tars, shardshuffle=False, empty_check=False).decode("rgb8", only="jpg")
    for sample in decoded:
        photo = draw(sample["__key__"]).photo
        assert sample["jpg"].shape == (*photo.size, 3)
        assert sample["jpg"].dtype == np.uint8
        assert samples[sample["__key__"]]["png"] == draw(sample["__key__"]).png
    assert len(CLASSES) == 3
