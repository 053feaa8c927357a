"""Masks of every kind become the same label; values and colours without a class are refused with their share."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.errors import DatasetError
from pipeline.importing.classes import ClassMap
from pipeline.importing.write import Settings, import_data
from tests.importing.conftest import (
    FIXTURES,
    encoded,
    jpeg,
    labels_of,
    pairs,
    record_of,
    tiff_of_16_bit_colours,
    unpacked,
    write,
)

LABEL = np.random.default_rng(3).integers(0, 3, (12, 16)).astype(np.uint8)
LABEL[0, 0:3] = 0, 1, 2
COLOURS = np.array([[0, 0, 0], [200, 10, 10], [10, 200, 250]], np.uint8)
CSV = "name,r,g,b\nbackground,0,0,0\ncat,200,10,10\ndog,10,200,250\n"


def palette() -> Image.Image:
    image = Image.fromarray(LABEL)
    image.putpalette(COLOURS.ravel().tolist())
    return image


def shuffled_palette() -> Image.Image:
    """The same colours under other indices, as a picture editor saves them."""
    image = Image.fromarray(np.array([2, 0, 1], np.uint8)[LABEL])
    image.putpalette(COLOURS[[1, 2, 0]].ravel().tolist())
    return image


def rgba() -> np.ndarray:
    return np.dstack([COLOURS[LABEL], np.full((12, 16), 255, np.uint8)])


def cut_out() -> np.ndarray:
    """Colours on transparent ground whose hidden colour is white."""
    pixels = rgba()
    pixels[LABEL == 0] = 255, 255, 255, 0
    return pixels


def four_bits() -> bytes:
    return encoded(palette(), bits=4)


KINDS = {  # a mask file and the class table beside it
    "index, list of names": (encoded(LABEL), "classes.txt", "background\ncat\ndog\n"),
    "index, values": (encoded(LABEL * 40), "classes.csv", "value,name\n0,background\n40,cat\n80,dog\n"),
    "index, Roboflow's header": (
        encoded(LABEL),
        "_classes.csv",
        "Pixel Value, Class\n0, background\n1, cat\n2, dog\n",
    ),
    "palette, list of names": (encoded(palette()), "classes.txt", "\ufeffbackground\r\ncat\r\n\r\ndog\r\n"),
    "palette, colours": (encoded(palette()), "classes.csv", CSV),
    "palette of other order, colours": (encoded(shuffled_palette()), "class_dict.csv", CSV),
    "palette of 4 bits": (four_bits(), "classes.csv", CSV),
    "RGB, colours": (encoded(COLOURS[LABEL]), "classes.csv", CSV),
    "RGB, labelmap": (
        encoded(COLOURS[LABEL]),
        "labelmap.txt",
        "# label:color_rgb:parts:actions\ncat:200,10,10::\nbackground:0,0,0::\n\ndog:10,200,250::\n",
    ),
    "RGB, CamVid": (
        encoded(COLOURS[LABEL]),
        "label_colors.txt",
        "0 0 0\tbackground\n200 10 10\tcat\n10 200 250\tdog\n",
    ),
    "RGB, Darwin": (
        encoded(COLOURS[LABEL]),
        "class_mapping.csv",
        "class_name,class_color\n__background__,0 0 0\ncat,200 10 10\ndog,10 200 250\n",
    ),
    "RGB, hex": (
        encoded(COLOURS[LABEL]),
        "classes.csv",
        "name;color\nbackground;#000000\ncat;#C80A0A\ndog;#0AC8FA\n",
    ),
    "RGB in TIFF": (encoded(COLOURS[LABEL], "TIFF"), "classes.csv", CSV),
    "RGB of equal channels": (
        encoded(np.repeat(LABEL[:, :, None], 3, 2)),
        "classes.txt",
        "background\ncat\ndog\n",
    ),
    "RGBA, opaque": (encoded(rgba()), "classes.csv", CSV),
    "RGBA, cut out": (encoded(cut_out()), "classes.csv", CSV),
    "16-bit ids": (
        encoded(LABEL.astype(np.uint16) * 1000),
        "classes.csv",
        "id,name\n0,background\n1000,cat\n2000,dog\n",
    ),
    "grey by Darwin": (
        encoded((LABEL.astype(int) * 255 // 2).astype(np.uint8)),
        "class_mapping.csv",
        "class_name,class_color\n__background__,0\ncat,127\ndog,255\n",
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_mask_of_any_kind_gives_the_same_label(kind: str, tmp_path: Path):
    data, table, text = KINDS[kind]
    ending = ".tif" if kind.endswith("TIFF") else ".png"
    write(tmp_path / "in", {f"masks/{name}{ending}": data for name in "ab"})
    write(tmp_path / "in", {f"images/{name}.jpg": jpeg(seed=ord(name)) for name in "ab"} | {table: text})
    result = import_data(tmp_path / "in", tmp_path / "out", Settings())
    assert result.classes[1:] == ["cat", "dog"]
    for label in labels_of(tmp_path / "out").values():
        np.testing.assert_array_equal(label, LABEL)


BINARY = (LABEL > 0).astype(np.uint8)
BINARY_KINDS = {
    "0 and 255": encoded(BINARY * 255),
    "0 and 1": encoded(BINARY),
    "1 bit": encoded(Image.fromarray(BINARY * 255).convert("1")),
    "palette": encoded(Image.fromarray(BINARY * 255).convert("P")),
    "RGB white": encoded(np.repeat(BINARY[:, :, None] * 255, 3, 2)),
    "alpha": encoded(np.dstack([np.zeros((12, 16, 3), np.uint8), BINARY * 255])),
    "16 bits": encoded(BINARY.astype(np.uint16) * 255),
    "16 bits, white": encoded(BINARY.astype(np.uint16) * 65535),
}


@pytest.mark.parametrize("names", ["background\nlesion\n", "lesion\n", None])
@pytest.mark.parametrize("kind", BINARY_KINDS)
def test_a_binary_mask_has_two_classes_and_no_void(kind: str, names: str | None, tmp_path: Path):
    files: dict[str, bytes | str] = {"classes.txt": names} if names else {}
    files |= {f"masks/{name}.png": BINARY_KINDS[kind] for name in "ab"}
    write(tmp_path / "in", files | {f"images/{name}.jpg": jpeg(seed=ord(name)) for name in "ab"})
    result = import_data(tmp_path / "in", tmp_path / "out", Settings())
    assert result.classes == ["background", "lesion" if names else "foreground"]
    for label in labels_of(tmp_path / "out").values():
        np.testing.assert_array_equal(label, BINARY)


def test_an_opaque_black_mask_is_background_and_one_beside_masks_drawn_by_transparency_is_refused(
    tmp_path: Path,
):
    def files(other: np.ndarray) -> dict[str, bytes | str]:
        black = np.dstack([np.zeros((12, 16, 3), np.uint8), np.full((12, 16), 255, np.uint8)])
        masks = {"masks/a.png": encoded(other), "masks/b.png": encoded(black)}
        return {**masks, "images/a.jpg": jpeg(seed=1), "images/b.jpg": jpeg(seed=2)}

    white = np.dstack([np.repeat(BINARY[:, :, None] * 255, 3, 2), np.full((12, 16), 255, np.uint8)])
    import_data(write(tmp_path / "white", files(white)), tmp_path / "out", Settings())
    labels = labels_of(tmp_path / "out")
    np.testing.assert_array_equal(labels["images/a.jpg"], BINARY)
    assert not labels["images/b.jpg"].any()
    by_alpha = np.dstack([np.zeros((12, 16, 3), np.uint8), BINARY * 255])
    with pytest.raises(DatasetError, match=r"masks/b\.png.*masks/a\.png"):
        import_data(write(tmp_path / "alpha", files(by_alpha)), tmp_path / "refused", Settings())


def test_two_lines_name_0_and_1_in_any_order_and_0_and_255_only_where_they_leave_no_doubt(tmp_path: Path):
    def project(name: str, values: np.ndarray) -> Path:
        masks = {f"masks/{key}.png": encoded(values) for key in "ab"}
        photos = {f"images/{key}.jpg": jpeg(seed=ord(key)) for key in "ab"}
        return write(tmp_path / name, {**masks, **photos, "classes.txt": "lesion\nbackground\n"})

    result = import_data(project("one", BINARY), tmp_path / "out", Settings())
    assert result.classes == ["background", "lesion"]
    np.testing.assert_array_equal(labels_of(tmp_path / "out")["images/a.jpg"], 1 - BINARY)
    white = project("white", BINARY * 255)
    with pytest.raises(DatasetError, match=r"lesion.*--map"):
        import_data(white, tmp_path / "refused", Settings())
    stated = Settings(class_map=ClassMap.parse(["0=background,255=lesion"]))
    assert import_data(white, tmp_path / "stated", stated).classes == ["background", "lesion"]
    np.testing.assert_array_equal(labels_of(tmp_path / "stated")["images/a.jpg"], BINARY)


def test_values_without_a_table_are_classes_and_255_is_void(tmp_path: Path):
    result = import_data(write(tmp_path / "in", pairs(values=(0, 3, 255, 9))), tmp_path / "out", Settings())
    assert result.classes == ["background", "class3", "class9"]
    label = labels_of(tmp_path / "out")["images/p0.jpg"]
    assert label[0, :4].tolist() == [0, 1, 255, 2]


def test_a_strange_colour_of_a_palette_is_void_as_value_255_and_reported_as_another(tmp_path: Path):
    def project(name: str, strange: int) -> Path:
        numbers = np.array([0, 2, strange], np.uint8)  # cat's colour is not that of its line
        colours = np.zeros((256, 3), np.uint8)
        colours[2], colours[strange] = COLOURS[1], (224, 224, 192)
        mask = Image.fromarray(numbers[LABEL])
        mask.putpalette(colours.ravel().tolist())
        files = {f"masks/{key}.png": encoded(mask) for key in "ab"} | {"classes.csv": CSV}
        return write(tmp_path / name, files | {f"images/{key}.jpg": jpeg(seed=ord(key)) for key in "ab"})

    import_data(project("border", 255), tmp_path / "out", Settings())
    expected = np.array([0, 1, 255], np.uint8)[LABEL]
    np.testing.assert_array_equal(labels_of(tmp_path / "out")["images/a.jpg"], expected)
    with pytest.raises(DatasetError, match="#e0e0c0"):
        import_data(project("stray", 1), tmp_path / "refused", Settings())


def test_greys_of_a_colour_table_are_not_read_as_its_lines_beside_a_strange_value(tmp_path: Path):
    colours = json.dumps({"kiwi": [2, 2, 2], "lemon": [1, 1, 1]})
    files: dict[str, bytes | str] = {"obj_class_to_machine_color.json": colours}
    files |= {f"ds/img/{name}.jpg": jpeg(seed=ord(name)) for name in "ab"}
    mask = encoded(np.array([0, 1, 255], np.uint8)[LABEL])
    source = write(tmp_path / "in", files | {f"ds/masks_machine/{name}.png": mask for name in "ab"})
    with pytest.raises(DatasetError, match="--map '#ffffff="):
        import_data(source, tmp_path / "refused", Settings())
    assert import_data(
        source, tmp_path / "out", Settings(class_map=ClassMap.parse(["#ffffff=void"]))
    ).classes == ["background", "kiwi", "lemon"]
    assert labels_of(tmp_path / "out")["ds/img/a.jpg"][0, :3].tolist() == [0, 2, 255]


def test_palettes_that_number_the_colours_anew_in_each_mask_are_refused_without_a_table(tmp_path: Path):
    black_first = Image.fromarray(np.uint8(LABEL > 0))
    black_first.putpalette([0, 0, 0, 255, 255, 255])
    white_first = Image.fromarray(np.uint8(LABEL == 0))  # the same picture
    white_first.putpalette([255, 255, 255, 0, 0, 0])
    files: dict[str, bytes | str] = {f"images/p{i}.jpg": jpeg(seed=i) for i in range(2)}
    files |= {"masks/p0.png": encoded(black_first), "masks/p1.png": encoded(white_first)}
    with pytest.raises(DatasetError, match=r"masks/p1.png.*value 0 as #ffffff.*masks/p0.png.*classes.csv"):
        import_data(write(tmp_path / "in", files), tmp_path / "out", Settings())
    table: dict[str, bytes | str] = {"classes.csv": "name,r,g,b\nbackground,0,0,0\nthing,255,255,255\n"}
    import_data(write(tmp_path / "in", table), tmp_path / "out", Settings())
    first, second = labels_of(tmp_path / "out").values()
    assert (first == second).all()


@pytest.mark.parametrize("names", ["", "lesion\n"])
@pytest.mark.parametrize("light", [255, 240])
def test_masks_whose_palette_has_white_first_are_refused_until_map_states_the_background(
    light: int, names: str, tmp_path: Path
):
    drawn = Image.fromarray(np.where(BINARY > 0, np.uint8(light), np.uint8(3)))
    reduced = drawn.convert("RGB").quantize(2)  # Pillow numbers the lighter colour first
    assert np.array_equal(np.array(reduced), BINARY == 0)
    files: dict[str, bytes | str] = {f"images/{name}.jpg": jpeg(seed=ord(name)) for name in "ab"}
    files |= {f"masks/{name}.png": encoded(reduced) for name in "ab"} | (
        {"classes.txt": names} if names else {}
    )
    source = write(tmp_path / "in", files)
    with pytest.raises(DatasetError, match=r"--map '0=NAME,1=background'"):
        import_data(source, tmp_path / "out", Settings())
    if not names:
        stated = Settings(class_map=ClassMap.parse(["0=lesion,1=background"]))
        assert import_data(source, tmp_path / "out", stated).classes == ["background", "lesion"]
        np.testing.assert_array_equal(labels_of(tmp_path / "out")["images/a.jpg"], BINARY > 0)


@pytest.mark.parametrize("kind", ["trimap", "smoothed"])
def test_masks_of_0_and_255_with_other_values_between_are_refused_until_255_is_void(
    kind: str, tmp_path: Path
):
    large = Image.fromarray(np.uint8(BINARY > 0) * 255).resize((64, 48), Image.Resampling.NEAREST)
    mask = (
        np.array(large.resize((60, 44), Image.Resampling.BILINEAR)) if kind == "smoothed" else np.array(large)
    )
    if kind == "trimap":
        mask[0, :2], mask[-1] = 128, 255
    files: dict[str, bytes | str] = {f"images/{name}.jpg": jpeg(mask.shape, ord(name)) for name in "ab"}
    source = write(tmp_path / "in", files | {f"masks/{name}.png": encoded(mask) for name in "ab"})
    with pytest.raises(DatasetError, match="--map 255=void"):
        import_data(source, tmp_path / "out", Settings())
    stated = Settings(class_map=ClassMap.parse(["255=void"]))
    assert import_data(source, tmp_path / "out", stated).num_photos == 2


@pytest.mark.parametrize("void", ["Void", "VOID", "ignore", "__ignore__"])
def test_any_word_for_void_is_void_as_the_target_of_map(void: str, tmp_path: Path):
    write(tmp_path / "in", pairs(values=(0, 1, 2, 3)) | {"classes.txt": "Void\ncat\ndog\ncow\n"})
    dropped = Settings(class_map=ClassMap.parse([f"dog={void}"]))
    assert import_data(tmp_path / "in", tmp_path / "out", dropped).classes == ["cat", "cow"]
    assert labels_of(tmp_path / "out")["images/p0.jpg"][0, :4].tolist() == [255, 0, 255, 1]


@pytest.mark.parametrize("name", ["Classes.txt", "CLASSES.TXT", "labels.txt", "classes.txt"])
def test_a_list_of_names_is_found_in_any_case_and_labelmes_first_line_has_no_value(name: str, tmp_path: Path):
    files = pairs() | {name: "__ignore__\n_background_\ncat\ndog\n"}
    assert import_data(write(tmp_path / "in", files), tmp_path / "out", Settings()).classes == [
        "_background_",
        "cat",
        "dog",
    ]
    assert labels_of(tmp_path / "out")["images/p0.jpg"][0, :3].tolist() == [0, 1, 2]


@pytest.mark.parametrize("second", ["a_mask_1.png", "a_mask-2.png"])
def test_a_second_mask_of_a_photo_is_refused_not_left_out(second: str, tmp_path: Path):
    mask = encoded(BINARY * 255)
    files: dict[str, bytes | str] = {
        f"{name}.png": encoded(np.full((12, 16, 3), ord(name), np.uint8)) for name in "ab"
    }
    files |= {"a_mask.png": mask, "b_mask.png": mask, second: mask}
    with pytest.raises(DatasetError, match=rf"{second}.*a_mask\.png"):
        import_data(write(tmp_path / "in", files), tmp_path / "out", Settings())


def test_gif_masks_of_0_and_1_are_read(tmp_path: Path):
    mask = Image.fromarray(np.uint8(BINARY > 0))
    mask.putpalette([0, 0, 0, 255, 255, 255])
    files: dict[str, bytes | str] = {f"train/{name}.jpg": jpeg(BINARY.shape, ord(name)) for name in "ab"}
    files |= {f"train_masks/{name}_mask.gif": encoded(mask, "GIF") for name in "ab"}  # as Carvana's
    import_data(write(tmp_path / "in", files), tmp_path / "out", Settings(shares="0.5/0.5"))
    np.testing.assert_array_equal(labels_of(tmp_path / "out")["train/a.jpg"], BINARY > 0)


def test_masks_of_0_and_1_beside_masks_of_0_and_255_are_refused_until_255_is_stated(tmp_path: Path):
    masks = {"masks/a.png": encoded(Image.fromarray(BINARY > 0)), "masks/b.png": encoded(BINARY * 255)}
    photos: dict[str, bytes | str] = {f"images/{name}.jpg": jpeg(seed=ord(name)) for name in "ab"}
    source = write(tmp_path / "in", photos | masks)
    with pytest.raises(DatasetError, match=r"masks/a\.png.*masks/b\.png.*--map 255=void"):
        import_data(source, tmp_path / "out", Settings())
    for stated, value in (("255=void", 255), ("1=lesion,255=lesion", 1)):
        out = tmp_path / stated
        import_data(source, out, Settings(class_map=ClassMap.parse([stated])))
        np.testing.assert_array_equal(labels_of(out)["images/b.jpg"], BINARY * value)


@pytest.mark.parametrize("table", ["", "background\nroad\nwater\n"])
def test_minus_one_in_a_tiff_mask_is_void_and_other_values_below_0_are_refused_until_mapped(
    table: str, tmp_path: Path
):
    def project(name: str, value: int) -> Path:
        mask = np.where(LABEL == 2, value, LABEL.astype(np.int32)).astype(np.int32)
        files: dict[str, bytes | str] = {f"masks/{key}.tif": encoded(mask, "TIFF") for key in "ab"}
        files |= {f"images/{key}.jpg": jpeg(seed=ord(key)) for key in "ab"}
        return write(tmp_path / name, files | ({"classes.txt": table} if table else {}))

    void = np.where(LABEL == 2, 255, LABEL)
    import_data(project("one", -1), tmp_path / "out", Settings())
    np.testing.assert_array_equal(labels_of(tmp_path / "out")["images/a.jpg"], void)
    with pytest.raises(DatasetError, match=r"--map='?-9999="):
        import_data(project("nodata", -9999), tmp_path / "refused", Settings())
    stated = Settings(class_map=ClassMap.parse(["-9999=void"]))
    import_data(tmp_path / "nodata", tmp_path / "stated", stated)
    np.testing.assert_array_equal(labels_of(tmp_path / "stated")["images/a.jpg"], void)


def test_values_without_a_table_get_names_by_map(tmp_path: Path):
    settings = Settings(class_map=ClassMap.parse(["3=cat,9=void", "255=dog"]))
    result = import_data(write(tmp_path / "in", pairs(values=(0, 3, 255, 9))), tmp_path / "out", settings)
    assert result.classes == ["background", "cat", "dog"]
    assert labels_of(tmp_path / "out")["images/p0.jpg"][0, :4].tolist() == [0, 1, 2, 255]


def colour_folder(folder: Path, table: str = CSV) -> Path:
    strange = COLOURS[LABEL].copy()
    strange[0, 0] = 1, 2, 3
    files: dict[str, bytes | str] = {"classes.csv": table} if table else {}
    files |= {"images/a.jpg": jpeg(), "images/b.jpg": jpeg(seed=1)}
    return write(folder, files | {"masks/a.png": encoded(COLOURS[LABEL]), "masks/b.png": encoded(strange)})


def test_a_colour_without_a_class_is_refused_with_its_share_and_the_first_file(
    tmp_path: Path, fcn: Callable, capsys
):
    assert fcn("import", colour_folder(tmp_path / "in"), tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert "#010203" in error
    assert "0.26%" in error  # 1 of 2 x 12 x 16 pixels
    assert "images/b.jpg" in error
    assert "--map '#010203=" in error
    assert not (tmp_path / "out").exists()


def test_a_colour_without_a_class_can_be_given_one(tmp_path: Path):
    settings = Settings(class_map=ClassMap.parse(["#010203=dog"]))
    import_data(colour_folder(tmp_path / "in"), tmp_path / "out", settings)
    assert labels_of(tmp_path / "out")["images/b.jpg"][0, 0] == 2


def test_colour_masks_without_a_table_are_refused_with_the_colours_to_map(
    tmp_path: Path, fcn: Callable, capsys
):
    assert fcn("import", colour_folder(tmp_path / "in", ""), tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert all(text in error for text in ("#c80a0a", "#0ac8fa", "#010203", "--map"))


def test_colour_masks_without_a_table_are_taken_with_all_colours_mapped(tmp_path: Path):
    pairs = "#000000=ground,#c80a0a=cat,#0AC8FA=dog,#010203=void"
    settings = Settings(class_map=ClassMap.parse([pairs]))
    result = import_data(colour_folder(tmp_path / "in", ""), tmp_path / "out", settings)
    assert result.classes == ["ground", "cat", "dog"]
    np.testing.assert_array_equal(labels_of(tmp_path / "out")["images/a.jpg"], LABEL)
    assert labels_of(tmp_path / "out")["images/b.jpg"][0, 0] == 255


def test_a_jpeg_mask_is_refused_whatever_its_name(tmp_path: Path):
    files = pairs()
    files["masks/p2.png"] = jpeg()
    with pytest.raises(DatasetError, match=r"masks/p2\.png.*JPEG.*PNG"):
        import_data(write(tmp_path / "in", files), tmp_path / "out", Settings())


def test_classes_are_merged_renamed_and_dropped(tmp_path: Path):
    files = pairs(values=(0, 1, 2, 3)) | {"classes.txt": "background\ntruck\nbus\nother\n"}
    settings = Settings(class_map=ClassMap.parse(["truck=vehicle,bus=vehicle,other=void"]))
    result = import_data(write(tmp_path / "in", files), tmp_path / "out", settings)
    assert result.classes == ["background", "vehicle"]
    assert labels_of(tmp_path / "out")["images/p0.jpg"][0, :4].tolist() == [0, 1, 1, 255]
    assert record_of(tmp_path / "out")["map"] == [["truck", "vehicle"], ["bus", "vehicle"], ["other", "void"]]


def test_a_subset_of_classes_is_chosen(tmp_path: Path):
    files = pairs(values=(0, 1, 2, 3)) | {"classes.txt": "background\ntruck\nbus\nother\n"}
    settings = Settings(class_map=ClassMap.parse(["bus=bus,*=background"]))
    result = import_data(write(tmp_path / "in", files), tmp_path / "out", settings)
    assert result.classes == ["background", "bus"]
    assert labels_of(tmp_path / "out")["images/p0.jpg"][0, :4].tolist() == [0, 0, 1, 0]


@pytest.mark.parametrize(
    "text",
    [
        *(
            "cat",
            "=cat",
            "cat=",
            "nothing=cat",
            "cat=a,cat=b",
            "*=void,background=void",
            "1=a\n2=b",
            "9" * 5000 + "=a",
        ),
        "#ff0000=a,#FF0000=b",
    ],
)
def test_a_map_that_cannot_hold_is_refused(text: str, tmp_path: Path, fcn: Callable, capsys):
    write(tmp_path / "in", pairs() | {"classes.txt": "background\ncat\ndog\n"})
    assert fcn("import", tmp_path / "in", tmp_path / "out", "--map", text) == 2
    assert "--map" in capsys.readouterr().err


def test_a_value_is_refused_where_no_mask_has_values(tmp_path: Path, fcn: Callable, capsys):
    assert fcn("import", FIXTURES / "coco.zip", tmp_path / "out", "--map", "7=bush") == 2
    assert "'7'" in capsys.readouterr().err


def test_a_mask_of_cvat_with_one_channel_holds_lines_of_the_label_map(tmp_path: Path):
    source = unpacked("cvat", tmp_path / "in")
    lines = np.arange(40 * 56, dtype=np.uint8).reshape(40, 56) % 3
    write(source, {"SegmentationClass/beach 01.png": encoded(lines)})
    import_data(source, tmp_path / "out", Settings())
    np.testing.assert_array_equal(labels_of(tmp_path / "out")["JPEGImages/beach 01.jpg"], lines)


def test_a_class_called_void_is_void_unless_it_is_named(tmp_path: Path):
    write(tmp_path / "in", pairs() | {"classes.txt": "Void\ncat\ndog\n"})
    assert import_data(tmp_path / "in", tmp_path / "out", Settings()).classes == ["cat", "dog"]
    assert labels_of(tmp_path / "out")["images/p0.jpg"][0, :3].tolist() == [255, 0, 1]
    kept = Settings(class_map=ClassMap.parse(["Void=unknown"]))
    assert import_data(tmp_path / "in", tmp_path / "kept", kept).classes == ["unknown", "cat", "dog"]


@pytest.mark.parametrize("columns", ["id,name,r,g,b", "name,red,green,blue,value"])
def test_a_table_of_values_and_colours_serves_masks_of_either(columns: str, tmp_path: Path):
    ids = {"background": 7, "cat": 0, "dog": 3}
    value = np.array(list(ids.values()), np.uint8)
    rows = [columns]
    for (name, number), colour in zip(ids.items(), COLOURS.tolist(), strict=True):
        rgb = ",".join(map(str, colour))
        rows.append(f"{number},{name},{rgb}" if columns.startswith("id") else f"{name},{rgb},{number}")
    files: dict[str, bytes | str] = {
        "classes.csv": "\n".join(rows),
        "images/a.jpg": jpeg(seed=1),
        "images/b.jpg": jpeg(),
    }
    masks = {"masks/a.png": encoded(value[LABEL]), "masks/b.png": encoded(COLOURS[LABEL])}
    import_data(write(tmp_path / "in", files | masks), tmp_path / "out", Settings())
    for label in labels_of(tmp_path / "out").values():
        np.testing.assert_array_equal(label, LABEL)
    contrary = Image.fromarray(value[LABEL])  # by its values each pixel is another class than by its palette
    colours = np.zeros((256, 3), np.uint8)
    colours[value] = np.roll(COLOURS, 1, 0)
    contrary.putpalette(colours.ravel().tolist())
    write(tmp_path / "in", {"masks/b.png": encoded(contrary)})
    with pytest.raises(DatasetError, match=r"masks/b\.png.*palette"):
        import_data(tmp_path / "in", tmp_path / "refused", Settings())


@pytest.mark.parametrize("first", ["_background_", "__background__", "background", "road"])
@pytest.mark.parametrize("target", ["background", "other", "void"])
def test_all_others_join_one_class_and_a_background_only_a_background(
    first: str, target: str, tmp_path: Path
):
    write(tmp_path / "in", pairs() | {"classes.txt": f"{first}\ncat\ndog\n"})
    settings = Settings(class_map=ClassMap.parse([f"cat=cat,*={target}"]))
    if first == "road" and target == "void":
        with pytest.raises(DatasetError, match="one class, cat"):
            import_data(tmp_path / "in", tmp_path / "out", settings)
        return
    names = import_data(tmp_path / "in", tmp_path / "out", settings).classes
    label = labels_of(tmp_path / "out")["images/p0.jpg"][0, :3]
    seen = [names[value] if value != 255 else "void" for value in label.tolist()]
    stays = first != "road" and target != "background"
    assert seen == [first if stays else target, "cat", target]
    assert sorted(names) == sorted(set(seen) - {"void"})


def test_a_tiff_mask_of_16_bit_colours_is_refused(tmp_path: Path):
    cut = encoded(Image.fromarray(COLOURS[LABEL]), "TIFF")
    write(tmp_path / "in", {"classes.csv": CSV, "images/a.jpg": jpeg(seed=1), "images/b.jpg": jpeg()})
    write(tmp_path / "in", {"masks/a.tif": cut, "masks/b.tif": tiff_of_16_bit_colours(COLOURS[LABEL])})
    with pytest.raises(DatasetError, match=r"masks/b\.tif.*16-bit"):
        import_data(tmp_path / "in", tmp_path / "out", Settings())


def test_the_black_label_of_cvat_is_the_background_whatever_its_name(tmp_path: Path):
    table = "# label:color_rgb:parts:actions\ncar:255,0,0::\nignore:9,9,9::\nunlabeled:0,0,0::\n"
    mask = np.zeros((12, 16, 3), np.uint8)
    mask[:6] = 255, 0, 0
    mask[6] = 9, 9, 9
    files: dict[str, bytes | str] = {"labelmap.txt": table, "SegmentationClass/a.png": encoded(mask)}
    files |= {
        "JPEGImages/a.jpg": jpeg(seed=1),
        "JPEGImages/b.jpg": jpeg(),
        "ImageSets/Segmentation/default.txt": "a\nb\n",
    }
    result = import_data(write(tmp_path / "in", files), tmp_path / "out", Settings())
    assert result.classes == ["unlabeled", "car"]
    labels = labels_of(tmp_path / "out")
    assert labels["JPEGImages/a.jpg"][:, 0].tolist() == [1] * 6 + [255] + [0] * 5
    assert not labels["JPEGImages/b.jpg"].any()
    assert any("void" in sentence and "ignore" in sentence for sentence in result.decisions)
    # A black label that is void leaves photos without a mask nothing to learn from
    write(tmp_path / "in", {"labelmap.txt": table.replace("ignore", "tree").replace("unlabeled", "void")})
    import_data(tmp_path / "in", tmp_path / "void", Settings())
    assert (labels_of(tmp_path / "void")["JPEGImages/b.jpg"] == 255).all()


@pytest.mark.parametrize(
    ("target", "values"), [("void", [1, 255, 0]), ("other", [1, 2, 0]), ("sky", [1, 0, 0])]
)
def test_all_others_of_cvat_leave_a_black_background_of_another_name_as_it_is(
    target: str, values: list[int], tmp_path: Path
):
    mask = np.zeros((12, 16, 3), np.uint8)
    mask[0], mask[1] = (255, 0, 0), (0, 255, 0)
    files: dict[str, bytes | str] = {"labelmap.txt": "bus:0,255,0::\ncar:255,0,0::\nsky:0,0,0::\n"}
    files |= {f"SegmentationClass/{name}.png": encoded(mask) for name in "ab"}
    files |= {f"JPEGImages/{name}.jpg": jpeg(seed=ord(name)) for name in "ab"}
    settings = Settings(class_map=ClassMap.parse([f"car=car,*={target}"]))
    assert import_data(write(tmp_path / "in", files), tmp_path / "out", settings).classes[0] == "sky"
    names = (tmp_path / "out/classes.txt").read_text().split()
    label = labels_of(tmp_path / "out")["JPEGImages/a.jpg"][:3, 0].tolist()
    order = {
        names.index(name): number for number, name in enumerate(("sky", "car", "other")) if name in names
    }
    assert [order.get(value, value) for value in label] == values


def test_a_line_of_labelme2voc_that_is_called_void_keeps_its_number(tmp_path: Path):
    values = np.resize(np.arange(4, dtype=np.uint8), (12, 16))
    files: dict[str, bytes | str] = {"class_names.txt": "_background_\nroad\nvoid\ncar\n"}
    files |= {f"SegmentationClass/{name}.png": encoded(values) for name in "ab"}
    files |= {f"JPEGImages/{name}.jpg": jpeg(seed=ord(name)) for name in "ab"}
    result = import_data(write(tmp_path / "in", files), tmp_path / "out", Settings())
    assert result.classes == ["_background_", "road", "car"]
    assert labels_of(tmp_path / "out")["JPEGImages/a.jpg"][0, :4].tolist() == [0, 1, 255, 2]


# Data sets that are plain folders


def test_cityscapes_trimaps_and_ade20k_have_their_tables(tmp_path: Path):
    ids = np.resize(np.array([0, 7, 8, 33, 255], np.uint8), (12, 16))
    city = write(
        tmp_path / "city",
        {
            "leftImg8bit/train/ulm/u_1_leftImg8bit.png": encoded(np.zeros((12, 16, 3), np.uint8)),
            "leftImg8bit/val/bonn/b_1_leftImg8bit.png": encoded(np.zeros((12, 16, 3), np.uint8)),
            "gtFine/train/ulm/u_1_gtFine_labelIds.png": encoded(ids),
            "gtFine/train/ulm/u_1_gtFine_color.png": encoded(np.zeros((12, 16, 3), np.uint8)),
            "gtFine/val/bonn/b_1_gtFine_labelIds.png": encoded(ids),
        },
    )
    result = import_data(city, tmp_path / "city-out", Settings())
    assert (result.format, len(result.classes), result.lists) == ("cityscapes", 19, {"train": 1, "val": 1})
    label = next(iter(labels_of(tmp_path / "city-out").values()))
    assert label[0, :5].tolist() == [255, 0, 1, 18, 255]

    pet = {
        f"annotations/trimaps/{key}.png": encoded(np.resize(np.array([1, 2, 3], np.uint8), (12, 16)))
        for key in "ab"
    }
    pet |= {f"annotations/trimaps/._{key}.png": b"resource fork" for key in "ab"}
    write(tmp_path / "pet", pet | {f"images/{key}.jpg": jpeg(seed=ord(key)) for key in "ab"})
    result = import_data(tmp_path / "pet", tmp_path / "pet-out", Settings())
    assert (result.format, result.classes, result.num_passed_over) == ("oxford-pet", ["background", "pet"], 2)
    assert labels_of(tmp_path / "pet-out")["images/a.jpg"][0, :3].tolist() == [1, 0, 255]

    rows = "1\t0.1\t1\t1\t1\twall\n2 \t0.1\t1\t1\t1\tdoor, gate\n"  # spaces as in the published file
    ade = {"objectInfo150.txt": f"Idx\tRatio\tTrain\tVal\tStuff\tName\n{rows}"}
    mask = encoded(np.resize(np.array([0, 1, 2], np.uint8), (12, 16)))
    for split in ("training", "validation"):
        ade |= {
            f"images/{split}/{split}_1.jpg": jpeg(seed=len(split)),
            f"annotations/{split}/{split}_1.png": mask,
        }
    result = import_data(write(tmp_path / "ade", ade), tmp_path / "ade-out", Settings())
    assert (result.format, result.classes, result.lists) == (
        "ade20k",
        ["wall", "door"],
        {"train": 1, "val": 1},
    )
    assert labels_of(tmp_path / "ade-out")["images/training/training_1.jpg"][0, :3].tolist() == [255, 0, 1]
