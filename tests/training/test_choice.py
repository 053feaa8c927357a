"""Which net a run keeps, and when it ends; the scores of its validations are given here."""

import pytest
import torch

from pipeline.config.job import Job
from pipeline.distributed.rank import SINGLE
from pipeline.errors import UserError
from pipeline.models import checkpoint
from pipeline.training import loop
from pipeline.training.loop import train_worker


def final(job: Job) -> dict:
    return checkpoint.load(job.folder / "final.pt", "model")[0]


@pytest.mark.parametrize(
    ("settings", "scores", "step", "last_step", "score"),
    [
        ({"keep": "best"}, [0.2, 0.5, 0.4, 0.5], 4, 8, 0.5),  # of equal ones the first
        ({"keep": "best", "best_by": "loss"}, [0.2, 0.5, 0.1, 0.4], 6, 8, 0.1),
        ({"keep": "best", "best_by": "iu/disc"}, [None, 0.1, 0.2, 0.2], 6, 8, 0.2),
        ({"keep": "best", "patience": 2}, [0.3, 0.2, 0.3, 0.9], 2, 6, 0.3),
        ({"keep": "best", "patience": 2}, [0.3, 0.2, 0.4, 0.3], 6, 8, 0.4),
        ({"patience": 1}, [0.3, 0.2, 0.4, 0.5], 4, 4, 0.2),
        ({"patience": 1, "best_by": "loss"}, [0.3, 0.2, None, 0.1], 6, 6, None),
    ],
)
def test_the_best_net_is_kept_and_a_run_ends_without_a_gain(
    make_job, monkeypatch, capsys, settings, scores, step, last_step, score
):
    name, left = f"val_{settings.get('best_by', 'mean_iu')}", iter(scores)

    def validate(*_) -> dict[str, float]:
        value = next(left)
        return {"val_pixel_acc": 0.5} | ({} if value is None else {name: value})

    monkeypatch.setattr(loop, "validate", validate)
    job = make_job(validate_every=2, validate_images=3, checkpoint_every=2, **settings)
    train_worker(job, SINGLE)
    kept = final(job)["lineage"]["kept"]
    assert (kept["step"], kept["last_step"], kept["iterations"], kept["score"]) == (step, last_step, 8, score)
    assert (kept["best_by"], kept["split"], kept["num_images"]) == (name.removeprefix("val_"), "val", 3)
    assert f"ends after step {last_step} of 8" in capsys.readouterr().out or last_step == 8
    # The rate is fixed: a shorter run ends with the weights that this one had then
    shorter = make_job("shorter", iterations=step)
    train_worker(shorter, SINGLE)
    for weight, tensor in final(shorter)["state_dict"].items():
        assert torch.equal(final(job)["state_dict"][weight], tensor), weight
    (job.folder / "final.pt").unlink()
    train_worker(job, SINGLE)  # as after a kill at the very end: it takes no further step
    assert final(job)["lineage"]["kept"] == kept


def test_a_run_without_one_finite_score_has_no_best_net(make_job, monkeypatch):
    monkeypatch.setattr(loop, "validate", lambda *_: {"val_pixel_acc": 0.5})
    with pytest.raises(UserError, match=r"no validation gave a finite loss.*train\.keep"):
        train_worker(make_job(keep="best", best_by="loss", validate_every=4), SINGLE)
