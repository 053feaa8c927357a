"""Write each split of the profile to data/<profile>/shards/<split>: WebDataset tars and a manifest.

With shards.destination the tars go there, and the folder holds the manifest and their location.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from pipeline import config, paths
from pipeline.datasets import linked, own, raw, splits
from pipeline.errors import DatasetError
from pipeline.shards.read import open_shards
from pipeline.shards.write import MapFunction, link_shards, write_shards
from pipeline.surroundings import run_command


def main() -> None:
    profile_name, profile = config.load()
    there_already = profile.data.source.shards
    if there_already:
        for name, where in linked.locations(there_already).items():
            link_split(profile_name, profile, name, where)
        return
    own_folder, folder = profile.data.source.own, raw.ensure(profile_name, profile.data)
    try:
        with workers(profile.run.shard_workers) as run:
            for name, split in resolve(folder, profile.data).items():
                write_split(profile_name, profile, name, split, run)
    except DatasetError as error:
        if own_folder:
            message = own.in_the_users_words(str(error), folder, own_folder)
            raise DatasetError(message) from error
        raise


def resolve(images: Path, data: config.Data) -> dict[str, splits.Split]:
    """Return the splits by name; the images of data.tuning are a split of their own, and not in train.

    images: the raw folder.
    """

    def listed(lists: config.Split) -> splits.Split:
        return splits.resolve(
            images.absolute(),
            lists.include,
            lists.exclude,
            num_classes=len(data.classes),
            count=lists.count,
            checks_published=data.source.sample is None and not data.allow_partial,
            allow_partial=data.allow_partial,
        )

    assert data.splits is not None  # the profile's check: without, the shards are there already
    train, val = listed(data.splits.train), listed(data.splits.val)
    if not data.tuning:
        return {"train": train, "val": val}
    if isinstance(data.tuning, list):
        tuning = listed(config.Split(include=data.tuning, exclude=data.splits.train.exclude))
        splits.refuse_shared(tuning, val, train)
    else:
        tuning = splits.hold_out(train, data.tuning, val.sources)
    print(f"data.tuning: {len(tuning.sources)} images are left out of train", flush=True)
    return {"train": train.without(tuning.sources), "tuning": tuning, "val": val}


def write_split(
    profile_name: str, profile: config.Profile, name: str, split: splits.Split, run: MapFunction
) -> None:
    """Write the shards of one split."""
    data, root = profile.data, Path.cwd()
    if data.map:
        values = own.class_values(split.raw, data.classes, data.map)
        split = replace(split, values=values)
    folder, destination = root / paths.shards(profile_name, name), profile.shards.location(profile_name, name)
    about = {"sources": own.sources(split.raw), "map": data.map}
    write_shards(
        list(split.sources),
        split.load,
        destination or folder,
        split=name,
        classes=data.classes,
        samples_per_shard=profile.shards.samples_per_shard,
        seed=profile.shards.seed,
        stamp=split.stamp,
        allow_partial=data.allow_partial,
        about=about,
        work=None if isinstance(destination, Path) else root / paths.sharding(profile_name, name),
        run=run,
    )
    if destination:
        link_shards(str(destination), folder)


def link_split(profile_name: str, profile: config.Profile, name: str, where: str) -> None:
    """Link a split to shards that are there already."""
    shards = open_shards(where, split=name, cache=paths.VERIFIED)
    if list(shards.classes) != profile.data.classes:
        raise DatasetError(f"{where} has classes {', '.join(shards.classes)}; data.classes must be the same")
    link_shards(where, paths.shards(profile_name, name))


@contextmanager
def workers(number: int) -> Iterator[MapFunction]:
    """Give a function like map that runs in this process, or on so many Ray workers."""
    if number == 1:
        yield map
    else:
        from pipeline.cluster import ray_workers  # takes seconds to import

        with ray_workers.tasks(number) as run:
            yield run


if __name__ == "__main__":
    run_command(main)
