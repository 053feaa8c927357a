"""Scores while a net is trained; test_loop.py has those of several workers."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fcn.model import FCN
from pipeline.distributed.rank import SINGLE
from pipeline.models.tiles import SIDE
from pipeline.monitoring.validation import validate
from pipeline.shards.dataset import Dataset
from pipeline.shards.read import open_shards
from tests.jobs import tiny_job
from tests.training.conftest import CLASSES, write


def test_a_large_photo_is_validated_in_tiles_with_the_scores_of_the_whole(tmp_path):
    random = np.random.Generator(np.random.PCG64(0))
    photo = random.integers(0, 256, (1600, 1500, 3), dtype=np.uint8)
    truth = random.integers(0, len(CLASSES), (1600, 1500), dtype=np.uint8)
    truth[:700] = 255
    shards = open_shards(write(tmp_path / "val", [truth], [photo], "val"))
    job = tiny_job(Path(), Path(), folder=tmp_path)
    torch.manual_seed(0)
    model = FCN(**job.model | {"score_init": "random"}).eval()
    with torch.inference_mode():
        score = model(Dataset(shards)[0].image)
    label = torch.from_numpy(truth)[None].long()
    is_valid = label != 255
    sides = []
    model.register_forward_pre_hook(lambda _, inputs: sides.append(max(inputs[0].shape[-2:])))
    scores = validate(job, model, shards, SINGLE)
    assert max(sides) <= SIDE
    assert len(sides) > 1
    expected_loss = F.cross_entropy(score.double(), label, ignore_index=255).item()
    assert scores["val_loss"] == pytest.approx(expected_loss, rel=1e-5)
    right = (score.argmax(1) == label)[is_valid].float().mean().item()
    assert scores["val_pixel_acc"] == pytest.approx(right, abs=1e-5)
