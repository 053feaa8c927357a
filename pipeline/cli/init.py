"""`fcn init`: plan a profile for a user's own photos."""

import argparse
import os
import re
from pathlib import Path


def add_init(commands) -> None:
    text = (
        "plan a profile for your own photos from their sizes, classes and number and from this machine, with the "
        "reason of each choice, and point params.yaml at it (docs/own-data.md)"
    )
    command = commands.add_parser("init", help="plan a profile for your own photos", description=text)
    command.add_argument(
        "folder",
        type=Path,
        help="images/, masks/, splits/ and classes.txt; or an export, which is imported first",
    )
    command.add_argument("name", metavar="NAME", help="of the profile: profiles/NAME.yaml")
    command.add_argument("--force", action="store_true", help="replace a profile of that name")
    command.set_defaults(run=init)


def init(arguments: argparse.Namespace) -> None:
    from pipeline.planning import init, profile

    profile.check_name(arguments.name, Path(), force=arguments.force)
    init.init(own_folder(arguments.folder), arguments.name, Path(), force=arguments.force)


def own_folder(path: Path) -> Path:
    """Return the folder if it is laid out as docs/own-data.md describes, else the one that `fcn import` makes of it."""
    from pipeline.cli.importing import import_export
    from pipeline.datasets import own_files
    from pipeline.importing.write import Settings

    if not path.exists() or all((path / name).exists() for name in (*own_files.FOLDERS, own_files.CLASSES)):
        return path
    stem = re.sub(r"\.(zip|tar|tgz|tar\.\w+)$", "", Path(os.path.abspath(path)).name)
    dest = Path(os.path.normpath(path / ".." / f"{stem}-imported"))
    print(f"{path} is not a folder of {own_files.GUIDE}; importing it to {dest}", flush=True)
    import_export(path, dest, Settings())
    return dest
