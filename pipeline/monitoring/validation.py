"""Scores on the validation split while a net is trained. They do not affect training."""

import math

from fcn.metrics import ConfusionMatrix
from fcn.model import FCN
from pipeline.config.job import Job
from pipeline.distributed.batch_norm import set_training
from pipeline.distributed.rank import Rank
from pipeline.models.predictor import Predictor
from pipeline.shards.dataset import Dataset
from pipeline.shards.read import Shards


def validate(job: Job, model: FCN, shards: Shards, rank: Rank) -> dict[str, float]:
    """Return val_mean_iu and val_pixel_acc of the split's first images; the same numbers on every worker.

    The workers share the images. All use the first worker's batch norm statistics, which are those of a saved model.
    A score without a valid pixel is left out.
    """
    rank.broadcast(model.buffers())
    model.eval()
    predictor = Predictor(model, job.classes, rank.device)
    confusion = ConfusionMatrix(model.num_classes, rank.device)
    indices = range(rank.number, min(job.run.validate_images, len(shards)), rank.world_size)
    for sample in Dataset(shards).read_ahead(indices):
        confusion.update(predictor.predict(sample.image), sample.label.to(rank.device))
    set_training(model, job.train.batch_norm)
    scores = ConfusionMatrix(model.num_classes, rank.device).merge(rank.all_reduce(confusion.hist)).scores()
    values = {"val_mean_iu": scores.mean_iu, "val_pixel_acc": scores.pixel_acc}
    return {name: value for name, value in values.items() if not math.isnan(value)}
