"""Figures: the numbers that they are drawn from can be found in them."""

import re
import warnings
from pathlib import Path
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image
from sklearn.metrics import confusion_matrix

from fcn import IGNORE_LABEL
from pipeline.curves import Curve
from pipeline.report import canvas, curve_plots, plots
from pipeline.report.gallery import Seen

CLASSES = ["background", "disc", "square"]
ODD_NAMES = ["_hidden", "cost $5 or $6", "pottedplant", *(f"class{i}" for i in range(18))]


def rows(number: int) -> list[tuple[str, Seen]]:
    random = np.random.Generator(np.random.PCG64(0))
    made = []
    for i in range(number):
        height, width = 16 + 8 * i, 40
        label = random.integers(0, 3, (height, width), dtype=np.uint8)
        label[:4] = IGNORE_LABEL
        image = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
        nothing = np.zeros_like(label)
        made.append((f"2007_00003{i}", Seen(f"2007_00003{i}", image, label, nothing, nothing)))
    return made


def one(label: np.ndarray, prediction: np.ndarray) -> list[tuple[str, Seen]]:
    black = np.zeros((*label.shape, 3), np.uint8)
    return [("a", Seen("a", black, label, prediction, label * 0))]


def saved(figure: Figure, folder: Path) -> Image.Image:
    canvas.save(figure, folder / "figures" / "a.png")
    with Image.open(folder / "figures" / "a.png") as picture:
        assert picture.format == "PNG"
        return picture.convert("RGB")


@pytest.mark.parametrize("number", [1, 3])
def test_the_figure_of_predictions_grows_with_its_rows(tmp_path, number):
    picture = saved(plots.predictions(rows(number), CLASSES, "fcn8s: mean IU 0.760"), tmp_path)
    assert picture.width == pytest.approx(4 * 2.2 * 110, abs=2)
    assert picture.height == pytest.approx((number * 2.2 + 0.9) * 110, abs=2)


def test_labels_are_drawn_in_vocs_colours_and_void_as_on_the_devkits_pictures(tmp_path):
    label = np.full((8, 8), 1, np.uint8)
    label[:, 4:] = IGNORE_LABEL
    picture = saved(plots.predictions(one(label, label * 0 + 1), CLASSES, ""), tmp_path)
    counted = {colour: count for count, colour in picture.getcolors(2**24)}
    assert counted[128, 0, 0] > 1000  # VOC's first class
    assert counted[224, 224, 192] > 1000  # VOC's void
    assert counted[0, 0, 0] > 10000  # the image
    assert plots.WRONG not in counted


def test_the_overlay_of_errors_marks_wrong_pixels_that_are_not_void_and_no_other():
    random = np.random.Generator(np.random.PCG64(1))
    label, prediction = random.integers(0, 3, (2, 20, 30), dtype=np.uint8)
    label[5:9] = IGNORE_LABEL
    image = random.integers(0, 256, (20, 30, 3), dtype=np.uint8)
    picture = plots.error_overlay(Seen("a", image, label, prediction, label * 0))
    for y in range(20):
        for x in range(30):
            pixel = tuple(picture[y, x].tolist())
            if label[y, x] == IGNORE_LABEL:
                assert pixel == plots.VOID
            elif label[y, x] != prediction[y, x]:
                assert pixel == plots.WRONG
            else:
                assert len(set(pixel)) == 1  # grey


def test_the_confusion_matrix_has_the_shares_by_row_that_scikit_learn_gives():
    random = np.random.Generator(np.random.PCG64(2))
    label, prediction = random.integers(0, 3, (2, 500))
    prediction[label == 0] = 0
    hist = np.zeros((4, 4), np.int64)  # the last class has no pixel
    np.add.at(hist, (label, prediction), 1)
    axis = plots.confusion(hist, [*CLASSES, "cross"], "fcn8s").axes[0]
    shown = np.ma.filled(axis.images[0].get_array(), np.nan)
    expected = confusion_matrix(label, prediction, normalize="true")
    assert np.allclose(shown[:3, :3], expected)
    assert np.isnan(shown[3]).all()
    written = {tuple(map(int, text.get_position())): text.get_text() for text in axis.texts}
    assert written == {
        (column, row): f"{expected[row, column] * 100:.0f}" for row, column in np.argwhere(expected >= 0.005)
    }
    assert [tick.get_text() for tick in axis.get_yticklabels()] == [*CLASSES, "cross"]


def test_bars_have_the_heights_of_the_scores_of_each_net():
    nets = {
        "fcn16s": {"class_iu": {"background": 0.9, "disc": 0.25, "square": None}},
        "fcn8s": {"class_iu": {"background": 0.95, "disc": 0.5, "square": 0.75}},
    }
    figure = plots.class_bars(nets)
    heights = [[bar.get_height() for bar in group] for group in figure.axes[0].containers]
    assert heights == [[0.9, 0.25, 0.0], [0.95, 0.5, 0.75]]  # 0 where nothing was scored
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["fcn16s", "fcn8s"]


POINTS = ({"step": 10, "loss": 2.0, "lr": 0.1}, {"step": 20, "loss": 1.0, "lr": 0.05, "val_mean_iu": 0.3})


def test_the_curve_has_the_measured_points_and_no_axis_for_a_value_that_was_not_measured():
    figure = curve_plots.training_curves([Curve("fcn8s", "fcn16s", POINTS)], "")
    assert [axis.lines[0].get_xydata().tolist() for axis in figure.axes] == [
        [[10, 2.0], [20, 1.0]],
        [[20, 0.3]],
        [[10, 0.1], [20, 0.05]],
    ]
    assert len(curve_plots.training_curves([Curve("fcn8s", "fcn16s", POINTS[:1])], "").axes) == 2


def test_the_step_whose_net_was_kept_is_marked_where_val_decided_it():
    kept = {"best_by": "mean_iu", "step": 10}
    curves = [Curve("fcn32s", "backbone", POINTS), Curve("fcn16s", "fcn32s", POINTS, kept)]
    figure = curve_plots.training_curves(curves, "")
    assert [len(axis.lines) for axis in figure.axes] == [2, 3, 2]  # of loss, mean IU, rate
    assert figure.axes[1].lines[2].get_xdata() == [30, 30]


@pytest.mark.parametrize(
    ("parents", "starts"),
    [(("backbone", "fcn32s", "fcn16s"), [10, 30, 50]), (("backbone",) * 3, [10, 10, 10])],
)
def test_a_nets_curve_begins_where_the_curve_of_its_parent_ended(parents, starts):
    nets = ("fcn32s", "fcn16s", "fcn8s")
    curves = [Curve(net, parent, POINTS) for net, parent in zip(nets, parents, strict=True)]
    figure = curve_plots.training_curves(curves, "")
    assert [line.get_xdata()[0] for line in figure.axes[0].lines] == starts
    assert [text.get_text() for text in figure.legends[0].get_texts()] == list(nets)


@pytest.mark.parametrize("losses", [[], [0.0], [1.0, 1.0], [0.0, 2.0], [-1.0, 3.0]])
def test_any_curve_can_be_drawn_even_an_empty_one_a_constant_or_zero(tmp_path, losses):
    points = tuple({"step": i, "loss": loss} for i, loss in enumerate(losses))
    saved(curve_plots.training_curves([Curve("fcn8s", "backbone", points)], ""), tmp_path)


@pytest.mark.parametrize("order", [1, -1])
def test_scores_that_one_seed_lacks_have_no_axis(order):
    point = {"step": 1.0, "loss": 1.0, "lr": 0.1}
    seeds = [Curve("fcn8s", "fcn16s", (values,)) for values in (point | {"val_mean_iu": 0.5}, point)]
    figure = curve_plots.curve_bands([seeds[::order]], "two seeds")
    assert [axis.get_ylabel() for axis in figure.axes] == ["loss", "learning rate"]


def test_a_long_curve_is_thinned_to_means_and_keeps_its_mean():
    values = [float(value % 7) for value in range(40_000)]
    thinned = curve_plots.thinned(values)
    assert len(thinned) == curve_plots.MAX_POINTS
    assert np.mean(thinned) == pytest.approx(np.mean(values))


def test_the_figure_of_a_data_set_shows_both_splits(tmp_path):
    side = {"histogram": {"edges": [0, 25, 50], "num_images": [1, 1]}}
    classes = {"background": {"share": 1.0, "num_images": 2}, "dog": {"share": 0.0, "num_images": 0}}
    split = {"num_images": 2, "num_sizes": 1, "height": side, "width": side, "classes": classes}
    split |= {"void": {"share": 0.1}, "conversions": {"CMYK to RGB": 1}, "refused": []}
    picture = saved(plots.inspection({"train": split, "val": split}), tmp_path)
    counted = {colour: count for count, colour in picture.getcolors(2**24)}
    blue, orange = (0x1F, 0x77, 0xB4), (0xFF, 0x7F, 0x0E)  # matplotlib's first two
    assert counted[blue] > 1000
    assert counted[orange] > 1000


@pytest.mark.parametrize("number", [1, 2, 3])
def test_pairs_of_photos_stand_side_by_side_two_pairs_in_a_row(tmp_path, number):
    colours = [(10 * i, 200, 255 - 10 * i) for i in range(2 * number)]
    photos = [np.full((30, 40, 3), colour, np.uint8) for colour in colours]
    pairs = [("a $ b", photos[2 * i], photos[2 * i + 1]) for i in range(number)]
    picture = saved(plots.pairs(pairs), tmp_path)
    counted = {colour: count for count, colour in picture.getcolors(2**24)}
    assert all(counted[colour] > 1000 for colour in colours)


def test_21_classes_of_any_name_fit_everywhere(tmp_path):
    for figure in (
        plots.predictions(rows(1), ODD_NAMES, "a $ b $"),
        plots.class_bars({"fcn8s": {"class_iu": dict.fromkeys(ODD_NAMES, 0.5)}}),
        plots.confusion(np.eye(21, dtype=np.int64), ODD_NAMES, "$"),
    ):
        saved(figure, tmp_path)


def test_an_svg_is_the_same_each_time_and_holds_no_script_and_no_link():
    drawn = [
        canvas.as_svg(plots.confusion(np.eye(2, dtype=np.int64), ["<script>", "a&b"], "t")) for _ in "ab"
    ]
    assert drawn[0] == drawn[1]
    namespaces = {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    for element in ElementTree.fromstring(drawn[0]).iter():
        assert not element.tag.lower().endswith("script")
        links = [value for name, value in element.attrib.items() if name.endswith("href")]
        assert all(link.startswith(("#", "data:image/png;")) for link in links)
    assert set(re.findall(r'https?://[^"]*', drawn[0])) - namespaces <= {
        "http://creativecommons.org/ns#",
        "http://purl.org/dc/elements/1.1/",
        "http://www.w3.org/1999/02/22-rdf-syntax-ns#",
    }


@pytest.mark.parametrize(
    ("names", "letters"), [(["背景", "裂缝"], "景缝背裂"), (["ខ្មែរ", "disc"], None), (["Grün", "été"], "")]
)
def test_letters_without_a_font_are_told_in_one_sentence(tmp_path, capsys, monkeypatch, names, letters):
    monkeypatch.setitem(matplotlib.rcParams, "font.family", ["DejaVu Sans"])
    monkeypatch.setattr(canvas, "_told", set())
    hist = np.ones((2, 2), np.int64)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        canvas.save(plots.confusion(hist, names, names[0]), tmp_path / "a.png")
        canvas.as_svg(plots.confusion(hist, names, names[0]))
    told = capsys.readouterr().err.splitlines()
    assert len(told) == (letters != "")
    assert all((letters or "") in line and "fonts-noto-cjk" in line for line in told)


def test_other_warnings_of_matplotlib_are_passed_on(tmp_path):
    figure = plots.confusion(np.ones((2, 2), np.int64), ["a", "b"], "")
    figure.draw = lambda _: warnings.warn("something else", UserWarning, stacklevel=1)
    with pytest.warns(UserWarning, match="something else"):
        canvas.save(figure, tmp_path / "a.png")


def test_a_font_of_the_script_is_used_where_one_is_installed():
    assert canvas.families({"Noto Sans CJK JP", "DejaVu Sans", "Comic Sans"}) == [
        "DejaVu Sans",
        "Noto Sans CJK JP",
    ]
    assert canvas.families(set()) == ["DejaVu Sans"]
