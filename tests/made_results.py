"""Made-up results of nets, as the stage evaluate leaves them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fcn.metrics import ConfusionMatrix
from pipeline.evaluation import per_image
from pipeline.evaluation.per_image import PerImage
from pipeline.evaluation.results import Result
from pipeline.shards.sample import digest_of_keys

CLASSES = ["background", "disc"]
KEYS = tuple(f"{i:03}" for i in range(30))


def make_result(name: str, right: int = 70, seed: int = 0, **changes: Any) -> Result:
    """A net on 30 images of 100 pixels a class, of which about `right` are right. changes: of its metrics JSON."""
    num_right = np.random.default_rng(seed).integers(right - 5, right + 5, (30, 2))
    whole = np.stack((num_right, np.full_like(num_right, 100), num_right + (100 - num_right)[:, ::-1]), 1)
    total = whole.sum(0)
    hist = np.array([[total[0, 0], total[1, 0] - total[0, 0]], [total[1, 1] - total[0, 1], total[0, 1]]])
    scores = ConfusionMatrix(2).merge(torch.from_numpy(hist)).scores()
    values = {
        "pixel_acc": scores.pixel_acc,
        "mean_acc": scores.mean_acc,
        "mean_iu": scores.mean_iu,
        "fw_iu": scores.fw_iu,
        "mean_f1": scores.mean_f1,
        "mean_precision": scores.mean_precision,
        **{
            name: dict(zip(CLASSES, getattr(scores, name), strict=True))
            for name in ("class_iu", "class_f1", "class_precision", "class_recall")
        },
        "num_images": 30,
        "num_leaked": 0,
        "mean_iu_low": scores.mean_iu - 0.01,
        "mean_iu_high": scores.mean_iu + 0.01,
        "level": 0.95,
        "profile": "small",
        "keys_sha256": digest_of_keys(KEYS),
        "val_digest": "ab" * 32,
        "border_width": 5,
        "model_sha256": name,
    }
    about = {
        "classes": CLASSES,
        "border_width": 5,
        "model_sha256": name,
        "val_digest": values["val_digest"],
        "averaging": None,
    }
    return Result(name, values | changes, PerImage(KEYS, np.stack((whole, whole), 1), about))


def write_result(folder: Path, result: Result) -> Path:
    """Its metrics JSON, with the Parquet file beside it."""
    path = folder / f"{result.name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result.values))
    if result.images:
        per_image.write(path.with_suffix(".parquet"), result.images)
    return path
