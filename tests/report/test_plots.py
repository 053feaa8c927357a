"""Pictures as PNG files: what they show can be found in their pixels."""

import numpy as np
import pytest
from matplotlib import pyplot
from PIL import Image
from sklearn.metrics import confusion_matrix

from fcn import IGNORE_LABEL
from pipeline.curves import Curve
from pipeline.report import plots
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


def colours(path) -> dict[tuple[int, int, int], int]:
    with Image.open(path) as picture:
        return {colour: count for count, colour in picture.convert("RGB").getcolors(2**24)}


def opens(path) -> bool:
    with Image.open(path) as picture:
        picture.load()
        return picture.format == "PNG"


@pytest.mark.parametrize("number", [1, 3])
def test_the_figure_of_predictions_is_a_readable_png_that_grows_with_its_rows(tmp_path, number):
    path = tmp_path / "figures" / "sample" / "fcn8s.png"
    plots.draw_predictions(rows(number), CLASSES, "fcn8s: mean IU 0.760", path)
    with Image.open(path) as picture:
        picture.load()
        assert picture.format == "PNG"
        assert picture.width == pytest.approx(4 * 2.2 * 110, abs=2)
        assert picture.height == pytest.approx((number * 2.2 + 0.9) * 110, abs=2)


def test_labels_are_drawn_in_vocs_colours_and_void_as_on_the_devkits_pictures(tmp_path):
    label = np.full((8, 8), 1, np.uint8)
    label[:, 4:] = IGNORE_LABEL
    plots.draw_predictions(one(label, label * 0 + 1), CLASSES, "", tmp_path / "a.png")
    counted = colours(tmp_path / "a.png")
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


@pytest.fixture
def drawn(monkeypatch):
    """The figures that were drawn, kept open to be asked what is in them."""
    kept = []
    monkeypatch.setattr(plots.plt, "close", kept.append)
    yield kept
    monkeypatch.undo()
    for figure in kept:
        pyplot.close(figure)


def test_the_confusion_matrix_drawn_is_the_counts_shares_by_row_as_scikit_learn_normalises_them(
    tmp_path, drawn
):
    random = np.random.Generator(np.random.PCG64(2))
    label, prediction = random.integers(0, 3, (2, 500))
    prediction[label == 0] = 0
    hist = np.zeros((4, 4), np.int64)  # of the last class there is no pixel
    np.add.at(hist, (label, prediction), 1)
    plots.draw_confusion(hist, [*CLASSES, "cross"], "fcn8s", tmp_path / "confusion.png")
    assert opens(tmp_path / "confusion.png")
    axis = drawn[0].axes[0]
    shown = np.ma.filled(axis.images[0].get_array(), np.nan)
    expected = confusion_matrix(label, prediction, normalize="true")
    assert np.allclose(shown[:3, :3], expected)
    assert np.isnan(shown[3]).all()
    written = {tuple(map(int, text.get_position())): text.get_text() for text in axis.texts}
    assert written == {
        (column, row): f"{expected[row, column] * 100:.0f}" for row, column in np.argwhere(expected >= 0.005)
    }
    assert [tick.get_text() for tick in axis.get_yticklabels()] == [*CLASSES, "cross"]


def test_bars_have_the_heights_of_the_scores_of_the_net_and_of_the_one_before(tmp_path, drawn):
    nets = {
        "fcn16s": {"class_iu": {"background": 0.9, "disc": 0.25, "square": None}},
        "fcn8s": {"class_iu": {"background": 0.95, "disc": 0.5, "square": 0.75}},
    }
    plots.draw_class_bars(nets, tmp_path / "bars.png")
    axis = drawn[0].axes[0]
    heights = [[bar.get_height() for bar in group] for group in axis.containers]
    assert heights == [[0.9, 0.25, 0.0], [0.95, 0.5, 0.75]]  # nothing where nothing was scored
    assert [text.get_text() for text in drawn[0].legends[0].get_texts()] == ["fcn16s", "fcn8s"]


def test_the_curve_drawn_has_the_points_measured_and_no_axis_for_what_was_not(tmp_path, drawn):
    points = ({"step": 10, "loss": 2.0, "lr": 0.1}, {"step": 20, "loss": 1.0, "lr": 0.05, "val_mean_iu": 0.3})
    plots.draw_curve(Curve("fcn8s", "fcn16s", points), "", tmp_path / "a.png")
    assert [axis.lines[0].get_xydata().tolist() for axis in drawn[0].axes] == [
        [[10, 2.0], [20, 1.0]],
        [[10, 0.1], [20, 0.05]],
        [[20, 0.3]],
    ]
    plots.draw_curve(Curve("fcn8s", "fcn16s", points[:1]), "", tmp_path / "b.png")
    assert len(drawn[1].axes) == 2
    assert opens(tmp_path / "b.png")


def test_21_classes_of_any_name_fit_everywhere(tmp_path):
    plots.draw_predictions(rows(1), ODD_NAMES, "a $ b $", tmp_path / "a.png")
    plots.draw_class_bars({"fcn8s": {"class_iu": dict.fromkeys(ODD_NAMES, 0.5)}}, tmp_path / "b.png")
    plots.draw_confusion(np.eye(21, dtype=np.int64), ODD_NAMES, "$", tmp_path / "c.png")
    for name in ("a.png", "b.png", "c.png"):
        assert opens(tmp_path / name)
