import json
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.curves import Point, append_point, read_curve, read_points, write_curve
from pipeline.errors import ResultError

MEASURED = [
    Point(10, 1_700_000_000_000, {"loss": 2.0, "lr": 0.1, "images_per_s": 3.5, "memory_gb": 1.0}),
    Point(20, 1_700_000_009_000, {"loss": 1.0, "lr": 0.05, "images_per_s": 3.0, "val_mean_iu": 0.3}),
]


def test_a_curve_keeps_what_the_run_decides_and_nothing_of_the_machine(tmp_path):
    path = tmp_path / "curves" / "fcn8s.json"
    write_curve(path, "fcn8s", "fcn16s", MEASURED, {"keep": "last", "step": 20})
    curve = read_curve(path)
    assert (curve.net, curve.parent) == ("fcn8s", "fcn16s")
    assert curve.kept == {"keep": "last", "step": 20}
    assert curve.points == (
        {"step": 10, "loss": 2.0, "lr": 0.1},
        {"step": 20, "loss": 1.0, "lr": 0.05, "val_mean_iu": 0.3},
    )
    assert curve.of("val_mean_iu") == ([20], [0.3])
    assert curve.of("val_pixel_acc") == ([], [])
    before = path.read_bytes()
    slower = [point._replace(time_ms=0, values=point.values | {"images_per_s": 0.1}) for point in MEASURED]
    write_curve(path, "fcn8s", "fcn16s", slower, curve.kept)
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == ["fcn8s.json"]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"net": "a", "parent": "b", "points": [{"loss": 1}]}',
        '{"points": 3}',
        '{"points": [7]}',
    ],
)
def test_a_damaged_curve_is_named_with_the_stage_that_writes_it(tmp_path, text):
    path = tmp_path / "fcn8s.json"
    path.write_text(text)
    with pytest.raises(ResultError, match=r"fcn8s.*dvc repro train"):
        read_curve(path)


def test_a_missing_curve_is_named_with_the_stage_that_writes_it(tmp_path):
    with pytest.raises(ResultError, match=r"fcn8s\.json is missing; run `dvc repro train`"):
        read_curve(tmp_path / "fcn8s.json")


def test_the_file_is_a_list_of_records_as_dvc_plots_reads_it(tmp_path):
    write_curve(tmp_path / "a.json", "fcn8s", "fcn16s", MEASURED)
    points = json.loads((tmp_path / "a.json").read_text())["points"]
    assert [point["step"] for point in points] == [10, 20]
    assert [list(point) for point in points] == [["step", "loss", "lr", "val_mean_iu"]] * 2


def test_points_come_back_in_the_order_of_steps_with_the_time_they_were_measured(tmp_path):
    path, before = tmp_path / "curves.jsonl", time.time()
    append_point(path, 20, {"loss": 0.5, "lr": 1e-14})
    append_point(path, 10, {"loss": 0.25})
    points = read_points(path, -1)
    assert [(point.step, point.values) for point in points] == [
        (10, {"loss": 0.25}),
        (20, {"loss": 0.5, "lr": 1e-14}),
    ]
    assert all(before - 1 <= point.time_ms / 1000 <= time.time() for point in points)


def test_a_curve_that_has_not_begun_has_no_points(tmp_path):
    assert read_points(tmp_path / "curves.jsonl", -1) == []


def test_only_later_steps_are_given(tmp_path):
    path = tmp_path / "curves.jsonl"
    for step in (10, 20, 30):
        append_point(path, step, {"loss": 1.0})
    assert [point.step for point in read_points(path, after_step=10)] == [20, 30]
    assert read_points(path, after_step=30) == []


def test_a_step_measured_again_after_a_resume_counts_once_as_it_was_first_seen(tmp_path):
    path = tmp_path / "curves.jsonl"
    path.write_text(
        '[10, 1, {"loss": 3}]\n[20, 2, {"loss": 2}]\n[10, 3, {"loss": 3.5}]\n[30, 4, {"loss": 1}]\n'
    )
    assert read_points(path, -1) == [
        Point(10, 1, {"loss": 3}),
        Point(20, 2, {"loss": 2}),
        Point(30, 4, {"loss": 1}),
    ]


def test_a_line_still_being_written_is_left_for_later(tmp_path):
    path = tmp_path / "curves.jsonl"
    append_point(path, 10, {"loss": 1.0})
    whole = path.read_bytes()
    append_point(path, 20, {"loss": 0.5})
    data = path.read_bytes()
    for length in range(len(whole), len(data)):
        path.write_bytes(data[:length])
        assert [point.step for point in read_points(path, -1)] == [10]
    path.write_bytes(data)
    assert [point.step for point in read_points(path, -1)] == [10, 20]


@pytest.mark.parametrize("cut", [1, 5, 20, 30])
def test_a_line_a_kill_cut_short_spoils_neither_itself_nor_the_next(tmp_path, cut):
    """The run that goes on measures the step again, since it had not been saved."""
    path = tmp_path / "curves.jsonl"
    for step in (10, 20):
        append_point(path, step, {"loss": step / 10})
    path.write_bytes(path.read_bytes()[:-cut])
    for step in (20, 30):
        append_point(path, step, {"loss": step / 10})
    assert [(point.step, point.values["loss"]) for point in read_points(path, -1)] == [
        (10, 1),
        (20, 2),
        (30, 3),
    ]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 20)), st.integers(-1, 20))
def test_whatever_was_appended_each_later_step_is_there_once(tmp_path_factory, steps, after):
    path = tmp_path_factory.mktemp("spool") / "curves.jsonl"
    for step in steps:
        append_point(path, step, {"loss": 0.0})
    assert [point.step for point in read_points(path, after)] == sorted(
        {step for step in steps if step > after}
    )
