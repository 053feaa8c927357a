"""A look at the validation split while a net is trained; it changes nothing of what is learned."""

import math

import torch

from fcn.metrics import ConfusionMatrix
from fcn.model import FCN
from pipeline.config.job import Job
from pipeline.distributed.batch_norm import set_training
from pipeline.distributed.rank import Rank
from pipeline.shards.dataset import Dataset
from pipeline.shards.read import Shards


@torch.no_grad()
def validate(job: Job, model: FCN, shards: Shards, rank: Rank) -> dict[str, float]:
    """val_mean_iu and val_pixel_acc on the split's first validate_images images; the same numbers on every worker.

    The workers share the images, and the first one's batch norm statistics, which a saved model has. A score that
    cannot be told (no valid pixel) is left out.
    """
    confusion = ConfusionMatrix(model.num_classes, rank.device)
    mine = range(rank.number, min(job.run.validate_images, len(shards)), rank.world_size)
    rank.broadcast(model.buffers())
    model.eval()
    for image, label, _ in Dataset(shards).read_ahead(mine):
        confusion.update(model(image.to(rank.device)).argmax(1), label.to(rank.device))
    set_training(model, job.train.batch_norm)
    total = ConfusionMatrix(model.num_classes, rank.device).merge(rank.all_reduce(confusion.hist))
    scores = total.scores()
    values = {"val_mean_iu": scores.mean_iu, "val_pixel_acc": scores.pixel_acc}
    return {name: value for name, value in values.items() if not math.isnan(value)}
