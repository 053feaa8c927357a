"""The moving average of the weights, worked out in float64 from the weights after every step."""

import pytest
import torch

from pipeline.config.job import Job
from pipeline.curves import read_points
from pipeline.distributed.rank import SINGLE
from pipeline.models import backbone, checkpoint
from pipeline.training.loop import start_model, train_worker
from tests.jobs import TINY


def weights(job: Job) -> dict[str, torch.Tensor]:
    train_worker(job, SINGLE)
    return checkpoint.load(job.folder / "final.pt", "model")[0]["state_dict"]


@pytest.mark.parametrize("decay", [0.25, 0.999])  # reached in the third step, and never
def test_the_average_is_that_of_the_formula_and_training_goes_on_without_it(make_job, tmp_path, decay):
    normed = {"batch_norm": True}
    backbone.write_random(tmp_path / "normed.pt", TINY | normed, seed=3)
    settings = {"model": normed, "parent": tmp_path / "normed.pt"}
    by_step = [weights(make_job(f"run{i}", iterations=i, **settings)) for i in range(1, 6)]
    job = make_job("averaged", iterations=5, ema=decay, **settings)
    averaged = weights(job)
    model = start_model(job)
    expected = {name: weight.detach().double() for name, weight in model.named_parameters()}
    for step, now in enumerate(by_step):
        share = min(decay, (1 + step) / (10 + step))
        for name in expected:
            expected[name] = share * expected[name] + (1 - share) * now[name].double()
    for name, tensor in averaged.items():
        if name in expected:
            torch.testing.assert_close(tensor, expected[name].float(), rtol=1e-5, atol=1e-7, msg=name)
        else:
            assert torch.equal(tensor, by_step[-1][name]), name  # buffers are those of the trained net
    assert not torch.equal(averaged["score_fr.bias"], by_step[-1]["score_fr.bias"])
    losses = [
        [point.values["loss"] for point in read_points(job.folder.parent / name / "curves.jsonl", -1)]
        for name in ("averaged", "run5")
    ]
    assert losses[0] == losses[1]


def test_the_average_is_what_is_validated(make_job):
    plain, averaged = make_job("plain", validate_every=4), make_job("averaged", validate_every=4, ema=0.999)
    for job in (plain, averaged):
        train_worker(job, SINGLE)
    scored = [
        read_points(job.folder / "curves.jsonl", -1)[-1].values["val_loss"] for job in (plain, averaged)
    ]
    assert scored[0] != scored[1]
