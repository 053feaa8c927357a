from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fcn import IGNORE_LABEL
from pipeline import report

CLASSES = ["background", "disc", "square"]


def scores(mean_iu: float | None, disc: float | None = 0.25) -> dict:
    return {
        "pixel_acc": 0.9876,
        "mean_acc": 0.6543,
        "mean_iu": mean_iu,
        "fw_iu": 0.3333,
        "class_iu": {"background": 0.9, "disc": disc, "square": None},
        "num_images": 100,
        "num_leaked": 0,
    }


NETS = {"fcn32s": scores(0.4213), "fcn16s": scores(0.6117), "fcn8s": scores(0.7598)}


@pytest.fixture
def inspection(tmp_path) -> Path:
    """What stages/inspect.py writes, and the report shows."""
    folder = tmp_path / "inspection"
    folder.mkdir()
    Image.new("RGB", (8, 8)).save(folder / "inspection.png")
    (folder / "inspection.md").write_text("| images | 400 |\n")
    (folder / "leaks.md").write_text("No image of val is trained on.\n")
    return folder


def rows(number: int) -> list[report.Row]:
    random = np.random.Generator(np.random.PCG64(0))
    made = []
    for i in range(number):
        height, width = 16 + 8 * i, 40
        label = random.integers(0, 3, (height, width), dtype=np.uint8)
        label[:4] = IGNORE_LABEL
        image = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
        made.append((f"2007_00003{i}", image, label, np.zeros_like(label)))
    return made


@pytest.mark.parametrize("number", [1, 3])
def test_the_figure_of_predictions_is_a_readable_png_that_grows_with_its_rows(tmp_path, number):
    path = tmp_path / "figures" / "sample" / "fcn8s.png"
    report.draw_predictions(rows(number), CLASSES, "fcn8s: mean IU 0.760", path)
    with Image.open(path) as picture:
        picture.load()
        assert picture.format == "PNG"
        assert picture.width == pytest.approx(3 * 2.2 * 110, abs=2)
        assert picture.height == pytest.approx((number * 2.2 + 0.9) * 110, abs=2)


def test_labels_are_drawn_in_vocs_colours_and_void_as_on_the_devkits_pictures(tmp_path):
    label = np.full((8, 8), 1, np.uint8)
    label[:, 4:] = IGNORE_LABEL
    report.draw_predictions(
        [("a", np.zeros((8, 8, 3), np.uint8), label, label * 0)], CLASSES, "", tmp_path / "a.png"
    )
    with Image.open(tmp_path / "a.png") as picture:
        counted = {colour: count for count, colour in picture.convert("RGB").getcolors(2**24)}
    assert counted[128, 0, 0] > 1000  # VOC's first class
    assert counted[224, 224, 192] > 1000  # VOC's void
    assert counted[0, 0, 0] > 10000  # the image and the prediction, background


def test_21_classes_of_any_name_fit_into_the_legend(tmp_path):
    names = ["_hidden", "cost $5 or $6", "pottedplant", *(f"class{i}" for i in range(18))]
    report.draw_predictions(rows(1), names, "a $ b $", tmp_path / "a.png")
    report.draw_class_bars({"fcn8s": {"class_iu": dict.fromkeys(names, 0.5)}}, tmp_path / "b.png")
    for name in ("a.png", "b.png"):
        with Image.open(tmp_path / name) as picture:
            picture.load()


def test_the_report_shows_table_bars_data_and_each_nets_picture(tmp_path, inspection):
    for net in NETS:
        report.draw_predictions(rows(1), CLASSES, net, tmp_path / "figures" / f"{net}.png")
    dest = tmp_path / "reports" / "sample"
    report.write_report("sample", NETS, "| a | table |", tmp_path / "figures", inspection, dest)
    text = (dest / "README.md").read_text("utf-8")
    assert "| a | table |" in text
    assert "profile `sample`" in text
    assert "| images | 400 |\n\nNo image of val is trained on." in text
    assert "LEAK" not in text
    pictures = ["class_iu.png", "inspection.png", "fcn32s.png", "fcn16s.png", "fcn8s.png"]
    for name in pictures:
        assert f"]({name})" in text
        with Image.open(dest / name) as picture:
            picture.load()
    assert sorted(path.name for path in dest.iterdir()) == sorted([*pictures, "README.md"])
    assert (dest / "fcn8s.png").read_bytes() == (tmp_path / "figures" / "fcn8s.png").read_bytes()
    report.write_report("sample", NETS, "| b |", tmp_path / "figures", inspection, dest)  # over the old one
    assert "| b |" in (dest / "README.md").read_text("utf-8")


def test_a_net_that_was_trained_on_what_it_is_scored_on_is_named_under_the_table(tmp_path, inspection):
    for net in NETS:
        report.draw_predictions(rows(1), CLASSES, net, tmp_path / "figures" / f"{net}.png")
    nets = NETS | {"fcn16s": NETS["fcn16s"] | {"num_leaked": 3}}
    report.write_report("sample", nets, "", tmp_path / "figures", inspection, tmp_path / "report")
    lines = (tmp_path / "report" / "README.md").read_text("utf-8").splitlines()
    said = [line for line in lines if "LEAK" in line]
    assert len(said) == 1
    assert "fcn16s was trained on 3 of the 100 images it is scored on" in said[0]


def test_a_class_that_was_not_scored_has_no_bar_and_breaks_nothing(tmp_path):
    report.draw_class_bars({"fcn32s": scores(0.4, disc=None), "fcn8s": scores(0.5)}, tmp_path / "bars.png")
    with Image.open(tmp_path / "bars.png") as picture:
        picture.load()
