"""Scores one net on the validation split: python -m stages.evaluate fcn32s|fcn16s|fcn8s.

Writes metrics/<profile>/<net>.json, what it was counted from for each image as metrics/<profile>/<net>.parquet, and
the pictures of figures/<profile>/<net>; then adds them to the net's MLflow run.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from fcn.averaging import Averaging, average_probability
from fcn.model import FCN
from pipeline import config, paths, tracking
from pipeline.curves import Curve, read_curve
from pipeline.distributed.rank import Rank
from pipeline.errors import exit_cleanly
from pipeline.evaluation import per_image, scoring
from pipeline.evaluation.bootstrap import Bootstrap
from pipeline.evaluation.per_image import PerImage
from pipeline.inspection import leaks
from pipeline.report import net_figures
from pipeline.report.net_figures import Scored
from pipeline.shards.read import Shards, open_shards


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("net", choices=config.CHAIN)
    net = parser.parse_args().net
    profile_name, profile = config.load()
    asked = profile.evaluate
    averaging = Averaging(tuple(asked.scales), asked.flip)
    # A cluster's head, where a job's stages run, may have no GPU; its workers have, and draw nothing
    has_gpu = asked.use_gpu and torch.cuda.is_available()
    device = torch.device("cuda" if has_gpu else "cpu")
    shards = open_shards(
        paths.shards(profile_name, "val"),
        split="val",
        cache=paths.VERIFIED,
        verify_all=profile.run.verify_shards == "full",
    )
    model, about, digest = scoring.load_model(paths.model(profile_name, net), device)
    val, reasons = leaks.Images.of_shards("val", shards), profile.data.allow_leak
    num_leaked = leaks.check_model(about["trained_on"], val, net, reasons)

    counts = _count(profile_name, profile, net, model, shards, device, averaging)
    scored = {"profile": profile_name, "net": net, "model_sha256": digest, "val_digest": shards.digest}
    how = {"classes": list(shards.classes), "border_width": asked.border_width}
    images = PerImage.sorted(shards.keys, counts.images.cpu().numpy(), scored | how)
    per_image.write(paths.per_image(profile_name, net), images)

    scores = counts.confusion.scores()
    values = scoring.as_json(scores, shards.classes, len(shards)) | {"num_leaked": num_leaked}
    bootstrap = Bootstrap(asked.num_resamples, asked.level, asked.seed)
    values |= scoring.with_uncertainty(images, bootstrap) | scoring.about_averaging(averaging) | scored
    scoring.write_json(paths.metrics(profile_name, net), values)

    curve, parent = _curve(profile_name, net), _parent(profile_name, about["lineage"])
    hist = counts.confusion.hist.cpu().numpy()

    def probability(image: torch.Tensor) -> torch.Tensor:
        return average_probability(model, image.to(device), averaging)

    net_figures.draw_all(
        paths.figures(profile_name, net),
        Scored(net, values, hist, images, parent, curve),
        probability,
        shards,
        asked.num_figures,
        asked.num_gallery,
    )

    tracker, data = tracking.Tracker(profile_name, Path.cwd()), {"val": shards.digest}
    record = tracker.record("evaluation", net, "model_sha256", digest, params=about["lineage"], datasets=data)
    tags = {"val_digest": shards.digest, "allow_leak": "; ".join(reasons)}
    files = [paths.metrics(profile_name, net), paths.per_image(profile_name, net)]
    figures = sorted(path for path in paths.figures(profile_name, net).iterdir() if path.is_file())
    tracker.log(record, scoring.as_metrics(values), tags, figures, files)


def _count(
    profile_name: str,
    profile: config.Profile,
    net: str,
    model: FCN,
    shards: Shards,
    device: torch.device,
    averaging: Averaging,
) -> scoring.Counts:
    """By this process, or by as many Ray workers as the profile says."""
    asked = profile.evaluate
    if asked.num_workers == 1 and (device.type == "cuda") == asked.use_gpu:
        return scoring.score_split(model, shards, Rank(0, 1, device), asked.border_width, averaging)
    root = Path.cwd()
    return scoring.score_on_workers(
        root / paths.model(profile_name, net),
        root / paths.shards(profile_name, "val"),
        root / paths.RUNS / profile_name / f"evaluate-{net}",
        asked.border_width,
        averaging,
        num_workers=asked.num_workers,
        min_workers=profile.run.min_workers,
        use_gpu=asked.use_gpu,
        cpus_per_worker=profile.run.cpus_per_worker,
    )


def _curve(profile_name: str, net: str) -> Curve | None:
    path = paths.curve(profile_name, net)
    if path.exists():
        return read_curve(path)
    print(f"no {path}: {net} was trained elsewhere, and no curve is drawn", flush=True)
    return None


def _parent(profile_name: str, lineage: dict[str, Any]) -> tuple[str, dict[str, Any]] | None:
    """(name, scores) of the net that this one was started from, if it was, and if that very net was scored."""
    name = lineage.get("parent")
    if name not in config.CHAIN:
        return None
    path = paths.metrics(profile_name, name)
    values = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return (name, values) if values.get("model_sha256") == lineage.get("parent_sha256") else None


if __name__ == "__main__":
    exit_cleanly(main)
