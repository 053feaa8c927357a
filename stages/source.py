"""Write to data/<profile>/ what DVC must know and cannot read from a profile, because only some profiles have it.

source.json: the fingerprint of a user's own folder; DVC copies a changed folder again. The file of other sources is
always the same. Where the folder is not on this machine, file and copy stay as they are.
choice.json: whether scores on val decide what training keeps; another val then trains again.
"""

from pathlib import Path

from pipeline import config, paths
from pipeline.errors import exit_cleanly
from pipeline.files import write_json


def main() -> None:
    profile_name, profile = config.load()
    choice = paths.choice(profile_name)
    choice.parent.mkdir(parents=True, exist_ok=True)
    write_json(choice, {"by_val": profile.train.chooses})
    folder, dest, fingerprint = profile.data.source.own, paths.source(profile_name), None
    if (
        folder
        and not Path(folder).expanduser().is_dir()
        and dest.exists()
        and paths.raw(profile_name).is_dir()
    ):
        print(
            f"data.source.own: no folder {folder} here; its copy in {paths.raw(profile_name)} is used",
            flush=True,
        )
        return
    if folder:
        from pipeline.datasets import own_files

        fingerprint = own_files.fingerprint(Path(folder).expanduser())
    write_json(dest, {"own": fingerprint})


if __name__ == "__main__":
    exit_cleanly(main)
