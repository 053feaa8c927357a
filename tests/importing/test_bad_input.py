"""Damaged, contradictory and hostile exports: one message with file and remedy, exit code 2, nothing half-written."""

import base64
import io
import json
import random
import shutil
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.errors import UserError
from pipeline.importing.write import Settings, import_data
from tests.importing.conftest import FIXTURES, encoded, jpeg, labels_of, pairs, tree, unpacked, write

Case = tuple[Callable[[Path], Path], str]  # makes the source; a word that the message must hold


def changed_json(fixture: str, name: str, change: Callable[[Any], Any]) -> Callable[[Path], Path]:
    """A fixture whose JSON file is changed in place; what `change` returns, if it does, replaces it."""

    def make(folder: Path) -> Path:
        source = unpacked(fixture, folder / "in")
        (path,) = (path for path in source.rglob("*.json") if path.name.startswith(name))
        content = json.loads(path.read_text("utf-8"))
        replaced = change(content)
        path.write_text(json.dumps(content if replaced is None else replaced), "utf-8")
        return source

    return make


def changed(fixture: str, files: dict[str, bytes | str | None]) -> Callable[[Path], Path]:
    """A fixture with files replaced, or removed if None."""

    def make(folder: Path) -> Path:
        source = unpacked(fixture, folder / "in")
        for name in [name for name, content in files.items() if content is None]:
            (source / name).unlink()
        return write(source, {name: content for name, content in files.items() if content is not None})

    return make


def plain(files: dict[str, bytes | str]) -> Callable[[Path], Path]:
    return lambda folder: write(folder / "in", pairs() | files)


def set_in(*keys_and_value: Any) -> Callable[[Any], None]:
    *keys, last, value = keys_and_value

    def change(content: Any) -> None:
        for key in keys:
            content = content[key]
        content[last] = value

    return change


def zipped(name: str, content: bytes = b"x", **fields: Any) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        with zipfile.ZipFile(folder / "a.zip", "w", zipfile.ZIP_DEFLATED) as packed:
            for path, data in pairs().items():
                packed.writestr(path, data)
            info = zipfile.ZipInfo(name)
            info.compress_type = zipfile.ZIP_DEFLATED
            for key, value in fields.items():
                setattr(info, key, value)
            packed.writestr(info, content)
        return folder / "a.zip"

    return make


def tarred(name: str, **fields: Any) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        with tarfile.open(folder / "a.tar", "w") as packed:
            info = tarfile.TarInfo(name)
            for key, value in fields.items():
                setattr(info, key, value)
            packed.addfile(info, io.BytesIO(b""))
        return folder / "a.tar"

    return make


def archive(data: bytes, name: str = "a.zip") -> Callable[[Path], Path]:
    return lambda folder: write(folder, {name: data}) / name


def bomb() -> bytes:
    """A PNG of a few kB whose header states 60000 x 60000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(bytes(10**6)))
        + chunk(b"IEND", b"")
    )


COCO = (FIXTURES / "coco.zip").read_bytes()
MASK = encoded(np.zeros((12, 16), np.uint8))
OTHER_SIZE = encoded(np.zeros((16, 11), np.uint8))
TRAIN, VAL = "instances_train", "instances_val"
FIRST = ("annotations", 0)
BITMAP_BOMB = base64.b64encode(zlib.compress(bytes(2**27 + 2**20), 9)).decode()


def repeat_first(key: str) -> Callable[[Any], None]:
    return lambda content: content[key].append(content[key][0])


def drop(*keys: Any) -> Callable[[Any], None]:
    def change(content: Any) -> None:
        for key in keys[:-1]:
            content = content[key]
        del content[keys[-1]]

    return change


def npz_with_pickle() -> bytes:
    file = io.BytesIO()
    np.save(file, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    return file.getvalue()


CASES: dict[str, Case] = {
    # Files and archives
    "no such folder": (lambda folder: folder / "nothing", "nothing"),
    "an empty folder": (lambda folder: write(folder / "in", {"a.txt": ""}), "in"),
    "not an archive": (archive(b"hello" * 999), "a.zip"),
    "a zip cut off": (archive(COCO[:-200]), "a.zip"),
    "a zip with a changed byte": (archive(COCO[:300] + b"\xff\xff\xff" + COCO[303:]), "a.zip"),
    "zip slip": (zipped("../../evil.txt"), "evil"),
    "zip slip within": (zipped("images/../../evil.txt"), "evil"),
    "zip, absolute name": (zipped("/tmp/evil.txt"), "evil"),
    "zip, backslash": (zipped("a\\..\\evil.txt"), "evil"),
    "zip, drive": (zipped("C:evil.txt"), "evil"),
    "zip, a link": (zipped("images/link.jpg", b"/etc/passwd", external_attr=0o120777 << 16), "link.jpg"),
    "zip, a name twice but for case": (zipped("images/P0.jpg"), "P0.jpg"),
    "zip bomb": (zipped("images/zeros.png", bytes(2**27)), "bomb"),
    "tar, a link": (tarred("images/link.jpg", type=tarfile.SYMTYPE, linkname="/etc/passwd"), "link.jpg"),
    "tar, a hard link": (tarred("link.jpg", type=tarfile.LNKTYPE, linkname="../../x"), "link.jpg"),
    "tar slip": (tarred("../evil.txt"), "evil"),
    "tar, a device": (tarred("zero", type=tarfile.CHRTYPE), "zero"),
    # Plain folders
    "a photo cut off": (plain({"images/p1.jpg": jpeg()[:300]}), "images/p1.jpg"),
    "a photo that is text": (plain({"images/p1.jpg": "<html>"}), "images/p1.jpg"),
    "an empty photo": (plain({"images/p1.jpg": b""}), "images/p1.jpg"),
    "a mask cut off": (plain({"masks/p1.png": MASK[:-20]}), "masks/p1.png"),
    "a mask with a changed byte": (plain({"masks/p1.png": MASK[:45] + b"\0\1" + MASK[47:]}), "masks/p1.png"),
    "a PNG bomb": (plain({"masks/p1.png": bomb()}), "masks/p1.png"),
    "a PNG bomb as photo": (
        lambda folder: write(
            folder / "in", {"images/a.png": bomb(), "masks/a.png": MASK, "classes.txt": "a\nb\nc\n"}
        ),
        "images/a.png",
    ),
    "the mask of another photo": (plain({"masks/p1.png": OTHER_SIZE}), "images/p1.jpg"),
    "an anti-aliased alpha": (
        plain({"masks/p1.png": encoded(np.full((12, 16, 4), 99, np.uint8))}),
        "masks/p1.png",
    ),
    "two photos of a name": (
        plain({"images/p1.png": encoded(np.zeros((12, 16, 3), np.uint8))}),
        "images/p1.png",
    ),
    "a mask that is a photo": (
        plain(
            {"masks/p1.png": encoded(np.random.default_rng(0).integers(0, 255, (12, 16, 3), dtype=np.uint8))}
        ),
        "masks/p1.png",
    ),
    "a class twice": (plain({"classes.txt": "background\ncat\ncat\n"}), "classes.txt"),
    "an empty class table": (plain({"classes.txt": "\n\n"}), "classes.txt"),
    "a value without a line": (
        plain({"classes.txt": "a\nb\nc\nd\n", "masks/p1.png": encoded(np.full((12, 16), 9, np.uint8))}),
        "9",
    ),
    "a class table that is binary": (plain({"classes.txt": b"\xff\xfe\0\x80"}), "classes.txt"),
    "a colour of two classes": (
        plain({"classes.csv": "name,r,g,b\na,0,0,0\nb,0,0,0\nc,1,1,1\n"}),
        "classes.csv",
    ),
    "a colour of 300": (plain({"classes.csv": "name,r,g,b\na,0,0,300\nb,0,0,0\n"}), "classes.csv"),
    "columns without a name": (plain({"classes.csv": "x,y\n1,2\n"}), "classes.csv"),
    "a ragged table": (plain({"classes.csv": "name,r,g,b\na,0,0\n"}), "classes.csv"),
    "two tables that differ": (
        lambda folder: write(
            unpacked("roboflow", folder / "in"),
            {"valid/_classes.csv": "Pixel Value, Class\n0, a\n1, b\n2, c\n"},
        ),
        "valid/_classes.csv",
    ),
    # COCO
    "COCO, cut off": (
        lambda folder: write(
            unpacked("coco", folder / "in"), {"annotations/instances_train2017.json": '{"images": [{"id'}
        ),
        "instances_train2017.json",
    ),
    "COCO, no category": (changed_json("coco", TRAIN, set_in(*FIRST, "category_id", 5)), "category 5"),
    "COCO, categories missing": (changed_json("coco", TRAIN, drop("categories")), "categories"),
    "COCO, a category twice": (changed_json("coco", TRAIN, repeat_first("categories")), "category 90"),
    "COCO, an image twice": (changed_json("coco", TRAIN, repeat_first("images")), "image 101"),
    "COCO, an annotation twice": (changed_json("coco", TRAIN, repeat_first("annotations")), "annotation"),
    "COCO, an unknown image": (changed_json("coco", TRAIN, set_in(*FIRST, "image_id", 77)), "image 77"),
    "COCO, a missing photo": (changed("coco", {"val2017/beach 01.jpg": None}), "beach 01.jpg"),
    "COCO, a photo outside": (
        changed_json("coco", VAL, set_in("images", 0, "file_name", "../../../../etc/passwd")),
        "passwd",
    ),
    "COCO, a polygon outside": (
        changed_json("coco", TRAIN, set_in(*FIRST, "segmentation", [[900, 900, 950, 900, 950, 950]])),
        "instances_train2017.json",
    ),
    "COCO, a polygon of two points": (
        changed_json("coco", TRAIN, set_in(*FIRST, "segmentation", [[1, 1, 2, 2]])),
        "instances_train2017.json",
    ),
    "COCO, NaN": (
        changed_json("coco", TRAIN, set_in(*FIRST, "segmentation", [[1, 1, 2, 2, float("nan"), 4]])),
        "instances_train2017.json",
    ),
    "COCO, a polygon of text": (
        changed_json("coco", TRAIN, set_in(*FIRST, "segmentation", [["a", "b", "c", "d", "e", "f"]])),
        "instances_train2017.json",
    ),
    "COCO, run lengths of another size": (
        changed_json("coco", TRAIN, set_in(*FIRST, "segmentation", {"size": [1, 4], "counts": [2, 2]})),
        "instances_train2017.json",
    ),
    "COCO, run lengths too short": (
        changed_json("coco", TRAIN, set_in(*FIRST, "segmentation", {"size": [48, 48], "counts": [2, 2]})),
        "instances_train2017.json",
    ),
    "COCO, run lengths of 10**12": (
        changed_json("coco", TRAIN, set_in(*FIRST, "segmentation", {"size": [48, 48], "counts": [10**12]})),
        "instances_train2017.json",
    ),
    "COCO, a box alone": (changed_json("coco", TRAIN, set_in(*FIRST, "segmentation", [])), "segmentation"),
    "COCO, another size": (changed_json("coco", VAL, set_in("images", 0, "height", 400)), "image 100"),
    "COCO, annotations of the wrong kind": (
        changed_json("coco", TRAIN, set_in("annotations", [1, 2])),
        "instances_train2017.json",
    ),
    "panoptic, an unlisted segment": (
        changed_json("coco-panoptic", "panoptic_default", set_in(*FIRST, "segments_info", 0, "id", 99)),
        "panoptic_default",
    ),
    "panoptic, a missing PNG": (
        changed("coco-panoptic", {"annotations/panoptic_default/beach 01.png": None}),
        "beach 01.png",
    ),
    # labelme
    "labelme, cut off": (changed("labelme", {"cam 2/0001.json": '{"shapes": [{"label": "tr'}), "0001.json"),
    "labelme, deep nesting": (changed("labelme", {"deep.json": "[" * 10**5}), "deep.json"),
    "labelme, a photo outside": (
        changed_json("labelme", "beach", set_in("imagePath", "..\\..\\..\\etc\\passwd")),
        "passwd",
    ),
    "labelme, a photo that is missing": (changed("labelme", {"beach 01.jpg": None}), "beach 01.jpg"),
    "labelme, no label": (changed_json("labelme", "beach", set_in("shapes", 0, "label", "")), "shape 0"),
    "labelme, an unknown shape": (
        changed_json("labelme", "beach", set_in("shapes", 0, "shape_type", "x")),
        "shape 0",
    ),
    "labelme, points of text": (
        changed_json("labelme", "beach", set_in("shapes", 0, "points", "ab")),
        "shape 0",
    ),
    "labelme, outside": (
        changed_json("labelme", "beach", set_in("shapes", 0, "points", [[99, 99], [120, 99], [99, 120]])),
        "shape 0",
    ),
    "labelme, another size": (changed_json("labelme", "beach", set_in("imageWidth", 5)), "beach 01.json"),
    "labelme, a damaged mask": (
        changed_json("labelme", "beach", set_in("shapes", -1, "mask", "@@")),
        "shape 8",
    ),
    "labelme2voc, an array with a pickle": (
        changed(
            "labelme2voc",
            {"SegmentationClass/0001.png": None, "SegmentationClassNpy/0001.npy": npz_with_pickle()},
        ),
        "0001.npy",
    ),
    # Label Studio
    "Label Studio, run lengths of another size": (
        changed_json(
            "label-studio", "project", set_in(0, "annotations", 0, "result", 0, "value", "rle", 3, 9)
        ),
        "task 1",
    ),
    "Label Studio, run lengths cut off": (
        changed_json(
            "label-studio",
            "project",
            lambda tasks: tasks[0]["annotations"][0]["result"][0]["value"]["rle"].__delitem__(
                slice(40, None)
            ),
        ),
        "task 1",
    ),
    "Label Studio, another size": (
        changed_json(
            "label-studio", "project", set_in(0, "annotations", 0, "result", 0, "original_width", 9)
        ),
        "task 1",
    ),
    "Label Studio, a task twice": (
        changed_json("label-studio", "project", lambda t: t.append(t[0])),
        "task 1",
    ),
    "Label Studio, no photos": (changed("label-studio", {"photos/beach 01.jpg": None}), "beach 01.jpg"),
    "Label Studio, no label": (
        changed_json(
            "label-studio", "project", set_in(0, "annotations", 0, "result", 0, "value", "brushlabels", [])
        ),
        "task 1",
    ),
    # Supervisely, CVAT
    "Supervisely, an unknown class": (
        changed_json("supervisely", "beach", set_in("objects", 0, "classTitle", "unicorn")),
        "unicorn",
    ),
    "Supervisely, a damaged bitmap": (
        changed_json("supervisely", "beach", set_in("objects", 0, "bitmap", "data", "AAAA")),
        "object 0",
    ),
    "Supervisely, a bitmap bomb": (
        changed_json("supervisely", "beach", set_in("objects", 0, "bitmap", "data", BITMAP_BOMB)),
        "object 0",
    ),
    "Supervisely, another shape": (
        changed_json("supervisely", "beach", set_in("objects", 0, "geometryType", "cuboid")),
        "cuboid",
    ),
    "CVAT, no photos": (changed("cvat", {"JPEGImages/beach 01.jpg": None}), "Save images"),
    "CVAT, a colour not in the label map": (
        changed(
            "cvat",
            {"labelmap.txt": "# label:color_rgb:parts:actions\nbackground:0,0,0::\ntree:250,50,83::\n"},
        ),
        "#33ddff",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_bad_input_ends_with_one_message_and_leaves_nothing(name: str, tmp_path: Path, fcn: Callable, capsys):
    make, word = CASES[name]
    (tmp_path / "room").mkdir()
    source = make(tmp_path / "room")
    before = tree(tmp_path)
    assert fcn("import", source, tmp_path / "out") == 2
    error = capsys.readouterr().err
    message = error[error.rindex("error: ") :]
    assert word in message
    assert "Traceback" not in error
    assert tree(tmp_path) == before
    assert not (tmp_path / "out").exists()
    assert {path.name for path in tmp_path.iterdir()} == {"room"}


JUNK = (None, True, -1, 0, 1.5, 1e308, "", "x", "../../x", [], {}, [1], [[1]], {"a": 1}, 10**30, "á" * 50)


def places(content: Any, path: tuple = ()) -> Iterator[tuple]:
    yield path
    inner = (
        content.items()
        if isinstance(content, dict)
        else enumerate(content[:4])
        if isinstance(content, list)
        else ()
    )
    for key, value in inner:
        yield from places(value, (*path, key))


@pytest.mark.parametrize(
    "fixture", ["coco", "coco-panoptic", "labelme", "label-studio", "supervisely", "supervisely-masks"]
)
def test_json_with_a_value_of_another_kind_anywhere_is_read_or_refused(fixture: str, tmp_path: Path):
    source = unpacked(fixture, tmp_path / "in")
    texts = {path: path.read_text("utf-8") for path in sorted(source.rglob("*.json"))}
    rng = random.Random(fixture)
    num_refused = 0
    for _ in range(40):
        path = rng.choice(list(texts))
        content = json.loads(texts[path])
        *keys, last = rng.choice(list(places(content))[1:])
        inner = content
        for key in keys:
            inner = inner[key]
        inner[last] = rng.choice(JUNK)
        path.write_text(json.dumps(content), "utf-8")
        try:
            import_data(source, tmp_path / "out", Settings())
            shutil.rmtree(tmp_path / "out")
        except UserError:
            num_refused += 1
        path.write_text(texts[path], "utf-8")
    assert num_refused > 5


def test_a_mask_with_a_changed_byte_anywhere_is_read_or_refused(tmp_path: Path):
    source = write(tmp_path / "in", pairs() | {"classes.txt": "a\nb\nc\n"})
    path = source / "masks/p1.png"
    whole = path.read_bytes()
    rng = random.Random(0)
    wanted = np.asarray(Image.open(path))
    num_refused = 0
    for _ in range(40):
        damaged = bytearray(whole)
        damaged[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
        path.write_bytes(bytes(damaged))
        try:
            import_data(source, tmp_path / "out", Settings())
        except UserError:
            num_refused += 1
        else:
            np.testing.assert_array_equal(labels_of(tmp_path / "out")["images/p1.jpg"], wanted)
            shutil.rmtree(tmp_path / "out")
    assert num_refused > 30
