import dataclasses
import math
import resource
import shutil
from collections import namedtuple
from contextlib import nullcontext

import numpy as np
import pytest
import torch

from fcn.model import FCN
from pipeline.config.training import Terms, Transforms
from pipeline.distributed.batch_norm import set_training
from pipeline.distributed.rank import SINGLE
from pipeline.errors import UserError
from pipeline.loading.loader import Stream
from pipeline.shards.read import open_shards
from pipeline.training import preflight
from pipeline.training.loop import make_stream, start_model, train_worker
from pipeline.training.preflight import check_shapes, check_start, largest_batch
from tests.jobs import changed
from tests.training.conftest import write


def check(job, model=None) -> None:
    stream = make_stream(job, open_shards(job.shards), SINGLE)
    check_start(job, model or start_model(job), stream, SINGLE)


def test_it_says_batch_loss_chance_memory_and_disk(make_job, capsys):
    check(make_job())
    line = capsys.readouterr().out
    assert line.startswith(
        "fcn32s  check: 2 x 32x32 a worker in float32, loss 1.6094 (chance 1.6094), memory "
    )
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


def test_the_largest_images_make_the_largest_batch(tmp_path):
    sizes = [(16, 20), (40, 16), (16, 16), (30, 30)]
    images = [np.zeros((h, w, 3), np.uint8) for h, w in sizes]
    shards = open_shards(write(tmp_path / "train", [np.zeros(size, np.uint8) for size in sizes], images))
    image, label = largest_batch(Stream(shards, batch_size=6, seed=0))
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


@pytest.mark.parametrize("terms", [Terms(focal=1.0), Terms(cross_entropy=1.0, dice=5.0)])
def test_whatever_the_loss_the_check_is_of_cross_entropy(make_job, capsys, terms):
    check(make_job(terms=terms, class_weights="inverse"))
    assert "loss 1.6094 (chance 1.6094)" in capsys.readouterr().out


def test_too_little_disk_is_told_before_the_first_step(make_job, monkeypatch):
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(1000))
    with pytest.raises(UserError, match=r"checkpoints need 0\.0 GB in .*, 0\.0 GB are free there"):
        check(make_job())


def test_averaged_weights_and_the_best_net_are_counted_as_checkpoints_hold_them(make_job, monkeypatch):
    needed, sizes = [], []
    monkeypatch.setattr(preflight, "check_disk", lambda _, num_bytes: needed.append(num_bytes))
    plain = make_job("plain", iterations=3)
    both = make_job("both", iterations=3, ema=0.9, keep="best", validate_every=3)
    for job in (plain, both):
        train_worker(job, SINGLE)
        sizes.append((job.folder / "step-00000003.pt").stat().st_size)
    weights = sum(tensor.nbytes for tensor in start_model(plain).state_dict().values())
    assert needed[1] - needed[0] == 4 * 2 * weights  # three kept checkpoints, and one that is being written
    assert sizes[1] - sizes[0] == pytest.approx(2 * weights, rel=0.25)


def test_too_little_memory_is_told_before_the_first_step(make_job, monkeypatch):
    monkeypatch.setattr(preflight, "available_memory", lambda: 1000)
    with pytest.raises(UserError, match=r"GB more are needed in the machine's memory .* \(now 2\)"):
        check(make_job())


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        torch.AcceleratorError("CUDA error: out of memory"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        torch.distributed.DistBackendError("NCCL error ... Last error:\nCuda failure 2 'out of memory'"),
    ],
)
def test_a_batch_too_large_for_the_gpu_is_told_with_the_remedy(make_job, monkeypatch, error):
    job = make_job()
    model = start_model(job)

    def full(_):
        raise error

    monkeypatch.setattr(model, "forward", full)
    with pytest.raises(UserError, match=r"do not fit into cpu's memory; raise train\.accumulation \(now 1\)"):
        check(job, model)


def test_an_all_void_batch_is_no_mistake(make_job, tmp_path):
    void = write(tmp_path / "void", [np.full((16, 16), 255, np.uint8)], [np.zeros((16, 16, 3), np.uint8)])
    check(changed(make_job(), shards=void))


# Steps that no net of this shape can take


MOBILENET = {"backbone": "mobilenet_v1", "width": 1 / 16, "pixels": "torchvision"}
LARGE_WINDOW = {"padding": "reference", "fc6_kernel": 15, "width": 1 / 64, "backbone": "vgg16"}


@pytest.mark.parametrize(
    ("model", "sizes", "changes", "refused"),
    [
        (MOBILENET, [(32, 32)], {}, "1 x 32x32"),
        (MOBILENET, [(32, 32)], {"batch_norm": "frozen"}, None),
        (MOBILENET | {"fixed_trunk": True}, [(32, 32)], {}, None),
        (MOBILENET, [(1, 1)], {}, "1 x 1x1"),
        (MOBILENET, [(33, 32)], {}, None),
        (MOBILENET, [(64, 64), (32, 20)], {}, "1 x 32x20"),
        (MOBILENET, [(64, 64), (32, 20)], {"batch_size": 2}, None),
        (MOBILENET, [(64, 64)], {"transforms": Transforms(crop=(32, 32))}, "1 x 32x32"),
        (MOBILENET, [(64, 64)], {"transforms": Transforms(scale=(0.5, 2.0))}, "1 x 32x32"),
        (MOBILENET, [(64, 64)], {"transforms": Transforms(scale=(0.6, 2.0))}, None),
        (LARGE_WINDOW, [(300, 300), (300, 20)], {}, "1 x 300x20"),
        (LARGE_WINDOW, [(300, 300)], {}, None),
    ],
)
def test_a_step_that_fails_is_refused_without_its_arithmetic(make_job, model, sizes, changes, refused):
    """Those that pass, and only those, can be computed in earnest."""
    job = make_job(**{"batch_size": 1} | changes)
    job = dataclasses.replace(job, model=model | {"num_classes": 5, "stride": 32})
    if refused:
        with pytest.raises(UserError, match=rf"fcn32s: a step of {refused} ") as caught:
            check_shapes(job, np.array(sizes))
        assert "\n" not in str(caught.value)
        height, width = map(int, refused.rpartition(" ")[2].split("x"))
    else:
        check_shapes(job, np.array(sizes))
        height, width = job.train.transforms.crop or (
            max(1, round(side * job.train.transforms.scale[0])) for side in np.min(sizes, 0)
        )
        if job.train.batch_size > 1:
            height, width = np.max(sizes, 0)
    net = FCN(**job.model)
    set_training(net, job.train.batch_norm)
    image = torch.zeros(job.train.batch_size, 3, height, width)
    with pytest.raises((RuntimeError, ValueError)) if refused else nullcontext():
        net(image)


def test_an_error_of_the_first_pass_is_the_users_and_one_of_the_group_is_not(make_job, monkeypatch):
    job = make_job()
    model = start_model(job)
    for error, raised in (
        (RuntimeError("mat1 and mat2 cannot be multiplied\nmore"), UserError),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), UserError),
        (torch.distributed.DistBackendError("NCCL error: a worker is gone"), torch.distributed.DistError),
        (torch.AcceleratorError("CUDA error: unspecified launch failure"), torch.AcceleratorError),
    ):

        def fail(_, error=error):
            raise error

        monkeypatch.setattr(model, "forward", fail)
        with pytest.raises(raised) as caught:
            check(job, model)
        assert "more" not in str(caught.value).partition("mat2")[2].partition(")")[0]
