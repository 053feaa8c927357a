"""A made-up profile with nets and pictures, for tests of the report."""

import io
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from fcn.metrics import ConfusionMatrix
from pipeline.curves import Curve
from pipeline.evaluation import compare
from pipeline.evaluation.bootstrap import Bootstrap
from pipeline.evaluation.per_image import PerImage
from pipeline.evaluation.results import ADDED, CLASS_SCORES, SCORES, Result
from pipeline.inspection.describe import as_tables
from pipeline.inspection.leaks import Images, as_blocks, survey
from pipeline.report import gallery
from pipeline.report.content import Content
from pipeline.report.gallery import Seen
from pipeline.tables import render

NETS = ("fcn32s", "fcn16s", "fcn8s")
FIVE = ("background", "disc", "square", "triangle", "cross")
SHARE_RIGHT = {"fcn32s": 0.5, "fcn16s": 0.7, "fcn8s": 0.9}


def blocks(random: np.random.Generator, size: tuple[int, int], num: int, side: int) -> np.ndarray:
    """(H, W) uint8 below num, the same within each square of `side` pixels: as labels are, in one piece."""
    height, width = (-(-length // side) for length in size)
    coarse = random.integers(0, num, (height, width), dtype=np.uint8)
    return np.kron(coarse, np.ones((side, side), np.uint8))[: size[0], : size[1]]


def shown(
    key: str, seed: int, share_right: float, num: int, size: tuple[int, int], side: int
) -> tuple[Seen, bytes]:
    """The same photo and label for the same key, and a prediction of which about such a share is right."""
    random = np.random.default_rng(seed)
    file = io.BytesIO()
    noise = blocks(random, size, 255, 2)[..., None] // 2 + random.integers(0, 30, (*size, 3), dtype=np.uint8)
    Image.fromarray(noise.astype(np.uint8)).save(file, "JPEG", quality=90)
    label = blocks(random, size, num, side)
    label[: size[0] // 8] = 255
    other, chance = blocks(random, size, num, side), blocks(random, size, 100, side) / 100
    prediction = np.where((chance < share_right) & (label != 255), label, other)
    confidence = blocks(random, size, 256, side)
    return Seen(key, np.array(Image.open(file)), label, prediction, confidence), file.getvalue()


def counts(seen: Seen, num: int) -> tuple[np.ndarray, np.ndarray]:
    """(C, C) by label and prediction, and (2, 3, C) as a PerImage has them."""
    matrix = ConfusionMatrix(num).update(torch.from_numpy(seen.prediction), torch.from_numpy(seen.label))
    return matrix.hist.numpy(), np.stack([matrix.per_class().numpy()] * 2)


def content(
    folder: Path,
    classes: Sequence[str] = FIVE,
    num_images: int = 3,
    size: tuple[int, int] = (60, 80),
    side: int = 10,
    validates: bool = True,
) -> Content:
    """The results of a profile `small`, whose nets FCN-32s, 16s and 8s are right about more and more pixels."""
    keys, results, hists = [f"2007_{i:06d}" for i in range(num_images)], [], []
    for net in NETS:
        seen = [shown(key, i, SHARE_RIGHT[net], len(classes), size, side) for i, key in enumerate(keys)]
        counted = [counts(one, len(classes)) for one, _ in seen]
        hist = np.sum([hist for hist, _ in counted], 0)
        per_image = PerImage(tuple(keys), np.stack([one for _, one in counted]), {"model_sha256": net})
        scores = ConfusionMatrix(len(classes)).merge(torch.from_numpy(hist)).scores()
        values = {name: getattr(scores, name) for name in (*SCORES, *ADDED)}
        for name in CLASS_SCORES:
            by_class = [None if value != value else value for value in getattr(scores, name)]
            values[name] = dict(zip(classes, by_class, strict=True))
        values |= {
            "num_images": num_images,
            "num_leaked": 0,
            "profile": "small",
            "keys_sha256": "12" * 32,
            "val_digest": "ab" * 32,
            "model_sha256": net,
        }
        results.append(Result(net, values, per_image))
        hists.append(hist)
        gallery.write(folder / net / gallery.FOLDER, seen, net)
        Image.new("RGB", (8, 8), (len(results), 0, 0)).save(folder / net / "predictions.png")
    points = [
        {"step": step, "loss": 2 / step, "lr": 0.1} | ({"val_mean_iu": step / 99} if validates else {})
        for step in (10, 20, 30)
    ]
    parents = ("backbone", *NETS)
    return Content(
        "small",
        classes,
        results,
        compare.score_table(results),
        compare.difference_table(results, Bootstrap(num_resamples=100)),
        [Curve(net, parent, tuple(points)) for net, parent in zip(NETS, parents, strict=False)],
        hists,
        [folder / net for net in NETS],
        inspection(folder / "inspection", classes),
    )


def inspection(folder: Path, classes: Sequence[str]) -> Path:
    """The folder that stages/inspect.py writes, of two splits without a leak."""
    folder.mkdir(parents=True)
    side = {"min": 60, "median": 70.0, "max": 80, "histogram": {"edges": [50, 75, 100], "num_images": [3, 4]}}
    split = {
        "num_images": 7,
        "num_bytes": 2**20,
        "num_shards": 1,
        "height": side,
        "width": side,
        "num_sizes": 2,
        "classes": {name: {"num_pixels": 9, "share": 0.25, "num_images": 7} for name in classes},
        "void": {"num_pixels": 1, "share": 0.05, "num_images": 1},
        "conversions": {},
        "refused": [],
    }
    described = {"train": split, "val": split}
    shared = survey(Images("train", {"a": None}), Images("val", {"b": None}), {}, [], [])
    shared |= {
        "allow_leak": [],
        "near_duplicates": {"choice": "warn", "num_images": 0, "pairs": [], "names": {}},
    }
    (folder / "inspection.json").write_text(json.dumps(described))
    (folder / "leaks.json").write_text(json.dumps(shared))
    (folder / "inspection.md").write_text(render(as_tables(described), "markdown"))
    (folder / "leaks.md").write_text(render(as_blocks(shared, []), "markdown"))
    Image.new("RGB", (8, 8)).save(folder / "inspection.png")
    return folder
