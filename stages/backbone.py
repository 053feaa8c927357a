"""Writes models/<profile>/backbone.pt, what the first net of the chain starts from."""

from pathlib import Path

from pipeline import config, paths
from pipeline.download.weights import fetch_weights
from pipeline.models import backbone
from pipeline.surroundings import run_command


def main() -> None:
    profile_name, profile = config.load()
    dest, model = paths.model(profile_name, "backbone"), profile.model.arguments()
    weights = profile.backbone.weights
    if profile.train.start:
        backbone.write_from_net(dest, model, profile.train.start)
        return
    if weights is None:
        backbone.write_random(dest, model, profile.backbone.seed)
        return
    downloads = paths.project(Path()) / paths.DOWNLOADS
    backbone.write_pretrained(dest, model, fetch_weights(weights, downloads))


if __name__ == "__main__":
    run_command(main)
