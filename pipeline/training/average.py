"""The exponential moving average (EMA) of a net's weights, as Polyak averaging is done for nets today."""

from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from fcn.model import FCN
from pipeline.config.job import Job


class Average:
    """The averaged copy of a net while it is trained; with train.ema 0 it is the net itself.

    The workers' weights are equal, so every worker averages its own and nothing is sent. The decay grows as in
    TensorFlow, min(train.ema, (1 + step) / (10 + step)): a constant decay would keep the weights of the start for
    1 / (1 - decay) steps. It is a function of the step, so a resumed run needs no more than the averaged weights.
    """

    def __init__(self, job: Job, model: FCN):
        self.decay = job.train.ema
        self.model = model
        self.averaged = model
        if self.decay:  # a net of its own: a copy of synchronised batch norm would copy its process group
            self.averaged = FCN(**job.model).to(next(model.parameters()).device).requires_grad_(False)
            self.averaged.load_state_dict(model.state_dict())
        # Of weights that do not learn, the average is the weight
        pairs = [
            (mine, weight)
            for mine, weight in zip(self.averaged.parameters(), model.parameters(), strict=True)
            if weight.requires_grad
        ]
        self._averages, self._weights = ([pair[side].data for pair in pairs] for side in (0, 1))

    def update(self, step: int) -> None:
        """Average in the weights after a step, from 0."""
        if self.decay:
            decay = min(self.decay, (1 + step) / (10 + step))
            get_ema_multi_avg_fn(decay)(self._averages, self._weights, step)

    @property
    def net(self) -> FCN:
        """The averaged net, for validation and to be kept. Buffers, such as batch norm's statistics, are copied."""
        for mine, buffer in zip(self.averaged.buffers(), self.model.buffers(), strict=True):
            if mine is not buffer:
                mine.copy_(buffer)
        return self.averaged

    def state_dict(self) -> dict[str, Tensor]:
        """Return the averaged weights; {} without a copy."""
        return self.averaged.state_dict() if self.decay else {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        if self.decay:
            self.averaged.load_state_dict(state)
