"""Scores one net on the validation split: python -m stages.evaluate fcn32s|fcn16s|fcn8s.

Writes metrics/<profile>/<net>.json and figures/<profile>/<net>.png, then adds both to the net's MLflow run.
"""

import argparse
from pathlib import Path

import torch

from pipeline import config, evaluate, leaks, paths, report, tracking
from pipeline.errors import exit_cleanly
from pipeline.place import Place
from pipeline.shards import open_shards


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("net", choices=config.CHAIN)
    net = parser.parse_args().net
    profile_name, profile = config.load()
    # A cluster's head, where a job's stages run, may have no GPU; its workers have, and draw nothing
    has_gpu = profile.evaluate.use_gpu and torch.cuda.is_available()
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

    if profile.evaluate.num_workers == 1 and has_gpu == profile.evaluate.use_gpu:
        confusion = evaluate.score_split(model, shards, Place(0, 1, device))
    else:
        root = Path.cwd()
        confusion = evaluate.score_on_workers(
            root / paths.model(profile_name, net),
            root / paths.shards(profile_name, "val"),
            root / paths.RUNS / profile_name / f"evaluate-{net}",
            num_workers=profile.evaluate.num_workers,
            min_workers=profile.run.min_workers,
            use_gpu=profile.evaluate.use_gpu,
            cpus_per_worker=profile.run.cpus_per_worker,
        )
    scores = confusion.scores()
    values = evaluate.as_json(scores, shards.classes, len(shards)) | {"num_leaked": num_leaked}
    evaluate.write_json(paths.metrics(profile_name, net), values)

    figure = paths.figures(profile_name, net)
    rows = evaluate.figure_samples(model, shards, profile.evaluate.num_figures, device)
    report.draw_predictions(rows, shards.classes, f"{net}: mean IU {scores.mean_iu:.3f}", figure)

    with tracking.outage_only_warns(f"the scores are kept in {paths.metrics(profile_name, net)}"):
        tracker = tracking.Tracker(profile_name, Path.cwd())
        run = tracker.open_run(net, "model_sha256", digest, about["lineage"])
        tags = {"val_digest": shards.digest, "allow_leak": "; ".join(reasons)}
        tracker.log(run, evaluate.as_metrics(values), tags, [figure])


if __name__ == "__main__":
    exit_cleanly(main)
