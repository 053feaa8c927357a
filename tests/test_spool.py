import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import spool
from pipeline.spool import Point


def test_points_come_back_in_the_order_of_steps_with_the_time_they_were_measured(tmp_path):
    path, before = tmp_path / "curves.jsonl", time.time()
    spool.append(path, 20, {"loss": 0.5, "lr": 1e-14})
    spool.append(path, 10, {"loss": 0.25})
    points = spool.read(path, -1)
    assert [(point.step, point.values) for point in points] == [
        (10, {"loss": 0.25}),
        (20, {"loss": 0.5, "lr": 1e-14}),
    ]
    assert all(before - 1 <= point.time_ms / 1000 <= time.time() for point in points)


def test_a_curve_that_has_not_begun_has_no_points(tmp_path):
    assert spool.read(tmp_path / "curves.jsonl", -1) == []


def test_only_later_steps_are_given(tmp_path):
    path = tmp_path / "curves.jsonl"
    for step in (10, 20, 30):
        spool.append(path, step, {"loss": 1.0})
    assert [point.step for point in spool.read(path, after_step=10)] == [20, 30]
    assert spool.read(path, after_step=30) == []


def test_a_step_measured_again_after_a_resume_counts_once_as_it_was_first_seen(tmp_path):
    path = tmp_path / "curves.jsonl"
    path.write_text(
        '[10, 1, {"loss": 3}]\n[20, 2, {"loss": 2}]\n[10, 3, {"loss": 3.5}]\n[30, 4, {"loss": 1}]\n'
    )
    assert spool.read(path, -1) == [
        Point(10, 1, {"loss": 3}),
        Point(20, 2, {"loss": 2}),
        Point(30, 4, {"loss": 1}),
    ]


def test_a_line_still_being_written_is_left_for_later(tmp_path):
    path = tmp_path / "curves.jsonl"
    spool.append(path, 10, {"loss": 1.0})
    whole = path.read_bytes()
    spool.append(path, 20, {"loss": 0.5})
    data = path.read_bytes()
    for length in range(len(whole), len(data)):
        path.write_bytes(data[:length])
        assert [point.step for point in spool.read(path, -1)] == [10]
    path.write_bytes(data)
    assert [point.step for point in spool.read(path, -1)] == [10, 20]


@pytest.mark.parametrize("cut", [1, 5, 20, 30])
def test_a_line_a_kill_cut_short_spoils_neither_itself_nor_the_next(tmp_path, cut):
    """The run that goes on measures the step again, since it had not been saved."""
    path = tmp_path / "curves.jsonl"
    for step in (10, 20):
        spool.append(path, step, {"loss": step / 10})
    path.write_bytes(path.read_bytes()[:-cut])
    for step in (20, 30):
        spool.append(path, step, {"loss": step / 10})
    assert [(point.step, point.values["loss"]) for point in spool.read(path, -1)] == [
        (10, 1),
        (20, 2),
        (30, 3),
    ]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 20)), st.integers(-1, 20))
def test_whatever_was_appended_each_later_step_is_there_once(tmp_path_factory, steps, after):
    path = tmp_path_factory.mktemp("spool") / "curves.jsonl"
    for step in steps:
        spool.append(path, step, {"loss": 0.0})
    assert [point.step for point in spool.read(path, after)] == sorted(
        {step for step in steps if step > after}
    )
