"""Write to files what DVC must know and cannot read from a profile, because only some profiles have it.

data/<profile>/source.json is the fingerprint of a user's own folder or shards, models/<profile>/start.json that of the
net which train.start names; DVC copies a changed one again. A profile without them has a fingerprint that is always the
same. Where they are not on this machine, as in a colleague's clone, their fingerprint stays as it is, so that what was
made from them is used.
data/<profile>/choice.json: whether scores on val decide what training keeps; another val then trains again.

This stage runs first. It refuses surroundings in which a later stage would fail.
"""

import json
from pathlib import Path
from typing import Any

from pipeline import config, paths
from pipeline.doctor import quick
from pipeline.doctor.findings import Setting, refuse
from pipeline.errors import CheckpointError, ShardError
from pipeline.files import sha256_file, write_json
from pipeline.surroundings import run_command


def main() -> None:
    profile_name, profile = config.load()
    refuse(quick.BEFORE_A_RUN, Setting(Path.cwd(), profile_name, profile))
    write_source(profile_name, profile.data.source)
    write_start(profile_name, profile.train.start)
    write_choice(profile_name, profile.train.chooses)


def write_choice(profile_name: str, by_val: bool) -> None:
    dest = paths.choice(profile_name)
    dest.parent.mkdir(parents=True, exist_ok=True)
    write_json(dest, {"by_val": by_val})


def write_source(profile_name: str, source: config.Source) -> None:
    dest = paths.source(profile_name)
    content: dict[str, Any] = {"own": None}
    if source.own:
        folder = paths.named(source.own)
        if not folder.is_dir() and dest.exists():
            print(f"data.source.own: no folder {source.own} here; what was made from it is used", flush=True)
            return
        from pipeline.datasets import own_files

        content = {"own": own_files.fingerprint(folder)}
    elif source.shards:
        from pipeline.datasets import linked

        try:
            content = {"shards": linked.fingerprint(source.shards)}
        except ShardError as error:
            if not dest.exists():
                raise
            print(f"data.source.shards: {error}; what was made from them is used", flush=True)
            return
    write_json(dest, content)


def write_start(profile_name: str, start: str | None) -> None:
    dest, copy = paths.start(profile_name), paths.model(profile_name, "backbone")
    path = paths.named(start) if start else None
    if path and path.resolve().parent == dest.parent.resolve():
        raise CheckpointError(
            f"train.start: this profile writes {start} itself, so each `dvc repro` would train from another net; "
            "copy the file elsewhere, or name a new profile in params.yaml"
        )
    if path and not path.is_file():
        if copy.exists() and dest.exists() and json.loads(dest.read_text(encoding="utf-8"))["start"] == start:
            print(f"train.start: no file {start} here; its copy in {copy} is used", flush=True)
            return
        raise CheckpointError(
            f"train.start: {path.absolute()} is missing; give the path of a model file, such as models/voc/fcn8s.pt"
        )
    write_json(dest, {"start": start, "sha256": sha256_file(path) if path else None})


if __name__ == "__main__":
    run_command(main)
