"""The exports in fixtures/, written by the tools themselves, become the labels that the tools see in them."""

import hashlib
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import DatasetError
from pipeline.importing import formats
from pipeline.importing.write import Settings, import_data
from pipeline.shards.labels import is_label_png
from tests.importing.conftest import FIXTURES, encoded, jpeg, labels_of, write

FORMATS = {
    "camvid": "plain",
    "coco": "coco",
    "coco-panoptic": "coco-panoptic",
    "cvat": "cvat",
    "darwin": "plain",
    "label-studio": "label-studio",
    "labelme": "labelme",
    "labelme2voc": "labelme2voc",
    "roboflow": "roboflow",
    "supervisely": "supervisely",
    "supervisely-masks": "supervisely",
    "supervision": "coco",
}


@pytest.mark.parametrize("name", FORMATS)
def test_an_export_gives_the_labels_that_its_tool_sees(name: str, tmp_path: Path):
    result = import_data(FIXTURES / f"{name}.zip", tmp_path / "out", Settings())
    assert result.format == FORMATS[name]
    expected = dict(np.load(FIXTURES / f"{name}.npz"))
    names = expected.pop("classes").tolist()
    classes = (tmp_path / "out/classes.txt").read_text("utf-8").splitlines()
    assert sorted(classes) == sorted(names)
    assert classes[0] == names[0]
    table = np.full(256, 255)
    table[: len(names)] = [classes.index(name) for name in names]
    labels = labels_of(tmp_path / "out")
    assert labels.keys() == expected.keys()
    for photo, label in labels.items():
        np.testing.assert_array_equal(label, table[expected[photo]], err_msg=photo)


@pytest.mark.parametrize("name", FORMATS)
def test_jpeg_bytes_stay_and_every_file_read_is_on_record(name: str, tmp_path: Path):
    import_data(FIXTURES / f"{name}.zip", tmp_path / "out", Settings())
    record = json.loads((tmp_path / "out/import.json").read_text("utf-8"))
    with zipfile.ZipFile(FIXTURES / f"{name}.zip") as packed:
        content = {path: packed.read(path) for path in packed.namelist() if not path.endswith("/")}
    for path, digest in record["files"].items():
        assert hashlib.sha256(content[path]).hexdigest() == digest
    for photo in record["photos"]:
        (image,) = (tmp_path / "out/images").glob(f"{photo['key']}.*")
        if photo["source"].lower().endswith(("jpg", "jpeg")):
            assert image.suffix == ".jpg"
            assert image.read_bytes() == content[photo["source"]]
        assert is_label_png((tmp_path / f"out/masks/{photo['key']}.png").read_bytes())
    assert record["files"].keys() | record["left_out"].keys() >= {
        path for path in content if path.endswith((".jpg", ".png", ".jpeg"))
    }


def test_all_formats_are_named_by_the_message_about_none(tmp_path: Path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in/readme.md").write_text("nothing")
    with pytest.raises(ValueError, match="no format") as error:
        import_data(tmp_path / "in", tmp_path / "out", Settings())
    assert all(name in str(error.value) for name in formats.names())


def test_photos_of_one_name_below_a_folder_of_any_name_get_the_masks_of_their_own_folders(tmp_path: Path):
    files: dict[str, bytes | str] = {}
    for number, name in enumerate(("day/1", "day/2", "night/1", "night/3")):
        files[f"camera/{name}.jpg"] = jpeg(seed=number)
        files[f"masks/{name}.png"] = encoded(np.full((12, 16), number, np.uint8))
    import_data(write(tmp_path / "in", files), tmp_path / "out", Settings())
    values = {photo: int(label[0, 0]) for photo, label in labels_of(tmp_path / "out").items()}
    assert values == {
        f"camera/{name}.jpg": i for i, name in enumerate(("day/1", "day/2", "night/1", "night/3"))
    }


def test_a_mask_that_fits_photos_of_several_folders_is_refused(tmp_path: Path):
    files: dict[str, bytes | str] = {"masks/1.png": encoded(np.eye(12, 16, dtype=np.uint8))}
    files |= {f"camera/{name}.jpg": jpeg(seed=ord(name[0])) for name in ("day/1", "night/1", "night/2")}
    files["masks/2.png"] = files["masks/1.png"]
    with pytest.raises(DatasetError, match=r"camera/day/1\.jpg, camera/night/1\.jpg, masks/1\.png"):
        import_data(write(tmp_path / "in", files), tmp_path / "out", Settings())
