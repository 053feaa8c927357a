"""Writes each split of the profile to data/<profile>/shards/<split>: WebDataset tars and a manifest."""

from pipeline import config, paths
from pipeline.datasets import splits
from pipeline.errors import exit_cleanly
from pipeline.shards import write_shards


def main() -> None:
    profile_name, profile = config.load()
    data = profile.data
    for name in ("train", "val"):
        wanted: config.Split = getattr(data.splits, name)
        split = splits.resolve(
            paths.raw(profile_name),
            wanted.include,
            wanted.exclude,
            num_classes=len(data.classes),
            count=wanted.count,
            checks_published=data.source.sample is None and not data.allow_partial,
            allow_partial=data.allow_partial,
        )
        write_shards(
            list(split.sources),
            split.load,
            paths.shards(profile_name, name),
            split=name,
            classes=data.classes,
            **profile.shards.model_dump(),
        )


if __name__ == "__main__":
    exit_cleanly(main)
