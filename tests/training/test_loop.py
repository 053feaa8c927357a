"""Workers are called in this process or in two real ones; Ray, which starts them for users, is tested elsewhere."""

import itertools
import math
import os
import pickle
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fcn import IGNORE_LABEL
from fcn.model import FCN
from pipeline.config.job import Job
from pipeline.config.training import Transforms
from pipeline.curves import read_points
from pipeline.datasets import synthetic
from pipeline.distributed.rank import SINGLE, Rank
from pipeline.errors import CheckpointError, ShardError, UserError
from pipeline.loading.loader import Stream
from pipeline.loading.sampler import Order
from pipeline.models import backbone, checkpoint
from pipeline.monitoring.meter import STOP
from pipeline.monitoring.validation import validate
from pipeline.shards.dataset import Dataset
from pipeline.shards.read import open_shards
from pipeline.training import loop
from pipeline.training.loop import start_model, train_worker
from tests.gloo import run_in_processes
from tests.jobs import TINY, changed
from tests.training.conftest import write

pytestmark = pytest.mark.early

CLASSES = synthetic.CLASSES
DRAWN = Transforms(mirror=True, jitter=4, scale=(0.8, 1.25), contrast=0.2)


def weights(job: Job) -> dict[str, torch.Tensor]:
    return checkpoint.load(job.folder / "final.pt", "model")[0]["state_dict"]


def bits(job: Job) -> str:
    """Of the final weights, put together without the project's own digest."""
    return "".join(f"{name}{t.numpy().tobytes().hex()}" for name, t in sorted(weights(job).items()))


def kept(job: Job) -> dict[str, Any]:
    """What the final model's lineage says of the choice."""
    return checkpoint.load(job.folder / "final.pt", "model")[0]["lineage"]["kept"]


def curve(job: Job, name: str) -> list[float]:
    return [point.values[name] for point in read_points(job.folder / "curves.jsonl", -1)]


def saved_steps(job: Job) -> list[int]:
    return sorted(int(path.stem.removeprefix("step-")) for path in job.folder.glob("step-*.pt"))


class KilledError(Exception):
    """Stands for the end of the process."""


def kill_before_step(monkeypatch, number: int) -> None:
    """From now on, the process ends when its step `number` (of this start) is about to be computed."""
    real, count = loop.backward, iter(range(10**9))

    def backward(*arguments):
        if next(count) == number:
            raise KilledError
        return real(*arguments)

    monkeypatch.setattr(loop, "backward", backward)


# What is learned


def test_training_on_four_images_lowers_the_loss_and_writes_the_model(make_job, capsys, tmp_path):
    wide = {"width": 1 / 16, "dropout": 0.0, "batch_norm": True}
    backbone.write_random(tmp_path / "wide.pt", TINY | wide, seed=3)
    job = make_job(
        model=wide,
        parent=tmp_path / "wide.pt",
        optimizer="adamw",
        lr=1e-2,
        batch_size=4,
        iterations=40,
        log_every=10,
        checkpoint_every=100,
    )
    train_worker(job, SINGLE)
    losses = curve(job, "loss")
    assert len(losses) == 4
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.4 * math.log(5)  # of what it began with
    content, _ = checkpoint.load(job.folder / "final.pt", "model")
    assert (content["model"], content["classes"]) == (job.model, list(CLASSES))
    assert content["lineage"] == job.lineage | {"kept": kept(job)}
    assert kept(job) == {"keep": "last", "step": 40, "last_step": 40, "iterations": 40}
    (seen,) = content["trained_on"]
    assert seen["keys"] == sorted(open_shards(job.shards).keys)
    origin = content["origin"]
    assert origin["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert (origin["hardware"]["workers"], origin["hardware"]["device"]) == (1, "CPU")
    assert (origin["recipe"]["lr"], origin["recipe"]["iterations"]) == (1e-2, 40)
    assert str(job.folder.parent) not in str(origin)  # nothing of where it lay
    FCN(**content["model"]).load_state_dict(content["state_dict"])
    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith(
        "fcn32s  check: 4 x 32x32 a worker in float32, loss 1.6094 (chance 1.6094), memory "
    )
    assert len(out) == 41  # log_every_s is 0: a line a step
    assert re.fullmatch(r"fcn32s  40/40  loss 0\.\d+  [\d.]+ images/s  \d+% data wait  0:00 left", out[-1])


@pytest.mark.parametrize("loss", ["sum", "mean"])
def test_the_first_loss_is_ln_of_the_number_of_classes_a_valid_pixel(make_job, loss):
    job = make_job(iterations=1, loss=loss)
    train_worker(job, SINGLE)
    assert curve(job, "loss") == [pytest.approx(math.log(5), rel=1e-6)]


def test_balanced_classes_have_the_same_say_in_the_first_bias_step(make_job):
    """Of zero scores, class c pulls its bias by sum_k w_k n_k / C - w_c n_c over n pixels: 0 if all w n are alike.

    But for the border, where upsampling gives a pixel less than its share of a cell.
    """
    plain, balanced = (
        make_job(weights, iterations=1, batch_size=4, class_weights=weights)
        for weights in ("none", "inverse")
    )
    for job in (plain, balanced):
        train_worker(job, SINGLE)
    assert curve(balanced, "loss") == [pytest.approx(math.log(5), rel=1e-6)]
    pulls = [weights(job)["score_fr.bias"].abs().max() for job in (plain, balanced)]
    assert pulls[1] < 0.1 * pulls[0]


def test_a_sampled_loss_is_drawn_anew_each_step_and_the_same_again(make_job):
    jobs = [make_job(name, sample_pixels=0.25, iterations=4) for name in ("one", "two")]
    for job in jobs:
        train_worker(job, SINGLE)
    assert bits(jobs[0]) == bits(jobs[1])
    whole = make_job("whole", iterations=4)
    train_worker(whole, SINGLE)
    assert curve(whole, "loss")[0] == pytest.approx(curve(jobs[0], "loss")[0])  # ln C of any pixels
    assert bits(whole) != bits(jobs[0])


def by_formula(job: Job) -> tuple[dict[str, torch.Tensor], list[float]]:
    """Weights and losses a pixel of plain SGD, from the formula: v = m v + g + wd w, then w = w - lr v.

    Biases take twice the rate and no decay; fixed upsampling stays. The gradient comes from log-softmax by hand.
    """
    model = start_model(job)
    stream = Stream(open_shards(job.shards), job.train.batch_size, job.train.seed, job.train.sampling)
    velocity = {name: torch.zeros_like(p) for name, p in model.named_parameters() if "upscore" not in name}
    losses = []
    for step in range(job.recipe.iterations):
        batch = stream.read(step)
        label, valid = batch.label.long(), batch.label != IGNORE_LABEL
        log_share = model(batch.image).log_softmax(1)
        chosen = (log_share * F.one_hot(label * valid, len(CLASSES)).permute(0, 3, 1, 2)).sum(1)
        summed = -chosen[valid].sum()
        (summed / (valid.sum() if job.train.loss == "mean" else job.train.batch_size)).backward()
        losses.append((summed / valid.sum()).item())
        rate = (
            job.recipe.lr * (1 - step / job.recipe.iterations) ** 0.9
            if job.train.schedule == "poly"
            else job.recipe.lr
        )
        with torch.no_grad():
            for name, p in model.named_parameters():
                if name in velocity:
                    is_bias = name.endswith("bias")
                    gradient = p.grad + (0 if is_bias else job.train.optimizer.weight_decay * p)
                    velocity[name] = job.train.optimizer.momentum * velocity[name] + gradient
                    p -= (2 if is_bias else 1) * rate * velocity[name]
                p.grad = None
    return model.state_dict(), losses


@pytest.fixture
def in_float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.usefixtures("in_float64")
@pytest.mark.parametrize(
    ("loss", "lr", "schedule"), [("mean", 0.3, "fixed"), ("sum", 1e-3, "fixed"), ("mean", 0.3, "poly")]
)
def test_the_steps_of_sgd_are_those_of_the_formula(make_job, loss, lr, schedule):
    job = make_job(
        model={"dropout": 0.0}, loss=loss, lr=lr, schedule=schedule, iterations=3, weight_decay=0.01
    )
    start = start_model(job).state_dict()
    train_worker(job, SINGLE)
    expected, losses = by_formula(job)
    found = weights(job)
    assert found["score_fr.bias"].abs().max() > 1e-3  # it has moved
    assert not torch.equal(found["backbone.conv1_1.weight"], start["backbone.conv1_1.weight"])
    assert torch.equal(found["upscore.weight"], start["upscore.weight"])
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-9, atol=1e-12, msg=name)
    assert curve(job, "loss") == pytest.approx(losses, rel=1e-9)


def test_the_schedule_gives_the_rates_worked_by_hand(make_job):
    poly = make_job("poly", schedule="poly", lr=0.1, iterations=4)
    train_worker(poly, SINGLE)
    # 0.1 times 1, 0.75, 0.5, 0.25 to the power 0.9
    assert curve(poly, "lr") == pytest.approx([0.1, 0.0771890, 0.0535887, 0.0287175], rel=1e-5)


def test_adamws_rate_follows_the_schedule_in_both_groups(make_job, monkeypatch):
    seen = []
    real = torch.optim.AdamW.step

    def step(self, *arguments):
        seen.append([group["lr"] for group in self.param_groups])
        return real(self, *arguments)

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    train_worker(make_job(optimizer="adamw", schedule="poly", lr=0.1, iterations=2), SINGLE)
    assert seen == [[0.1, 0.2], [pytest.approx(0.1 * 0.5**0.9), pytest.approx(0.2 * 0.5**0.9)]]


def test_reading_ahead_in_other_processes_changes_nothing(make_job):
    jobs = make_job("here", transforms=DRAWN), make_job("ahead", transforms=DRAWN, loader_workers=1)
    for job in jobs:
        train_worker(job, SINGLE)
    assert bits(jobs[0]) == bits(jobs[1])


def test_bfloat16_changes_the_forward_pass_and_not_the_weights_type(make_job):
    job = make_job(precision="bfloat16", iterations=1)
    train_worker(job, SINGLE)
    assert {tensor.dtype for tensor in weights(job).values()} == {torch.float32}
    assert curve(job, "loss") == [pytest.approx(math.log(5), rel=1e-2)]


def test_auto_is_printed_as_what_it_stands_for_and_a_change_of_it_too(make_job, monkeypatch, capsys):
    job = make_job(precision="auto", iterations=6)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    with monkeypatch.context() as patch:
        kill_before_step(patch, 4)
        with pytest.raises(KilledError):
            train_worker(job, SINGLE)
    assert "32x32 a worker in bfloat16, " in capsys.readouterr().out
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    train_worker(job, SINGLE)
    output = capsys.readouterr().out
    assert "32x32 a worker in float32, " in output
    assert (
        "resumed from step 3; equal but for rounding from here: precision float32 instead of bfloat16\n"
        in output
    )
    content, _ = checkpoint.load(job.folder / "final.pt", "model")
    assert content["origin"]["recipe"]["precision"] == "float32"


def test_images_of_different_sizes_train_in_one_batch(make_job, tmp_path):
    images = [np.full((height, width, 3), 90, np.uint8) for height, width in ((16, 48), (48, 20), (17, 17))]
    labels = [np.zeros(image.shape[:2], np.uint8) for image in images]
    job = make_job(shards=write(tmp_path / "mixed", labels, images), batch_size=3, iterations=2)
    train_worker(job, SINGLE)
    assert curve(job, "loss")[0] == pytest.approx(math.log(5), rel=1e-6)  # padding is void, not background


def test_a_batch_that_is_all_void_teaches_nothing(make_job, tmp_path):
    images, labels = [np.zeros((16, 16, 3), np.uint8)], [np.full((16, 16), IGNORE_LABEL, np.uint8)]
    job = make_job(
        shards=write(tmp_path / "void", labels, images), batch_size=1, iterations=2, weight_decay=0.0
    )
    start = start_model(job).state_dict()
    train_worker(job, SINGLE)
    assert curve(job, "loss") == [0, 0]
    assert all(torch.equal(tensor, start[name]) for name, tensor in weights(job).items())


# Stopped and started again


CHOSEN = {
    "keep": "best",
    "best_by": "loss",
    "patience": 2,
    "validate_every": 2,
    "validate_images": 2,
    "ema": 0.8,
}


@pytest.mark.parametrize(
    ("optimizer", "sampling", "choice"),
    [
        ("sgd", "epochs", {}),
        ("sgd", "replacement", {}),
        ("adamw", "epochs", {}),
        ("adamw", "replacement", {}),
        ("adamw", "epochs", CHOSEN),
    ],
)
def test_killed_before_any_step_and_started_again_it_ends_bit_equal(
    make_job, monkeypatch, optimizer, sampling, choice
):
    settings = {
        "optimizer": optimizer,
        "sampling": sampling,
        "schedule": "poly",
        "transforms": DRAWN,
    } | choice
    undisturbed = make_job("undisturbed", **settings)
    train_worker(undisturbed, SINGLE)
    for number in range(undisturbed.recipe.iterations):
        job = make_job(f"killed{number}", **settings)
        with monkeypatch.context() as patch:
            kill_before_step(patch, number)
            with pytest.raises(KilledError):
                train_worker(job, SINGLE)
        assert not (job.folder / "final.pt").exists()
        train_worker(job, SINGLE)
        assert bits(job) == bits(undisturbed)
        assert kept(job) == kept(undisturbed)
        assert curve(job, "loss") == curve(undisturbed, "loss")


def test_at_most_one_interval_of_steps_is_done_again(make_job, monkeypatch, capsys):
    job = make_job()
    with monkeypatch.context() as patch:
        kill_before_step(patch, 7)
        with pytest.raises(KilledError):
            train_worker(job, SINGLE)
    capsys.readouterr()
    train_worker(job, SINGLE)
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == "fcn32s  resumed from step 6"
    assert [line.split()[1] for line in lines[2:]] == ["7/8", "8/8"]


@pytest.mark.parametrize("number", [1, 2, 3, 4])  # three working checkpoints and the final model
def test_killed_while_a_file_is_written_it_ends_bit_equal(make_job, monkeypatch, number):
    undisturbed, job = make_job("undisturbed"), make_job("killed")
    train_worker(undisturbed, SINGLE)
    real, count = os.fsync, iter(range(1, 100))

    def fsync(descriptor: int) -> None:
        if next(count) == number:
            os.ftruncate(descriptor, 1000)
            raise KilledError
        real(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        with pytest.raises(KilledError):
            train_worker(job, SINGLE)
    train_worker(job, SINGLE)
    assert bits(job) == bits(undisturbed)


@pytest.mark.slow
def test_a_process_killed_twice_ends_bit_equal(make_job, tmp_path):
    settings = {"iterations": 60, "checkpoint_every": 4}
    undisturbed, job = make_job("undisturbed", **settings), make_job("killed", **settings)
    train_worker(undisturbed, SINGLE)
    (tmp_path / "job.pickle").write_bytes(pickle.dumps(job))
    program = (
        "import pickle, sys; from pipeline.distributed.rank import SINGLE;"
        "from pipeline.training.loop import train_worker;"
        "train_worker(pickle.load(open(sys.argv[1], 'rb')), SINGLE)"
    )
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    for first_step in (4, 24):
        command = [sys.executable, "-c", program, str(tmp_path / "job.pickle")]
        with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) as process:
            while not any(step >= first_step for step in saved_steps(job)):
                assert process.poll() is None
                time.sleep(0.001)
            process.send_signal(signal.SIGKILL)
        assert process.returncode == -signal.SIGKILL
        assert not (job.folder / "final.pt").exists()
    train_worker(job, SINGLE)
    assert bits(job) == bits(undisturbed)
    assert curve(job, "loss") == curve(undisturbed, "loss")


def test_a_damaged_newest_checkpoint_costs_an_interval_and_no_bit(make_job, monkeypatch, capsys):
    undisturbed, job = make_job("undisturbed"), make_job("killed")
    train_worker(undisturbed, SINGLE)
    with monkeypatch.context() as patch:
        kill_before_step(patch, 7)
        with pytest.raises(KilledError):
            train_worker(job, SINGLE)
    newest = job.folder / "step-00000006.pt"
    newest.write_bytes(newest.read_bytes()[:-100])
    capsys.readouterr()
    train_worker(job, SINGLE)
    out = capsys.readouterr().out
    assert f"{newest} is damaged" in out
    assert "resumed from step 3" in out
    assert bits(job) == bits(undisturbed)


def test_a_checkpoint_of_another_run_is_refused(make_job):
    job = make_job(iterations=3)
    train_worker(job, SINGLE)
    with pytest.raises(CheckpointError, match="belongs to run tiny, this is other"):
        train_worker(changed(job, identity="other"), SINGLE)


def test_a_run_stopped_after_its_last_step_only_writes_the_model(make_job):
    job = make_job(iterations=6)
    train_worker(job, SINGLE)
    expected = bits(job)
    (job.folder / "final.pt").unlink()
    train_worker(job, SINGLE)
    assert bits(job) == expected
    assert len(curve(job, "loss")) == 6


def test_two_runs_of_the_same_job_are_bit_equal_and_another_seed_is_not(make_job):
    jobs = make_job("a"), make_job("b"), make_job("c", seed=6)
    for job in jobs:
        torch.rand(3)  # the random state before must not matter
        train_worker(job, SINGLE)
    assert bits(jobs[0]) == bits(jobs[1]) != bits(jobs[2])


def test_a_run_that_is_asked_to_stop_finishes_the_step_writes_and_goes_on_bit_equal(make_job):
    undisturbed, job = make_job("undisturbed", log_every=3), make_job("stopped", log_every=3)
    train_worker(undisturbed, SINGLE)
    patch = stop_before_step(4, job)
    train_worker(job, SINGLE)
    patch.undo()
    assert saved_steps(job) == [3, 5]
    assert not (job.folder / "final.pt").exists()
    (job.folder / STOP).unlink()
    train_worker(job, SINGLE)
    assert bits(job) == bits(undisturbed)
    assert curve(job, "loss") == curve(
        undisturbed, "loss"
    )  # also the mean over a stretch that was cut in two


def test_a_checkpoint_says_what_its_run_was_and_with_which_packages(make_job):
    job = make_job(iterations=3)
    train_worker(job, SINGLE)
    content = checkpoint.load_step(job.folder, 3)
    assert (content["step"], content["position"], content["world"]) == (3, 6, 1)
    assert content["recipe"]["lr"] == 0.01
    assert content["versions"]["torch"] == torch.__version__.partition("+")[0]


def test_a_run_that_goes_on_with_another_package_says_so(make_job, monkeypatch, capsys):
    job = make_job(iterations=6)
    monkeypatch.setattr(loop, "version", lambda _: "1.0")
    with monkeypatch.context() as patch:
        kill_before_step(patch, 4)
        with pytest.raises(KilledError):
            train_worker(job, SINGLE)
    monkeypatch.setattr(loop, "version", lambda name: {"torch": "1.1"}.get(name, "1.0"))
    train_worker(job, SINGLE)
    out = capsys.readouterr().out
    assert "resumed from step 3; equal but for rounding from here: torch is 1.1 and was 1.0\n" in out


def test_a_run_that_goes_on_with_another_split_of_its_work_says_so(make_job, monkeypatch, capsys):
    job = make_job(iterations=6)
    with monkeypatch.context() as patch:
        kill_before_step(patch, 4)
        with pytest.raises(KilledError):
            train_worker(job, SINGLE)
    train_worker(changed(job, accumulation=2, use_gpu=True), SINGLE)
    line = next(line for line in capsys.readouterr().out.splitlines() if "resumed from step 3" in line)
    assert "accumulation 2 instead of 1" in line
    assert "use_gpu True instead of False" in line


# Looked at meanwhile


def test_validation_meanwhile_changes_no_bit_of_what_is_learned(make_job, tmp_path):
    normed = {"batch_norm": True}
    backbone.write_random(tmp_path / "normed.pt", TINY | normed, seed=3)
    settings = {"model": normed, "parent": tmp_path / "normed.pt", "log_every": 2}
    without, watched = make_job("without", **settings), make_job("watched", validate_every=2, **settings)
    for job in (without, watched):
        train_worker(job, SINGLE)
    assert bits(watched) == bits(without)
    assert curve(watched, "loss") == curve(without, "loss")
    assert len(curve(watched, "val_mean_iu")) == len(curve(watched, "val_loss")) == 4


def test_the_scores_are_those_of_the_pixels_of_the_first_images(make_job):
    """Worked out by numpy, from the net's own scores."""
    job = make_job(validate_every=8, validate_images=2, keep="best", best_by="iu/background")
    train_worker(job, SINGLE)
    point = read_points(job.folder / "curves.jsonl", -1)[-1].values
    content, _ = checkpoint.load(job.folder / "final.pt", "model")
    model = FCN(**job.model).eval()
    model.load_state_dict(content["state_dict"])
    losses, hits, either = [], 0, 0
    for image, label, _ in Dataset(open_shards(job.validation)).read_ahead(range(2)):
        score = model(image)[0].detach().double().numpy().reshape(len(CLASSES), -1)
        label = label.numpy().ravel()
        score, label = score[:, label != IGNORE_LABEL], label[label != IGNORE_LABEL]
        chance = np.exp(score) / np.exp(score).sum(0)
        losses += [-np.log(chance[label, np.arange(len(label))])]
        predicted = score.argmax(0)
        hits += ((predicted == 0) & (label == 0)).sum()
        either += ((predicted == 0) | (label == 0)).sum()
    assert point["val_loss"] == pytest.approx(np.concatenate(losses).mean(), rel=1e-6)
    assert point["val_iu/background"] == hits / either
    assert content["lineage"]["kept"]["score"] == point["val_iu/background"]


# Loss that is no number


def test_a_loss_that_is_nan_stops_the_run_naming_net_step_images_and_rate(make_job, monkeypatch):
    job = make_job(log_every=4, checkpoint_every=4, iterations=12)
    real, count = loop.backward, iter(range(100))

    def backward(*arguments):
        return real(*arguments) * (float("nan") if next(count) == 6 else 1)

    monkeypatch.setattr(loop, "backward", backward)
    with pytest.raises(UserError) as caught:
        train_worker(job, SINGLE)
    keys = open_shards(job.shards).keys
    order = Order(4, job.train.seed, job.train.sampling)
    assert str(caught.value).startswith(
        f"fcn32s: the loss is nan in step 7, images {keys[order[12]]}, {keys[order[13]]}; "
        f"lower nets.fcn32s.lr (now 0.01)"
    )
    assert saved_steps(job) == [4]
    assert len(curve(job, "loss")) == 1


def test_a_rate_far_too_high_ends_the_run_before_a_bad_file_is_written(make_job):
    job = make_job(lr=1e20, checkpoint_every=1, log_every=100)
    with pytest.raises(UserError, match=r"fcn32s: .*\(now 1e\+20\)"):
        train_worker(job, SINGLE)
    assert not (job.folder / "final.pt").exists()
    for step in saved_steps(job):
        assert all(t.isfinite().all() for t in checkpoint.load_step(job.folder, step)["model"].values())


@pytest.mark.parametrize("checkpoint_every", [1, 100])
def test_weights_that_are_infinite_after_a_good_loss_are_never_written(make_job, checkpoint_every):
    job = make_job(lr=1e38, loss="sum", checkpoint_every=checkpoint_every, iterations=1)
    with pytest.raises(UserError, match=r"fcn32s: .* is not finite after step 1; lower nets.fcn32s.lr"):
        train_worker(job, SINGLE)
    assert not list(job.folder.glob("*.pt"))


def test_nor_are_they_written_when_the_data_end(make_job, monkeypatch):
    job = make_job(lr=1e38, loss="sum", checkpoint_every=100)
    take, count = loop.Meter.take, iter(range(100))

    def take_once(*arguments):
        if next(count):
            raise ShardError("the store is gone")
        return take(*arguments)

    monkeypatch.setattr(loop.Meter, "take", take_once)
    with pytest.raises(UserError, match=r"is not finite after step 1; lower nets.fcn32s.lr"):
        train_worker(job, SINGLE)
    assert not list(job.folder.glob("*.pt"))


def one_rank_meets_nan(rank: Rank, job: Job, folder: Path) -> None:
    """The second worker's share of step 5 is no number; both must end at once, with the same message."""
    real, count = loop.backward, iter(range(100))

    def backward(*arguments):
        return real(*arguments) * (float("nan") if next(count) == 4 and rank.number == 1 else 1)

    loop.backward = backward
    start = time.monotonic()
    with pytest.raises(UserError) as caught:
        train_worker(job, rank)
    loop.backward = real
    (folder / f"message{rank.number}").write_text(str(caught.value))
    assert time.monotonic() - start < 30


def test_nan_on_one_worker_ends_all_of_them_at_once_with_one_message(make_job, tmp_path):
    job = make_job(checkpoint_every=2, iterations=12)
    run_in_processes(tmp_path, [2], one_rank_meets_nan, job, tmp_path)
    first, second = (tmp_path / f"message{rank}" for rank in (0, 1))
    assert first.read_text() == second.read_text()
    assert first.read_text().startswith("fcn32s: the loss is nan in step 5, images ")
    assert saved_steps(job) == [2, 4]


# What a net starts from


def test_each_net_of_the_chain_starts_from_the_coarser_one(make_job):
    jobs = [make_job("fcn32s", iterations=2)]
    for stride in (16, 8):
        net, parent = f"fcn{stride}s", jobs[-1].folder / "final.pt"
        jobs.append(make_job(net, model={"stride": stride}, net=net, parent=parent, iterations=2))
    for job in jobs:
        train_worker(job, SINGLE)
    for coarser, job in itertools.pairwise(jobs):
        before, start = weights(coarser), start_model(job).state_dict()
        assert torch.equal(start["score_fr.weight"], before["score_fr.weight"])
        assert torch.equal(start["backbone.fc7.weight"], before["backbone.fc7.weight"])
    assert not start["score_pool3.weight"].any()
    assert torch.equal(start["score_pool4.weight"], weights(jobs[1])["score_pool4.weight"])
    assert start["score_pool4.weight"].any()


def test_the_net_that_learns_all_at_once_starts_from_the_backbone(make_job, trunk):
    job = make_job(model={"stride": 8, "at_once": True})
    start, content = start_model(job).state_dict(), checkpoint.load(trunk, "backbone")[0]
    assert torch.equal(start["backbone.fc7.weight"], content["state_dict"]["fc7.weight"])


def test_a_backbone_of_another_width_is_refused_naming_the_file(make_job, trunk):
    with pytest.raises(CheckpointError) as caught:
        start_model(make_job(model={"width": 1 / 32}))
    assert str(caught.value).startswith(f"{trunk} does not fit fcn32s: ")
    assert "torch.Size([2, 3, 3, 3])" in str(caught.value)


def test_a_backbone_of_another_kind_is_refused_naming_the_file(make_job, trunk):
    with pytest.raises(CheckpointError, match=f"{trunk} does not fit fcn32s: .*bn1_1"):
        start_model(make_job(model={"batch_norm": True}))


@pytest.mark.parametrize(
    ("model", "complaint"),
    [
        ({"num_classes": 7}, r"score_fr.weight is \(5, 64, 1, 1\) .*\(7, 64, 1, 1\)"),
        ({"width": 1 / 32}, r"is \(1, 3, 3, 3\) .*\(2, 3, 3, 3\)"),
        ({"stride": 8}, "FCN-16s, from which FCN-8s starts"),
    ],
)
def test_a_parent_net_that_does_not_fit_is_refused_naming_the_file(make_job, model, complaint):
    coarser = make_job("coarser", iterations=1)
    train_worker(coarser, SINGLE)
    parent = coarser.folder / "final.pt"
    job = make_job(net="fcn16s", model={"stride": 16} | model, parent=parent)
    with pytest.raises(CheckpointError, match=f"{parent} does not fit fcn16s: .*{complaint}"):
        train_worker(job, SINGLE)


def test_a_parent_of_the_wrong_kind_or_none_at_all_is_refused(make_job, trunk):
    with pytest.raises(CheckpointError, match=f"{trunk} is a backbone file, expected a model file"):
        start_model(make_job("a", model={"stride": 16}))
    with pytest.raises(CheckpointError, match=r"gone\.pt is missing"):
        start_model(make_job("b", parent=Path("gone.pt")))


# Two workers


Task = tuple[Job, torch.dtype, int | None]  # a job, in which numbers, and before which step it is killed once


def several_jobs(rank: Rank, tasks: list[Task]) -> None:
    """What each process does: every job in turn, some of them killed before a step and started again."""
    assert rank.all_reduce(torch.tensor([rank.number + 1, 10])).tolist() == [3, 20]
    assert rank.agree(5 + rank.number) == 5
    for job, dtype, killed_before in tasks:
        torch.set_default_dtype(dtype)
        if killed_before is not None:
            with pytest.MonkeyPatch.context() as patch:
                kill_before_step(patch, killed_before)
                with pytest.raises(KilledError):
                    train_worker(job, rank)
        train_worker(job, rank)
        assert (job.folder / "final.pt").is_file()  # no worker comes back before it is there
    validate_with_statistics_of_their_own(rank, tasks[-1][0])


def validate_with_statistics_of_their_own(rank: Rank, job: Job) -> None:
    """What the workers score together is the first one's net, which is the one that is saved."""
    model, held_out = start_model(job), open_shards(job.validation)
    torch.nn.init.normal_(model.score_fr.weight)
    alone = validate(job, model, held_out, SINGLE)
    for name, buffer in model.named_buffers():
        if "running" in name and not rank.is_first:
            buffer.fill_(7)
    assert validate(job, model, held_out, SINGLE) != alone or rank.is_first
    assert validate(job, model, held_out, rank) == alone


def test_two_workers_learn_what_one_does_and_resume_bit_equal(make_job, uneven, mixed, tmp_path):
    """All that needs two processes, as starting them takes seconds."""
    plain = {"dropout": 0.0}
    alike = []  # the same training by one worker and by two, in float64
    for loss, lr in (("sum", 1e-3), ("mean", 0.3)):
        settings = {"shards": uneven, "loss": loss, "lr": lr, "batch_size": 4, "iterations": 4}
        alike.append([make_job(f"{loss}{world}", model=plain, **settings) for world in (1, 2)])
    # Images of a step that differ in size are padded alike whoever reads them
    settings |= {"shards": mixed, "batch_size": 2, "transforms": DRAWN}
    alike.append([make_job(f"mixed{world}", model=plain, **settings) for world in (1, 2)])
    normed = {"batch_norm": True}
    backbone.write_random(tmp_path / "normed.pt", TINY | normed, seed=3)
    settings = {"model": normed, "parent": tmp_path / "normed.pt", "optimizer": "adamw"} | CHOSEN
    undisturbed, killed = make_job("undisturbed", **settings), make_job("killed", **settings)
    tasks: list[Task] = [(two, torch.float64, None) for _, two in alike]
    tasks += [(undisturbed, torch.float32, None), (killed, torch.float32, 5)]
    run_in_processes(tmp_path, [2], several_jobs, tasks)
    torch.set_default_dtype(torch.float64)
    try:
        for one, two in alike:
            train_worker(one, SINGLE)
            assert curve(two, "loss") == pytest.approx(curve(one, "loss"), rel=1e-9)
            start = start_model(one).state_dict()
            for name, tensor in weights(one).items():
                moved = tensor - start[name]
                torch.testing.assert_close(weights(two)[name] - start[name], moved, rtol=1e-6, atol=1e-12)
            assert (weights(one)["score_fr.bias"] - start["score_fr.bias"]).abs().max() > 1e-3
    finally:
        torch.set_default_dtype(torch.float32)
    assert bits(killed) == bits(undisturbed)
    assert kept(killed) == kept(undisturbed)
    assert curve(killed, "loss") == curve(undisturbed, "loss")


def killed_and_undisturbed(rank: Rank, undisturbed: Job, killed: Job) -> None:
    train_worker(undisturbed, rank)
    with pytest.MonkeyPatch.context() as patch:
        kill_before_step(patch, 4)
        with pytest.raises(KilledError):
            train_worker(killed, rank)
    train_worker(killed, rank)


@pytest.mark.slow
def test_three_workers_resume_bit_equal(make_job, tmp_path):
    """A sum of two numbers has no order, one of three has."""
    settings = {"batch_size": 6, "model": {"score_init": "random"}}
    undisturbed, killed = make_job("undisturbed", **settings), make_job("killed", **settings)
    run_in_processes(tmp_path, [3], killed_and_undisturbed, undisturbed, killed)
    assert bits(killed) == bits(undisturbed)


def stop_before_step(number: int, job: Job) -> pytest.MonkeyPatch:
    """From now on, somebody asks the run to stop while its step `number` is computed."""
    patch, real, count = pytest.MonkeyPatch(), loop.backward, iter(range(10**9))

    def backward(*arguments):
        if next(count) == number:
            (job.folder / STOP).touch()
        return real(*arguments)

    patch.setattr(loop, "backward", backward)
    return patch


def part_of_a_run(rank: Rank, job: Job, stops_before: dict[int, int]) -> None:
    """Goes on until the step at which as many workers as here are asked to stop."""
    torch.set_default_dtype(torch.float64)
    if rank.is_first:
        (job.folder / STOP).unlink(missing_ok=True)
    rank.agree(0)
    with pytest.MonkeyPatch.context():
        patch = stop_before_step(stops_before[rank.world_size], job) if rank.is_first else None
        train_worker(job, rank)
        if patch:
            patch.undo()


def test_a_run_goes_on_with_another_number_of_workers_as_if_nothing_had_happened(
    make_job, uneven, tmp_path, capfd
):
    """Begun by 2, continued by 3, ended by 1: the same images a step, and weights but for rounding."""
    settings = {"shards": uneven, "loss": "mean", "lr": 0.3, "batch_size": 6, "iterations": 12}
    settings |= {"model": {"dropout": 0.0}, "checkpoint_every": 100}
    moved, undisturbed = make_job("moved", **settings), make_job("undisturbed", **settings)
    run_in_processes(tmp_path, [2, 3], part_of_a_run, moved, {2: 3, 3: 4})
    assert saved_steps(moved) == [4, 9]
    assert not (moved.folder / "final.pt").exists()
    (moved.folder / STOP).unlink()
    torch.set_default_dtype(torch.float64)
    try:
        for job in (moved, undisturbed):
            train_worker(job, SINGLE)
    finally:
        torch.set_default_dtype(torch.float32)
    assert (
        "resumed from step 9; equal but for rounding from here: 1 workers instead of 3"
        in capfd.readouterr().out
    )
    assert curve(moved, "loss") == pytest.approx(curve(undisturbed, "loss"), rel=1e-9)
    for name, tensor in weights(undisturbed).items():
        torch.testing.assert_close(weights(moved)[name], tensor, rtol=1e-6, atol=1e-12, msg=name)
