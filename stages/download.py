"""Brings the profile's images to data/<profile>/raw: drawn, unpacked from published archives, or copied."""

import shutil
from pathlib import Path

from pipeline import config, paths
from pipeline.archive import extract
from pipeline.datasets import local, sample
from pipeline.download import fetch
from pipeline.errors import exit_cleanly


def main() -> None:
    profile_name, profile = config.load()
    source, raw = profile.data.source, paths.raw(profile_name)
    shutil.rmtree(raw, ignore_errors=True)
    if source.sample:
        sample.draw(raw, **source.sample.model_dump())
    elif source.local:
        local.copy(Path(source.local).expanduser(), raw)
    else:
        for name, archive in source.archives.items():
            path = fetch(
                archive.urls,
                paths.DOWNLOADS / Path(archive.urls[0]).name,
                checksum=archive.checksum,
                part_dir=paths.DOWNLOADS,
                max_bytes=int(archive.max_size_gb * 1e9),
            )
            extract(path, raw.with_name(f"{name}.unpacked"))
            local.merge(raw.with_name(f"{name}.unpacked"), raw)


if __name__ == "__main__":
    exit_cleanly(main)
