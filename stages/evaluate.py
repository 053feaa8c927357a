"""Score one net on the validation split: python -m stages.evaluate fcn32s|fcn16s|fcn8s.

Writes metrics/<profile>/<net>.json, the counts of each image as metrics/<profile>/<net>.parquet, and the folder
figures/<profile>/<net>; then adds them to the net's MLflow run.
"""

import argparse
from pathlib import Path

from pipeline import config, files, paths, tracking
from pipeline.evaluation import per_image, scoring
from pipeline.evaluation.evaluate import evaluate
from pipeline.report import net_figures
from pipeline.surroundings import run_command


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("net", choices=config.CHAIN)
    net = parser.parse_args().net
    profile_name, profile = config.load()
    done = evaluate(profile_name, profile, net, Path.cwd())

    metrics, counts = paths.metrics(profile_name, net), paths.per_image(profile_name, net)
    per_image.write(counts, done.images)
    files.write_json(metrics, done.values, indent=2)

    figures = paths.figures(profile_name, net)
    scored = net_figures.read_scored(profile_name, done.values, done.hist, done.images, done.lineage)
    num_figures, num_gallery = profile.evaluate.num_figures, profile.evaluate.num_gallery
    net_figures.write(figures, scored, done.confidence, done.shards, num_figures, num_gallery)

    digest, val_digest = done.values["model_sha256"], done.values["val_digest"]
    tracker = tracking.Tracker(profile_name, Path.cwd())
    record = tracker.record(
        "evaluation", net, "model_sha256", digest, params=done.lineage, datasets={"val": val_digest}
    )
    tags = {"val_digest": val_digest, "allow_leak": "; ".join(profile.data.allow_leak)}
    pictures = sorted(path for path in figures.iterdir() if path.is_file())
    tracker.log(record, scoring.as_metrics(done.values), tags, pictures, [metrics, counts])


if __name__ == "__main__":
    run_command(main)
