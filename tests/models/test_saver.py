import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pipeline.errors import CheckpointError
from pipeline.models import checkpoint
from pipeline.models.checkpoint import load_step
from pipeline.models.saver import Saver, copied


def state(value: float) -> dict:
    return {
        "identity": "run",
        "model": {"weight": torch.full((3,), value)},
        "groups": [{"betas": (0.9, 0.99)}],
    }


def test_what_is_saved_is_what_was_there_when_it_was_asked_for(tmp_path, monkeypatch):
    written = threading.Event()
    real = checkpoint.save_step

    def late(*arguments):
        assert written.wait(10)
        real(*arguments)

    monkeypatch.setattr(checkpoint, "save_step", late)
    now = state(1.0)
    with Saver(tmp_path) as saver:
        saver.save(5, now)  # comes back though nothing is written yet
        now["model"]["weight"].fill_(2.0)
        assert not list(tmp_path.iterdir())
        written.set()
    assert load_step(tmp_path, 5)["model"]["weight"].tolist() == [1, 1, 1]


def test_the_end_of_the_with_is_the_end_of_writing(tmp_path):
    with Saver(tmp_path) as saver:
        for step in (1, 2, 3, 4):
            saver.save(step, state(step))
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"step-0000000{n}.pt" for n in (2, 3, 4)]


@pytest.fixture
def full_disk(monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)


def train_and(then: Callable[[Saver], object], folder: Path) -> None:
    with Saver(folder) as saver:
        saver.save(1, state(1))
        then(saver)


@pytest.mark.usefixtures("full_disk")
@pytest.mark.parametrize("then", [lambda saver: saver.save(2, state(2)), Saver.wait, lambda _: None])
def test_what_goes_wrong_in_the_thread_is_raised_where_training_sees_it(tmp_path, then):
    with pytest.raises(CheckpointError, match=r"step 1.*No space left on device"):
        train_and(then, tmp_path)
    assert not list(tmp_path.glob("step-*"))


def test_a_run_that_fails_still_leaves_the_checkpoint_that_was_being_written(tmp_path):
    with pytest.raises(ZeroDivisionError):
        train_and(lambda _: 1 / 0, tmp_path)
    assert load_step(tmp_path, 1)["identity"] == "run"


def test_a_copy_has_the_same_content_and_no_tensor_in_common():
    original = state(1.0) | {"counts": [1, 2], "none": None}
    copy = copied(original)
    assert checkpoint.content_digest(copy) == checkpoint.content_digest(original)
    assert copy["groups"][0]["betas"] == (0.9, 0.99)
    assert copy["model"]["weight"].data_ptr() != original["model"]["weight"].data_ptr()
