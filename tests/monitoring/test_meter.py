import re
import time
from pathlib import Path

import pytest
import torch

from pipeline.curves import read_points
from pipeline.distributed.rank import SINGLE
from pipeline.monitoring import meter
from pipeline.monitoring.meter import CURVES, STOP, Meter
from tests.jobs import tiny_job


def make(tmp_path, **changes) -> Meter:
    settings = {
        "iterations": 100,
        "batch_size": 4,
        "log_every": 10,
        "log_every_s": 5.0,
        "checkpoint_every": 25,
    }
    job = tiny_job(Path(), Path(), folder=tmp_path, **settings | changes)
    return Meter(job, SINGLE, 0, [0.0, 0.0], lambda step: [f"image{step}"])


@pytest.fixture
def clock(monkeypatch) -> list[float]:
    """The time, which a test sets."""
    now = [1000.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    return now


def step(watch: Meter, loss: float, pixels: float = 10.0) -> None:
    watch.add(torch.tensor([loss * pixels, pixels], dtype=torch.float64), lr=0.01)


def run(watch: Meter, clock: list[float], steps: range, step_s: float) -> list[int]:
    """The steps after which the workers looked up."""
    looked = []
    for done in steps:
        clock[0] += step_s
        step(watch, 1.0)
        if watch.is_due(done):
            watch.collect(done)
            watch.show(done, {})
            looked.append(done)
    return looked


@pytest.mark.parametrize("step_s", [0.01, 0.4, 4.0, 60.0])
def test_a_line_comes_every_few_seconds_however_long_a_step_takes(tmp_path, capsys, clock, step_s):
    never = 10**6
    watch = make(tmp_path, log_every=never, checkpoint_every=never, iterations=never)
    steps = int(120 / step_s)
    run(watch, clock, range(1, steps + 1), step_s)
    lines = len(capsys.readouterr().out.splitlines())
    assert lines == steps if step_s > 5 else 15 <= lines <= 24  # of 5 to 8 seconds, as steps are whole
    run(watch, clock, range(steps + 1, 2 * steps + 1), 3 * step_s)  # a machine that slows down
    assert len(capsys.readouterr().out.splitlines()) >= min(steps - 1, 30)


def test_workers_look_up_at_points_checkpoints_and_when_a_line_is_due(tmp_path, clock):
    assert run(make(tmp_path), clock, range(1, 101), 0.01) == [1, *sorted({*range(10, 101, 10), 25, 75})]
    assert run(make(tmp_path), clock, range(1, 5), 60.0) == [1, 2, 3, 4]


def test_a_line_tells_step_loss_rate_wait_and_time_left(tmp_path, capsys, clock):
    watch = make(tmp_path, log_every_s=1.0)
    for done, loss in ((1, 3.0), (2, 1.0)):

        def batches():
            clock[0] += 0.25
            yield "batch"

        assert watch.take(batches(), 1) == ["batch"]
        clock[0] += 0.75
        step(watch, loss, pixels=10.0 * done)
        watch.collect(done)
    watch.show(2, {})
    # (30 + 20) / 30 pixels; 8 images in 2 s; half a second of two; 98 steps of a second
    assert capsys.readouterr().out == "fcn32s  2/100  loss 1.6667  4.0 images/s  25% data wait  1:38 left\n"


def test_a_point_of_the_curves_has_loss_rate_wait_and_memory(tmp_path, clock):
    watch = make(tmp_path)
    run(watch, clock, range(1, 21), 0.5)
    first, second = read_points(tmp_path / CURVES, -1)
    assert (first.step, second.step) == (10, 20)
    assert first.values | {"memory_gb": 0} == {
        "loss": 1.0,
        "lr": 0.01,
        "images_per_s": 8.0,
        "data_wait": 0.0,
        "memory_gb": 0,
    }
    assert 0.05 < first.values["memory_gb"] < 100


def test_scores_stand_in_the_point_of_their_step(tmp_path):
    watch = make(tmp_path, validate_every=7)
    for _ in range(7):
        step(watch, 2.0)
    assert watch.is_due(7)
    watch.collect(7)
    watch.show(7, {"val_mean_iu": 0.5})
    (point,) = read_points(tmp_path / CURVES, -1)
    assert (point.step, point.values["loss"], point.values["val_mean_iu"]) == (7, 2.0, 0.5)


def test_whoever_asks_to_stop_is_heard_at_the_next_look(tmp_path):
    watch = make(tmp_path)
    step(watch, 1.0)
    assert not watch.collect(1)
    (tmp_path / STOP).touch()
    step(watch, 1.0)
    assert watch.collect(2)


@pytest.mark.parametrize(
    ("seconds", "shown"), [(59.6, "1:00"), (3599, "59:59"), (3600, "1:00:00"), (0, "0:00")]
)
def test_the_time_left_reads_as_a_clock(seconds, shown):
    assert re.fullmatch(shown, meter._clock(seconds))
