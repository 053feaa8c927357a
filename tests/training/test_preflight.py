import math
import resource
import shutil
from collections import namedtuple

import numpy as np
import pytest
import torch

from fcn.model import FCN
from pipeline.distributed.rank import SINGLE
from pipeline.errors import UserError
from pipeline.shards.read import open_shards
from pipeline.training import preflight
from pipeline.training.loop import start_model
from pipeline.training.preflight import check_start, largest_batch
from tests.jobs import changed
from tests.training.conftest import write


def check(job, model=None) -> None:
    check_start(job, model or start_model(job), open_shards(job.shards), SINGLE)


def test_it_says_batch_loss_chance_memory_and_disk(make_job, capsys):
    check(make_job())
    line = capsys.readouterr().out
    assert line.startswith("fcn32s  check: 2 x 32x32 a worker, loss 1.6094 (chance 1.6094), memory ")
    gigabytes = float(line.partition("memory ")[2].split()[0])  # all that tests did before among it
    assert gigabytes == pytest.approx(1024e-9 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, rel=0.2)
    assert "checkpoints 3 x 0 MB" in line


def test_it_leaves_no_trace(make_job):
    job = make_job(model={"dropout": 0.5, "batch_norm": True, "score_init": "random"})
    torch.manual_seed(0)
    model = FCN(**job.model)
    before = {name: t.clone() for name, t in model.state_dict().items()}
    random = torch.get_rng_state()
    check(job, model)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_the_largest_images_make_the_largest_batch(make_job, tmp_path):
    sizes = [(16, 20), (40, 16), (16, 16), (30, 30)]
    images = [np.zeros((h, w, 3), np.uint8) for h, w in sizes]
    shards = open_shards(write(tmp_path / "train", [np.zeros(size, np.uint8) for size in sizes], images))
    image, label = largest_batch(make_job(), shards, 6)
    assert image.shape == (6, 3, 40, 30)  # the greatest height and the greatest width
    num_valid = (label != 255).flatten(1).sum(1).tolist()
    assert num_valid == [900, 640, 320, 256, 900, 640]  # again from the largest when there are no more


@pytest.mark.parametrize("value", [math.nan, 1e38])
def test_weights_that_give_no_number_are_refused_naming_their_file(make_job, value):
    job = make_job(model={"score_init": "random"})
    model = start_model(job)
    with torch.no_grad():
        model.backbone.conv1_1.weight.fill_(value)
    with pytest.raises(UserError, match=rf"the first (loss|gradient) .*{job.parent}"):
        check(job, model)


def test_scores_that_begin_at_zero_must_begin_at_ln_c(make_job, monkeypatch):
    monkeypatch.setattr(preflight, "first_loss", lambda *_: 1.7)
    with pytest.raises(UserError, match=r"the first loss is 1\.7000 a pixel; .* ln 5 = 1\.6094"):
        check(make_job("zero"))
    check(make_job("random", model={"score_init": "random"}))


def test_too_little_disk_is_told_before_the_first_step(make_job, monkeypatch):
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(1000))
    with pytest.raises(UserError, match=r"checkpoints need 0\.0 GB in .*, 0\.0 GB are free there"):
        check(make_job())


def test_too_little_memory_is_told_before_the_first_step(make_job, monkeypatch):
    monkeypatch.setattr(preflight, "available_memory", lambda: 1000)
    with pytest.raises(UserError, match=r"GB more are needed in the machine's memory .* \(now 2\)"):
        check(make_job())


def test_a_batch_too_large_for_the_gpu_is_told_with_the_remedy(make_job, monkeypatch):
    job = make_job()
    model = start_model(job)

    def full(_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(model, "forward", full)
    with pytest.raises(UserError, match=r"do not fit into cpu's memory; raise train\.accumulation \(now 1\)"):
        check(job, model)


def test_an_all_void_batch_is_no_mistake(make_job, tmp_path):
    void = write(tmp_path / "void", [np.full((16, 16), 255, np.uint8)], [np.zeros((16, 16, 3), np.uint8)])
    check(changed(make_job(), shards=void))
