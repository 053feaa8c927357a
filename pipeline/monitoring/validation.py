"""Scores on the validation split while a net is trained."""

import math

import torch

from fcn.loss import count_valid, pixel_cross_entropy
from fcn.metrics import ConfusionMatrix, best_class
from fcn.model import FCN
from pipeline.config.job import Job
from pipeline.distributed.batch_norm import set_training
from pipeline.distributed.rank import Rank
from pipeline.models.predictor import Predictor
from pipeline.shards.dataset import Dataset
from pipeline.shards.read import Shards


def validate(job: Job, model: FCN, shards: Shards, rank: Rank) -> dict[str, float]:
    """Return the scores on the split's first images; the same numbers on every worker, for any number of workers.

    val_mean_iu, val_pixel_acc: in 0..1.
    val_loss: cross entropy per valid pixel, without class weights.
    val_iu/<class>: only if train.best_by names it.

    The workers share the images. All use the first worker's batch norm statistics, which are those of a saved model.
    A score without a valid pixel is left out.
    """
    rank.broadcast(model.buffers())
    model.eval()
    predictor = Predictor(model, job.classes, rank.device)
    confusion = ConfusionMatrix(model.num_classes, rank.device)
    num_images = min(job.validate_images, len(shards))
    # One row an image: a sum over rows has the same order, and so the same bits, for any number of workers
    losses = torch.zeros(num_images, 2, dtype=torch.float64, device=rank.device)
    indices = range(rank.number, num_images, rank.world_size)
    with torch.inference_mode():
        for index, sample in zip(indices, Dataset(shards).read_ahead(indices), strict=True):
            label = sample.label.to(rank.device).long()
            for region, score in predictor.scores(sample.image):
                part = label[:, *region]
                confusion.update(best_class(score), part)
                losses[index] += torch.stack([pixel_cross_entropy(score, part), count_valid(part)])
    set_training(model, job.train.batch_norm)
    scores = ConfusionMatrix(model.num_classes, rank.device).merge(rank.all_reduce(confusion.hist)).scores()
    loss, num_valid = rank.all_reduce(losses).cpu().sum(0).tolist()
    values = {
        "val_mean_iu": scores.mean_iu,
        "val_pixel_acc": scores.pixel_acc,
        "val_loss": loss / num_valid if num_valid else math.nan,
    }
    by, _, name = job.train.best_by.partition("/")
    if by == "iu":
        values[f"val_{job.train.best_by}"] = scores.class_iu[job.classes.index(name)]
    return {name: value for name, value in values.items() if math.isfinite(value)}
