"""Scores one net on the validation split: python -m stages.evaluate fcn32s|fcn16s|fcn8s.

Writes metrics/<profile>/<net>.json, what it was counted from for each image as metrics/<profile>/<net>.parquet, and
figures/<profile>/<net>.png; then adds them to the net's MLflow run.
"""

import argparse
from pathlib import Path

import torch

from pipeline import config, evaluate, leaks, paths, per_image, report, tracking
from pipeline.errors import exit_cleanly
from pipeline.per_image import PerImage
from pipeline.place import Place
from pipeline.shards import open_shards
from pipeline.uncertainty import Bootstrap, in_words


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("net", choices=config.CHAIN)
    net = parser.parse_args().net
    profile_name, profile = config.load()
    asked = profile.evaluate
    # A cluster's head, where a job's stages run, may have no GPU; its workers have, and draw nothing
    has_gpu = asked.use_gpu and torch.cuda.is_available()
    device = torch.device("cuda" if has_gpu else "cpu")
    shards = open_shards(
        paths.shards(profile_name, "val"),
        split="val",
        cache=paths.VERIFIED,
        anew=profile.run.verify_shards == "full",
    )
    model, about, digest = evaluate.load_model(paths.model(profile_name, net), device)
    val, reasons = leaks.Images.of_shards("val", shards), profile.data.allow_leak
    num_leaked = leaks.check_model(about["trained_on"], val, net, reasons)

    if asked.num_workers == 1 and has_gpu == asked.use_gpu:
        counts = evaluate.score_split(model, shards, Place(0, 1, device), asked.border_width)
    else:
        root = Path.cwd()
        counts = evaluate.score_on_workers(
            root / paths.model(profile_name, net),
            root / paths.shards(profile_name, "val"),
            root / paths.RUNS / profile_name / f"evaluate-{net}",
            asked.border_width,
            num_workers=asked.num_workers,
            min_workers=profile.run.min_workers,
            use_gpu=asked.use_gpu,
            cpus_per_worker=profile.run.cpus_per_worker,
        )
    scored = {"profile": profile_name, "net": net, "model_sha256": digest, "val_digest": shards.digest}
    how = {"classes": list(shards.classes), "border_width": asked.border_width}
    images = PerImage.sorted(shards.keys, counts.images.cpu().numpy(), scored | how)
    per_image.write(paths.per_image(profile_name, net), images)

    scores = counts.confusion.scores()
    values = evaluate.as_json(scores, shards.classes, len(shards)) | {"num_leaked": num_leaked}
    bootstrap = Bootstrap(asked.num_resamples, asked.level, asked.seed)
    values |= evaluate.with_uncertainty(images, bootstrap) | scored
    evaluate.write_json(paths.metrics(profile_name, net), values)

    figure = paths.figures(profile_name, net)
    rows = evaluate.figure_samples(model, shards, asked.num_figures, device)
    title = f"{net}: mean IU {in_words(values, 'mean_iu')}"
    report.draw_predictions(rows, shards.classes, title, figure)

    tracker, data = tracking.Tracker(profile_name, Path.cwd()), {"val": shards.digest}
    record = tracker.record("evaluation", net, "model_sha256", digest, params=about["lineage"], datasets=data)
    tags = {"val_digest": shards.digest, "allow_leak": "; ".join(reasons)}
    files = [paths.metrics(profile_name, net), paths.per_image(profile_name, net)]
    tracker.log(record, evaluate.as_metrics(values), tags, [figure], files)


if __name__ == "__main__":
    exit_cleanly(main)
