"""Runs beside each other and beside the published rows."""

from typing import Any

import pytest

from fcn import voc
from pipeline.evaluation import compare, published_scores
from pipeline.evaluation.bootstrap import Bootstrap, mean_iu, paired_difference
from pipeline.evaluation.compare import difference_table, score_table
from pipeline.evaluation.results import SCORES, Result, group_result
from pipeline.tables import Table
from tests.made_results import make_result

COMPARABLE = "comparable to the first run"
FEW = Bootstrap(100)


def row(table: Table, name: str, split: str = "") -> dict[str, object]:
    (cells,) = [
        cells for cells in table.rows if cells[0] == name and split in cells[table.head.index("scored on")]
    ]
    return dict(zip(table.head, cells, strict=True))


# --- scores


def test_a_run_stands_with_its_interval_above_every_published_row():
    result = make_result("fcn8s")
    table = score_table([result], incomparable=True)
    cells = row(table, "fcn8s")
    low, score, high = (result.values[key] for key in ("mean_iu_low", "mean_iu", "mean_iu_high"))
    assert cells["mean_iu"] == f"{score:.3f} [{low:.3f}, {high:.3f}]"
    assert cells["pixel_acc"] == f"{result.values['pixel_acc']:.3f}"  # a score without an interval
    assert cells[COMPARABLE] == "yes"
    assert len(table.rows) == 1 + len(published_scores.PUBLISHED)
    assert "95%" in table.notes[0]


def test_the_published_numbers_are_those_of_the_papers_tables():
    """Typed a second time from CVPR 2015 and the reference release's README."""
    table = score_table([make_result("a")], incomparable=True)
    expected = {
        ("FCN-32s-fixed", "seg11valid"): ["0.454", "0.830", "0.597", "0.720"],
        ("FCN-32s", "seg11valid"): ["0.594", "0.891", "0.733", "0.814"],
        ("FCN-16s", "seg11valid"): ["0.624", "0.900", "0.757", "0.830"],
        ("FCN-8s", "seg11valid"): ["0.627", "0.903", "0.759", "0.832"],
        ("SDS", "VOC2011 test"): ["0.526", "-", "-", "-"],
        ("SDS", "VOC2012 test"): ["0.516", "-", "-", "-"],
        ("R-CNN", "VOC2011 test"): ["0.479", "-", "-", "-"],
        ("FCN-8s", "VOC2011 test"): ["0.627", "-", "-", "-"],
        ("FCN-8s", "VOC2012 test"): ["0.622", "-", "-", "-"],
        ("FCN-AlexNet", "VOC2011 val"): ["0.398", "-", "-", "-"],
        ("FCN-VGG16", "VOC2011 val"): ["0.560", "-", "-", "-"],
        ("FCN-GoogLeNet", "VOC2011 val"): ["0.425", "-", "-", "-"],
        ("FCN-8s, released", "seg11valid"): ["0.655", "-", "-", "-"],
    }
    for (name, split), scores in expected.items():
        cells = row(table, name, split)
        assert [cells[key] for key in SCORES] == scores


def on_seg11valid(name: str, **changes: Any) -> Result:
    """A run on the images of the published scores. changes: of its metrics JSON."""
    class_iu = dict.fromkeys(voc.CLASSES, 0.5)
    images = {"keys_sha256": published_scores.SEG11VALID, "num_images": 736, "class_iu": class_iu}
    return make_result(name, **images | changes)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"class_iu": {"background": 0.5, "person": 0.5}}, "classes"),
        ({"convention": "absent_is_1"}, "absent_is_1"),
        ({"averaging": {"scales": [1.0], "flip": True}}, "averaging"),
    ],
)
def test_a_published_row_does_not_compare_to_a_run_on_its_images_that_was_scored_in_another_way(changes, why):
    table = score_table([on_seg11valid("b", **changes)], incomparable=True)
    assert why in str(row(table, "FCN-8s", "seg11valid")[COMPARABLE])


def test_a_published_row_compares_only_to_a_run_on_the_very_same_list_of_images():
    on_voc = on_seg11valid("b")
    small = score_table([make_result("a")], incomparable=True)
    voc = score_table([on_voc], incomparable=True)
    for name in ("FCN-8s", "FCN-32s, released"):
        assert "seg11valid, not small val, 30 images" in row(small, name, "seg11valid")[COMPARABLE]
        assert row(voc, name, "seg11valid")[COMPARABLE] == "yes"
    assert row(voc, "b")["scored on"] == "seg11valid, 736 images"
    for table in (small, voc):
        assert str(row(table, "SDS", "VOC2012 test")[COMPARABLE]).startswith(
            "no: another split: VOC2012 test"
        )


def test_published_rows_that_do_not_compare_are_left_out_unless_they_are_asked_for():
    on_voc = on_seg11valid("b")
    assert [cells[0] for cells in score_table([make_result("a")]).rows] == ["a"]
    table = score_table([on_voc])
    expected = [one.name for one in published_scores.PUBLISHED if one.split == "seg11valid"]
    assert [cells[0] for cells in table.rows] == ["b", *expected]
    assert {cells[-1] for cells in table.rows} == {"yes"}


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"keys_sha256": "f" * 64}, "other images: small val"),
        ({"val_digest": "c" * 64}, "other pixels or labels of the same images"),
        ({"convention": "absent_is_1"}, "other conventions of mean IU: reference and absent_is_1"),
        (
            {"averaging": {"scales": [0.75, 1.0], "flip": True}},
            "other averaging: none and over scales 0.75, 1.0",
        ),
        ({"class_iu": {"background": 0.5, "cat": 0.5}}, "other classes"),
        ({"keys_sha256": None}, "b has no keys_sha256"),
    ],
)
def test_a_run_that_does_not_compare_stays_in_the_tables_with_the_reason(changes, why):
    results = [make_result("a"), make_result("b", **changes)]
    cells = row(score_table(results), "b")
    assert str(cells[COMPARABLE]).startswith(f"no: {why}")
    assert str(cells["mean_iu"]).startswith(f"{results[1].values['mean_iu']:.3f}")
    ((name, *_, reason),) = difference_table(results, FEW).rows
    assert name == "b - a"
    assert str(reason).startswith(why)


def test_a_leak_stands_in_the_table_and_a_missing_score_is_nan():
    assert (
        "LEAK: a was trained on 3 of the 30"
        in row(score_table([make_result("a", num_leaked=3)]), "a")[COMPARABLE]
    )
    results = [make_result("a", num_leaked=3), make_result("b", 60, seed=1)]
    ((_, score, value, p_value, _, reason),) = difference_table(results, FEW).rows
    assert (score, value, p_value) == ("-", "-", "-")
    assert "LEAK: a" in str(reason)
    without = make_result("a", mean_iu=None, mean_iu_low=None, mean_iu_high=None)
    assert row(score_table([without]), "a")["mean_iu"] == "nan"


def test_a_run_whose_training_images_are_unknown_is_shown_as_such_and_so_is_its_group():
    known, unknown = make_result("a"), make_result("b", seed=1, num_leaked=None)
    table = score_table([known, unknown])
    assert row(table, "a")[COMPARABLE] == "yes"
    assert "training images are unknown" in row(table, "b")[COMPARABLE]
    both = group_result("both", "chains", {"seed 1": known, "seed 2": unknown}, FEW)
    assert both.values["num_leaked"] is None
    leaks = [make_result("a", num_leaked=2), make_result("b", seed=1, num_leaked=3)]
    group = group_result("both", "chains", {"seed 1": leaks[0], "seed 2": leaks[1]}, FEW)
    assert group.values["num_leaked"] == 3


def without_added(name: str) -> Result:
    """A result as earlier versions wrote it."""
    result = make_result(name)
    added = {"mean_f1", "mean_precision", "class_f1", "class_precision", "class_recall"}
    return Result(
        name, {key: value for key, value in result.values.items() if key not in added}, result.images
    )


def test_f1_and_precision_stand_beside_the_papers_scores_but_not_in_its_rows():
    table = score_table([make_result("a"), without_added("b")], incomparable=True)
    values = make_result("a").values
    assert row(table, "a")["mean_f1"] == f"{values['mean_f1']:.3f}"
    for cells in (row(table, "b"), row(table, "FCN-8s", "seg11valid")):
        assert (cells["mean_f1"], cells["mean_precision"]) == ("-", "-")
    assert row(table, "b")[COMPARABLE] == "yes"


def test_each_class_has_its_scores_run_by_run():
    results = [make_result("a"), without_added("b")]
    results[0].values["class_precision"]["disc"] = None  # never predicted
    table = compare.class_table(results)
    assert table.head == ("class", "run", "IU", "F1", "precision", "recall")
    assert [cells[:2] for cells in table.rows] == [
        (name, run) for name in ("background", "disc") for run in ("a", "b")
    ]
    values = results[0].values
    by_class = [values[key]["disc"] for key in ("class_iu", "class_f1", "class_recall")]
    assert [table.rows[2][i] for i in (2, 3, 5)] == [f"{value:.3f}" for value in by_class]
    assert table.rows[2][4] == "-"
    assert table.rows[3][3:] == ("-", "-", "-")


# --- differences


def test_every_two_runs_on_the_same_images_have_their_paired_difference():
    results = [make_result("a", 60), make_result("b", 70, seed=1), make_result("c", 70, seed=1)]
    settings = Bootstrap(200, 0.9, 5)
    table = difference_table(results, settings)
    assert [cells[:2] for cells in table.rows] == [
        (f"{x} - {y}", score)
        for x, y in (("b", "a"), ("c", "a"), ("c", "b"))
        for score in ("mean_iu", "pixel_acc")
    ]
    counts = [result.images.whole for result in results[:2] if result.images]
    expected = paired_difference(mean_iu, counts[1], counts[0], settings)
    assert expected.value == pytest.approx(results[1].values["mean_iu"] - results[0].values["mean_iu"])
    first, *_, last = (dict(zip(table.head, cells, strict=True)) for cells in table.rows)
    assert first["value"] == f"{expected.value:+.3f} [{expected.low:+.3f}, {expected.high:+.3f}]"
    assert first["p"] == "<0.0100"  # 2 / 201, rounded up: the least that 200 resamples can show
    assert last["p"] == "1.0000"
    assert "90% interval" in table.notes[0]


def test_a_run_without_counts_of_each_image_has_no_difference_but_a_reason():
    bare = Result("b", make_result("b").values, None)
    ((*_, reason),) = difference_table([make_result("a"), bare], FEW).rows
    assert "for b; evaluate it again" in str(reason)
