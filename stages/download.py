"""Bring the profile's images to data/<profile>/raw: drawn, unpacked from published archives, or copied."""

import shutil
from pathlib import Path

from pipeline import config, paths
from pipeline.datasets import local, own, published, synthetic
from pipeline.datasets.copying import refuse_within
from pipeline.download.fetch import fetch_published
from pipeline.errors import DatasetError, exit_cleanly
from pipeline.files import lock


def main() -> None:
    profile_name, profile = config.load()
    source, raw = profile.data.source, paths.raw(profile_name)
    for key, given in (("local", source.local), ("own", source.own)):
        if given:
            refuse_within(Path(given).expanduser(), raw.parent, f"data.source.{key}")
    # The stage of a killed `dvc repro` may still be running
    with lock(raw.with_name(".raw.lock"), "downloads the same data set"):
        shutil.rmtree(raw, ignore_errors=True)
        try:
            fill(raw, profile.data)
        except DatasetError as error:
            if source.own:
                raise DatasetError(own.in_the_users_words(str(error), raw, source.own)) from error
            raise


def fill(raw: Path, data: config.Data) -> None:
    source = data.source
    if source.sample:
        synthetic.draw(raw, **source.sample.model_dump())
    elif source.local:
        local.bring(Path(source.local).expanduser(), raw)
    elif source.own:
        own.copy(Path(source.own).expanduser(), raw, data.classes, data.map)
    else:
        archives = source.archives.values()
        files = [fetch_published(paths.DOWNLOADS, **archive.model_dump()) for archive in archives]
        published.unpack(files, raw)


if __name__ == "__main__":
    exit_cleanly(main)
