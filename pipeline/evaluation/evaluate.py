"""Evaluate one net of a profile on the validation split: count its pixels, check for leaks, compute its scores."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fcn.averaging import Averaging
from pipeline import paths
from pipeline.cache.client import NodeCache
from pipeline.config import Profile
from pipeline.config.variant import Variant, results_folder, shards_folder
from pipeline.distributed.rank import Rank
from pipeline.evaluation import scoring
from pipeline.evaluation.bootstrap import Bootstrap
from pipeline.evaluation.per_image import PerImage
from pipeline.inspection import leaks
from pipeline.models.model_file import load_model
from pipeline.models.predictor import Predictor
from pipeline.shards.read import Shards, open_shards


@dataclass(frozen=True)
class Evaluation:
    """The scores of one net, and what its figures and its MLflow run need.

    values: the content of the metrics JSON.
    hist: (C, C) int64 pixels by label and prediction.
    images: the counts of each image.
    lineage: of the model file.
    shards: of the validation split.
    confidence: Predictor.confidence, on the device of the evaluation.
    """

    values: dict[str, Any]
    hist: NDArray[np.int64]
    images: PerImage
    lineage: dict[str, Any]
    shards: Shards
    confidence: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


def evaluate(
    profile_name: str, profile: Profile, net: str, root: Path, variant: Variant | None = None
) -> Evaluation:
    """Score a net's model file. Raises LeakError if it was trained on images of val and the profile allows no leak.

    root: the project's folder, absolute.
    variant: scores the net in a folder of its own; None: that of the profile's own results.
    """
    settings = profile.evaluate
    averaging = Averaging(tuple(settings.scales), settings.flip)
    # The head of a cluster may have no GPU though its workers do; the head only draws figures
    has_gpu = settings.use_gpu and torch.cuda.is_available()
    device = torch.device("cuda" if has_gpu else "cpu")
    results, folder = results_folder(root, variant), shards_folder(root, variant, profile_name, "val")
    model_file = results / paths.model(profile_name, net)
    verify_all = profile.run.verify_shards == "full"
    node_cache = NodeCache(**profile.run.cache.model_dump())
    shards = open_shards(
        folder, split="val", cache=root / paths.VERIFIED, verify_all=verify_all, node_cache=node_cache
    )
    model, about, digest = load_model(model_file, device)
    predictor = Predictor(model, about["classes"], device, averaging, name=str(model_file))
    val = leaks.Images.of_shards("val", shards)
    num_leaked = leaks.check_model(about["trained_on"], val, net, profile.data.allow_leak)

    if settings.num_workers == 1 and has_gpu == settings.use_gpu:
        counts = scoring.score_split(predictor, shards, Rank(0, 1, device), settings.border_width)
    else:
        counts = scoring.score_on_workers(
            model_file,
            folder,
            results / paths.RUNS / profile_name / f"evaluate-{net}",
            settings.border_width,
            averaging,
            node_cache,
            root / paths.VERIFIED,
            num_workers=settings.num_workers,
            min_workers=profile.run.min_workers,
            use_gpu=settings.use_gpu,
            cpus_per_worker=profile.run.cpus_per_worker,
        )

    scored = {"profile": profile_name, "net": net, "model_sha256": digest, "val_digest": shards.digest}
    about_images = scored | {
        "classes": list(shards.classes),
        "border_width": settings.border_width,
        "averaging": None if averaging.is_none else asdict(averaging),
    }
    images = PerImage.sorted(shards.keys, counts.images.cpu().numpy(), about_images)
    bootstrap = Bootstrap(settings.num_resamples, settings.level, settings.seed)
    values = (
        scoring.as_json(counts.confusion.scores(), shards.classes, len(shards), averaging)
        | {"num_leaked": num_leaked}
        | scoring.with_uncertainty(images, bootstrap)
        | scored
    )

    return Evaluation(
        values, counts.confusion.hist.cpu().numpy(), images, about["lineage"], shards, predictor.confidence
    )
