"""The choice of the net that a run keeps, and of the step at which it ends, by scores on validation images."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from fcn.model import FCN
from pipeline.config.job import Job
from pipeline.distributed.rank import Rank
from pipeline.errors import UserError
from pipeline.models.saver import copied
from pipeline.shards.read import Shards


class Choice:
    """The best validation so far, and how many came after it.

    Every worker has the same scores, so all of them end after the same step. Rank 0 holds the best net's weights.

    held_out: the validation split; None if nothing is validated.
    """

    def __init__(self, job: Job, held_out: Shards | None, rank: Rank):
        self.job, self.held_out, self.rank = job, held_out, rank
        self.state: dict[str, Any] = {
            "score": None,
            "step": 0,
            "last_score": None,
            "num_since": 0,
            "weights": None,
        }

    def resume(self, state: dict[str, Any]) -> None:
        """Go on from the state that a checkpoint holds."""
        self.state = state if self.rank.is_first else state | {"weights": None}

    def goes_on(self, _step: int) -> bool:
        """Return whether there is another step: not after train.patience validations without a gain."""
        patience = self.job.train.patience
        return not patience or self.state["num_since"] < patience

    def add(self, done: int, scores: Mapping[str, float], net: FCN) -> None:
        """Take the scores of the net after a step. {}: it was not validated."""
        train, best = self.job.train, self.state["score"]
        if not (train.chooses and scores):
            return
        score = scores.get(f"val_{train.best_by}")
        self.state |= {"last_score": score, "num_since": self.state["num_since"] + 1}
        if score is not None and (
            best is None or (score < best if train.best_by == "loss" else score > best)
        ):
            self.state |= {"score": score, "step": done, "num_since": 0}
            if train.keep == "best" and self.rank.is_first:
                self.state["weights"] = copied(net.state_dict())
        if not self.goes_on(done) and done < self.job.recipe.iterations and self.rank.is_first:
            print(
                f"{self.job.title}  ends after step {done} of {self.job.recipe.iterations}: {train.patience} "
                f"validations without a better {train.best_by} than that of step {self.state['step']}",
                flush=True,
            )

    def kept(self, done: int, net: FCN) -> tuple[Mapping[str, Tensor], dict[str, Any]]:
        """Return the weights that the run keeps, and for the lineage which they are and why.

        done: the steps of the run.
        net: after these steps.
        """
        train, state = self.job.train, self.state
        is_best = train.keep == "best"
        if is_best and state["weights"] is None:
            raise UserError(
                f"{self.job.title}: no validation gave a finite {train.best_by}; set train.keep to last"
            )
        kept = {
            "keep": train.keep,
            "step": state["step"] if is_best else done,
            "last_step": done,
            "iterations": self.job.recipe.iterations,
        }
        if train.ema:
            kept["ema"] = train.ema
        if self.held_out and train.chooses:
            kept |= {
                "best_by": train.best_by,
                "score": state["score"] if is_best else state["last_score"],
                "split": self.held_out.header["split"],
                "split_digest": self.held_out.digest,
                "num_images": min(self.job.validate_images, len(self.held_out)),
            }
        return state["weights"] if is_best else net.state_dict(), kept
