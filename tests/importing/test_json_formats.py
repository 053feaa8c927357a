"""Exports whose annotations are JSON: which files are read, and what they become."""

import base64
import hashlib
import json
import os
import shlex
import subprocess
import sys
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.errors import DatasetError
from pipeline.importing import names
from pipeline.importing.classes import ClassMap
from pipeline.importing.write import Settings, import_data
from tests.importing.conftest import encoded, jpeg, labels_of, pairs, record_of, write

BOX = [2, 2, 10, 2, 10, 8, 2, 8]  # x, y of the corners


def coco(photos: list[str], first_id: int = 0, **changes: Any) -> str:
    """COCO instances, one object a photo of 12 x 16 (height, width)."""
    ids = range(first_id, first_id + len(photos))
    content = {
        "images": [
            {"id": i, "file_name": name, "height": 12, "width": 16}
            for i, name in zip(ids, photos, strict=True)
        ],
        "annotations": [
            {"id": i, "image_id": i, "category_id": 1, "iscrowd": 0, "segmentation": [BOX]} for i in ids
        ],
        "categories": [{"id": 1, "name": "cat"}],
    }
    return json.dumps(content | changes)


def photos(*names: str) -> dict[str, bytes | str]:
    return {name: jpeg(seed=number) for number, name in enumerate(names)}


def labelme(photo: str, *labels: str) -> str:
    """A labelme file with a triangle for each label."""
    shapes = [{"label": label, "points": [[2, 2], [10, 2], [10, 8]]} for label in labels]
    return json.dumps({"shapes": shapes, "imagePath": photo, "imageHeight": 12, "imageWidth": 16})


def tasks(*names: str) -> str:
    """Label Studio's tasks, one region a photo."""
    region = {
        "type": "rectanglelabels",
        "original_height": 12,
        "original_width": 16,
        "value": {"x": 10, "y": 10, "width": 50, "height": 50, "rectanglelabels": ["cat"]},
    }
    return json.dumps(
        [
            {"id": i, "data": {"image": name}, "annotations": [{"result": [region]}]}
            for i, name in enumerate(names)
        ]
    )


def test_every_coco_file_of_an_export_is_read(tmp_path: Path):
    names = [f"p{number}.jpg" for number in range(25)]
    files = {f"task{number:02}/instances.json": coco([name], number) for number, name in enumerate(names)}
    result = import_data(write(tmp_path / "in", photos(*names) | files), tmp_path / "out", Settings())
    assert (result.format, result.num_photos, result.left_out) == ("coco", 25, {})


@pytest.mark.parametrize("chosen", [True, False])
@pytest.mark.parametrize("name", ["coco", "labelme", "label-studio"])
def test_annotations_behind_many_other_json_files_are_recognised(name: str, chosen: bool, tmp_path: Path):
    content = {
        "coco": coco(["a.jpg", "b.jpg"]),
        "labelme": labelme("a.jpg", "cat"),
        "label-studio": tasks("a.jpg", "b.jpg"),
    }
    others = {f"camera/{number}.json": '{"exposure": 1}' for number in range(30)}
    files = photos("a.jpg", "b.jpg") | others | {"z.json": content[name]}
    if name == "labelme":
        files["zz.json"] = labelme("b.jpg", "cat")
    source = write(tmp_path / "in", files)
    result = import_data(source, tmp_path / "out", Settings(format=name if chosen else None))
    assert (result.format, result.num_photos) == (name, 2)


def test_json_of_another_kind_or_damaged_beside_photos_and_masks_changes_nothing(tmp_path: Path):
    import_data(write(tmp_path / "plain", pairs()), tmp_path / "expected", Settings())
    others = {"metadata.json": '{"a": 1}\n{"a": 2}\n', "camera.json": "[1, 2]", "empty.json": ""}
    result = import_data(write(tmp_path / "in", pairs() | others), tmp_path / "out", Settings())
    assert result.format == "plain"
    expected, labels = labels_of(tmp_path / "expected"), labels_of(tmp_path / "out")
    assert labels.keys() == expected.keys()
    assert all((labels[photo] == expected[photo]).all() for photo in expected)


def test_a_damaged_json_file_is_named_where_it_may_hold_the_annotations(tmp_path: Path):
    source = write(tmp_path / "in", photos("a.jpg") | {"instances.json": coco(["a.jpg"])[:-9]})
    with pytest.raises(DatasetError, match=r"instances\.json"):
        import_data(source, tmp_path / "out", Settings())


def supervisely(*names: str, form: str = "NFC", classes: Any = ({"title": "cat"},)) -> dict[str, bytes | str]:
    """A project with a photo and its annotation for each name.

    form: the Unicode form of the annotations' names.
    """
    triangle = {
        "classTitle": "cat",
        "geometryType": "polygon",
        "points": {"exterior": [[2, 2], [10, 2], [10, 8]], "interior": []},
    }
    annotation = json.dumps({"size": {"height": 12, "width": 16}, "objects": [triangle]})
    files = {f"ds/img/{name}": jpeg(seed=number) for number, name in enumerate(names)}
    files |= {f"ds/ann/{unicodedata.normalize(form, name)}.json": annotation for name in names}
    return files | {"meta.json": json.dumps({"classes": list(classes)})}


@pytest.mark.parametrize("photo_form", ["NFC", "NFD"])
@pytest.mark.parametrize("json_form", ["NFC", "NFD"])
def test_supervisely_files_belong_together_in_any_unicode_form(
    photo_form: str, json_form: str, tmp_path: Path
):
    names = [unicodedata.normalize(photo_form, name) for name in ("é.jpg", "ö.jpg")]
    source = write(tmp_path / "in", supervisely(*names, form=json_form))
    result = import_data(source, tmp_path / "out", Settings())
    assert (result.format, result.num_photos, result.left_out) == ("supervisely", 2, {})


@pytest.mark.parametrize("photo_form", ["NFC", "NFD"])
def test_the_png_of_a_panoptic_photo_is_found_in_any_unicode_form(photo_form: str, tmp_path: Path):
    def named(form: str) -> str:
        return unicodedata.normalize(form, "é.png")

    other = "NFD" if photo_form == "NFC" else "NFC"
    mask = np.zeros((12, 16, 3), np.uint8)
    mask[:, :, 0] = 1 + (np.arange(16) > 7)
    segments = [{"id": 1, "category_id": 1}, {"id": 2, "category_id": 2}]
    content = {
        "images": [{"id": 1, "file_name": "a.jpg", "height": 12, "width": 16}],
        "annotations": [{"image_id": 1, "file_name": named(other), "segments_info": segments}],
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
    }
    files = photos("a.jpg", "b.jpg") | {f"ids/{named(photo_form)}": encoded(mask)}
    content["images"].append({"id": 2, "file_name": "b.jpg", "height": 12, "width": 16})
    source = write(tmp_path / "in", files | {"panoptic.json": json.dumps(content)})
    import_data(source, tmp_path / "out", Settings())
    np.testing.assert_array_equal(labels_of(tmp_path / "out")["a.jpg"], mask[:, :, 0] - 1)


def test_a_key_is_the_same_on_macos_and_linux():
    paths = ["a/é.jpg", "b/é.jpg", "b/e.jpg"]
    composed, decomposed = (
        list(names.keys(unicodedata.normalize(form, path) for path in paths).values())
        for form in ("NFC", "NFD")
    )
    assert sorted(composed) == sorted(decomposed)
    both = names.keys(unicodedata.normalize(form, path) for path in paths for form in ("NFC", "NFD"))
    assert len(set(both.values())) == len(both) == 5


@pytest.mark.parametrize(
    "meta",
    [
        '{"a": 1}\n{"a": 2}\n',
        '{"classes": ["a", "b"]}',
        '{"classes": []}',
        '{"classes": [{"title": 3}]}',
        "[]",
    ],
)
def test_a_foreign_meta_json_beside_photos_and_masks_changes_nothing(meta: str, tmp_path: Path):
    source = write(tmp_path / "in", pairs() | {"meta.json": meta, "data/meta.json": meta})
    assert import_data(source, tmp_path / "out", Settings()).format == "plain"


def test_a_foreign_meta_json_beside_that_of_supervisely_changes_nothing(tmp_path: Path):
    files = supervisely("a.jpg", "b.jpg") | {"other/meta.json": '{"classes": ["a"]}', "camera/meta.json": "?"}
    result = import_data(write(tmp_path / "in", files), tmp_path / "out", Settings())
    assert (result.format, result.num_photos, result.classes) == ("supervisely", 2, ["background", "cat"])


def test_a_supervisely_class_without_a_title_is_refused(tmp_path: Path):
    source = write(tmp_path / "in", supervisely("a.jpg", classes=[{"title": ""}]))
    with pytest.raises(DatasetError, match=r"meta\.json"):
        import_data(source, tmp_path / "out", Settings())


def of_format(name: str, *labels: str) -> dict[str, bytes | str]:
    """Two photos in a format, each with an object of every class."""
    names = ("a.jpg", "b.jpg")
    if name == "labelme":
        return photos(*names) | {f"{photo}.json": labelme(photo, *labels) for photo in names}
    if name == "supervisely":
        files = supervisely(*names, classes=[{"title": label} for label in labels])
        for photo in names:
            content = json.loads(files[f"ds/ann/{photo}.json"])
            (first,) = content["objects"]
            content["objects"] = [first | {"classTitle": label} for label in labels]
            files[f"ds/ann/{photo}.json"] = json.dumps(content)
        return files
    if name == "label-studio":
        content = json.loads(tasks(*names))
        for task in content:
            (first,) = task["annotations"][0]["result"]
            task["annotations"][0]["result"] = [
                first | {"value": first["value"] | {"rectanglelabels": [label]}} for label in labels
            ]
        return photos(*names) | {"tasks.json": json.dumps(content)}
    content = json.loads(coco(list(names)))
    content["categories"] = [{"id": i, "name": label} for i, label in enumerate(labels)]
    content["annotations"] = [
        {"id": 10 * photo + i, "image_id": photo, "category_id": i, "segmentation": [BOX]}
        for photo in range(2)
        for i in range(len(labels))
    ]
    return photos(*names) | {"instances.json": json.dumps(content)}


DRAWN = ["coco", "labelme", "label-studio", "supervisely"]


@pytest.mark.parametrize("void", ["ignore", "Void", "__ignore__"])
@pytest.mark.parametrize("name", DRAWN)
def test_objects_called_ignore_or_void_are_void_in_every_drawn_format(name: str, void: str, tmp_path: Path):
    source = write(tmp_path / "in", of_format(name, "cat", void))
    result = import_data(source, tmp_path / "out", Settings())
    assert result.classes == ["background", "cat"]
    for label in labels_of(tmp_path / "out").values():
        assert set(np.unique(label)) == {0, 255}  # the void object covers the cat
    assert result.num_pixels[-1] > 0


@pytest.mark.parametrize("name", DRAWN)
def test_a_class_called_ignore_stays_where_map_names_it(name: str, tmp_path: Path):
    source = write(tmp_path / "in", of_format(name, "cat", "ignore"))
    settings = Settings(class_map=ClassMap.parse(["ignore=junk"]))
    result = import_data(source, tmp_path / "out", settings)
    assert result.classes == ["background", "cat", "junk"]
    assert result.num_pixels[-1] == 0


def test_void_names_of_labelme_give_the_same_records_in_every_process(tmp_path: Path):
    source = write(tmp_path / "in", of_format("labelme", "cat", "ignore", "void", "__ignore__"))
    command = [sys.executable, "-m", "pipeline.cli.main", "import", str(source), str(tmp_path / "out")]
    records = []
    for seed in ("1", "2", "3"):
        subprocess.run(command, env=os.environ | {"PYTHONHASHSEED": seed}, check=True, capture_output=True)
        records.append(record_of(tmp_path / "out")["photos"])
    assert records[0] == records[1] == records[2]


def test_a_photo_inside_its_labelme_file_is_kept_by_the_next_import_until_the_file_changes(tmp_path: Path):
    texts = []
    for number in range(3):
        content = json.loads(labelme(f"{number}.jpg", "cat"))
        content["imageData"] = base64.b64encode(jpeg(seed=number)).decode()
        texts.append(json.dumps(content))
    source = write(tmp_path / "in", {f"{number}.json": text for number, text in enumerate(texts)})
    import_data(source, tmp_path / "out", Settings())
    for number, photo in enumerate(record_of(tmp_path / "out")["photos"]):
        assert photo["read"] == {f"{number}.json": hashlib.sha256(texts[number].encode()).hexdigest()}
    write(source, {"1.json": texts[1].replace('"cat"', '"cat" ')})
    assert import_data(source, tmp_path / "out", Settings()).num_kept == 2


def test_a_photo_inside_its_labelme_file_is_not_replaced_by_one_of_its_name_elsewhere(tmp_path: Path):
    content = json.loads(labelme("9.jpg", "cat"))
    content["imageData"] = base64.b64encode(jpeg(seed=3)).decode()
    files = {
        "a/9.json": json.dumps(content),
        "b/9.jpg": jpeg(seed=4),
        "c/1.jpg": jpeg(),
        "c/1.json": labelme("1.jpg", "cat"),
    }
    import_data(write(tmp_path / "in", files), tmp_path / "out", Settings())
    written = {path.read_bytes() for path in (tmp_path / "out/images").iterdir()}
    assert written == {jpeg(seed=3), jpeg()}


def test_a_group_without_annotations_that_repeats_a_name_is_left_out_and_stated(tmp_path: Path):
    categories = [
        {"id": 0, "name": "cat", "supercategory": "none"},
        {"id": 1, "name": "cat", "supercategory": "cat"},
    ]
    names = ["a.jpg", "b.jpg"]
    files = photos(*names) | {"train/_annotations.coco.json": coco(names, categories=categories)}
    result = import_data(write(tmp_path / "in", files), tmp_path / "out", Settings())
    assert result.classes == ["background", "cat"]
    assert any("category 0" in decision for decision in result.decisions)


def test_two_categories_of_one_name_with_annotations_are_refused(tmp_path: Path):
    content = json.loads(coco(["a.jpg", "b.jpg"], categories=[{"id": i, "name": "cat"} for i in (1, 2)]))
    content["annotations"][0]["category_id"] = 2
    source = write(tmp_path / "in", photos("a.jpg", "b.jpg") | {"instances.json": json.dumps(content)})
    with pytest.raises(DatasetError, match="cat"):
        import_data(source, tmp_path / "out", Settings())


def test_photos_annotated_in_two_coco_files_are_refused_with_both(tmp_path: Path):
    names = ["a.jpg", "b.jpg"]
    keypoints = json.loads(coco(names))
    for annotation in keypoints["annotations"]:
        annotation["keypoints"] = [0] * 51
    files = photos(*names) | {
        "annotations/instances_train2017.json": coco(names),
        "annotations/person_keypoints_train2017.json": json.dumps(keypoints),
    }
    with pytest.raises(DatasetError, match=r"instances_train2017\.json.*person_keypoints_train2017\.json"):
        import_data(write(tmp_path / "in", files), tmp_path / "out", Settings())


@pytest.mark.parametrize("folder", ["images/", ""])
@pytest.mark.parametrize("outer", ["", "train_data/"])
def test_photos_of_one_name_are_those_of_their_own_splits_folder(folder: str, outer: str, tmp_path: Path):
    """Frames of several videos begin at 0; datumaro's file_name has no folder."""
    files: dict[str, bytes | str] = {}
    for number, split in enumerate(("train", "val")):
        files[f"{outer}{folder}{split}/frame_0.png"] = encoded(np.full((12, 16, 3), number, np.uint8))
        files[f"{outer}annotations/instances_{split}.json"] = coco(["frame_0.png"], number)
    result = import_data(write(tmp_path / "in", files), tmp_path / "out", Settings())
    assert result.lists == {"train": 1, "val": 1}
    assert set(labels_of(tmp_path / "out")) == {
        f"{outer}{folder}{split}/frame_0.png" for split in ("train", "val")
    }


def test_the_id_map_of_a_panoptic_png_is_not_taken_for_the_photo(tmp_path: Path):
    mask = np.zeros((12, 16, 3), np.uint8)
    mask[:, :, 0] = 1 + (np.arange(16) > 7)
    segments = [{"id": 1, "category_id": 1}, {"id": 2, "category_id": 2}]
    content = {
        "images": [{"id": i, "file_name": f"p{i}.png", "height": 12, "width": 16} for i in range(2)],
        "annotations": [
            {"image_id": i, "file_name": f"p{i}.png", "segments_info": segments} for i in range(2)
        ],
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
    }
    files: dict[str, bytes | str] = {"annotations/panoptic_default.json": json.dumps(content)}
    for number in range(2):
        files[f"annotations/panoptic_default/p{number}.png"] = encoded(mask)
        files[f"images/default/p{number}.png"] = encoded(np.full((12, 16, 3), 9 + number, np.uint8))
    import_data(write(tmp_path / "in", files), tmp_path / "out", Settings())
    assert set(labels_of(tmp_path / "out")) == {f"images/default/p{number}.png" for number in range(2)}


def test_captions_beside_instances_change_nothing(tmp_path: Path):
    names = ["a.jpg", "b.jpg"]
    captions = json.loads(coco(names))
    captions["annotations"] = [{"id": 1, "image_id": 0, "caption": "a cat"}]
    files = photos(*names) | {
        "annotations/captions_val2017.json": json.dumps(captions),
        "annotations/instances_val2017.json": coco(names),
    }
    result = import_data(write(tmp_path / "in", files), tmp_path / "out", Settings())
    assert result.num_photos == 2


def test_a_folder_of_links_is_refused_with_the_links(tmp_path: Path):
    real = write(tmp_path / "real", pairs())
    (tmp_path / "in").mkdir()
    for name in ("images", "masks"):
        (tmp_path / "in" / name).symlink_to(real / name)
    with pytest.raises(DatasetError, match=r"images.*link"):
        import_data(tmp_path / "in", tmp_path / "out", Settings())


def test_a_region_of_label_studio_takes_its_label_from_a_labels_tag_beside_it(tmp_path: Path):
    import_data(
        write(tmp_path / "in", photos("a.jpg", "b.jpg") | {"x.json": tasks("a.jpg", "b.jpg")}),
        tmp_path / "whole",
        Settings(),
    )
    content = json.loads(tasks("a.jpg", "b.jpg"))
    for task in content:
        (region,) = task["annotations"][0]["result"]
        value = {key: number for key, number in region["value"].items() if key != "rectanglelabels"}
        drawn = region | {"id": "r1", "type": "rectangle", "value": value}
        note = drawn | {"type": "textarea", "value": value | {"text": ["left"]}}
        task["annotations"][0]["result"] = [
            drawn,
            drawn | {"type": "labels", "value": value | {"labels": ["cat"]}},
            note,
            drawn | {"id": "r2"},
        ]
    source = write(tmp_path / "apart", photos("a.jpg", "b.jpg") | {"x.json": json.dumps(content)})
    result = import_data(source, tmp_path / "out", Settings())
    assert "left out: results of the kinds rectangle, textarea" in result.decisions
    expected = labels_of(tmp_path / "whole")
    for photo, label in labels_of(tmp_path / "out").items():
        np.testing.assert_array_equal(label, expected[photo])


@pytest.mark.parametrize("name", ["a\u2028b", "a\x0bb", "a\nb", "a\x7fb"])
def test_a_class_name_that_is_not_one_line_of_text_is_refused(name: str, tmp_path: Path):
    files = photos("a.jpg", "b.jpg") | {f"{key}.json": labelme(f"{key}.jpg", name) for key in "ab"}
    with pytest.raises(DatasetError, match="--map"):
        import_data(write(tmp_path / "in", files), tmp_path / "out", Settings())


def test_the_map_proposed_for_a_class_that_is_not_trained_can_be_given(tmp_path: Path):
    content = json.loads(coco(["a.jpg", "b.jpg"], 0))
    content["categories"].append({"id": 77, "name": "tv, monitor"})
    source = write(tmp_path / "in", photos("a.jpg", "b.jpg") | {"x.json": json.dumps(content)})
    (warning,) = [
        one for one in import_data(source, tmp_path / "out", Settings()).warnings if "monitor" in one
    ]
    words = shlex.split(warning.partition("by ")[2])
    mapped = Settings(class_map=ClassMap.parse([words[1].removesuffix(",")]))
    assert "tv, monitor" not in import_data(source, tmp_path / "mapped", mapped).classes
