"""A project's root with a small drawn data set."""

from pathlib import Path

import pytest

from pipeline.datasets import synthetic
from tests.stage_runs import NAME, sample_profile, write_profile


@pytest.fixture
def workplace(tmp_path: Path) -> Path:
    """As after the download stage, with two images to train on and two to validate."""
    profile = sample_profile()
    drawing = {"num_train": 2, "num_val": 2, "image_size": 48}
    profile["data"]["source"]["sample"] |= drawing
    write_profile(tmp_path, profile)
    synthetic.draw(tmp_path / "data" / NAME / "raw", seed=1, **drawing)
    return tmp_path
