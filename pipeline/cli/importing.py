"""`fcn import`: an annotation tool's export becomes a folder to train on."""

import argparse
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.cli.arguments import integer

if TYPE_CHECKING:
    from pipeline.importing.write import Settings


def add_import(commands) -> None:
    text = (
        "turn an annotation tool's export, or folders of photos and masks, into a folder to train on: images/, masks/, "
        "splits/, classes.txt, names.csv, import.json (docs/import.md)"
    )
    command = commands.add_parser("import", help="read an annotation tool's export", description=text)
    command.add_argument("source", type=Path, help="a folder, or the .zip or .tar as it was downloaded")
    command.add_argument(
        "dest", type=Path, help="the folder to make; an earlier import is brought up to date"
    )
    command.add_argument("--format", metavar="FORMAT", help="default: recognised from the files")
    command.add_argument(
        "--map",
        action="append",
        default=[],
        metavar="OLD=NEW,...",
        help="merge, rename or drop classes, or give values and colours of masks a class: "
        "'truck=vehicle,bus=vehicle,other=void,#ff0000=car,7=tree'; * stands for all others but the background",
    )
    command.add_argument(
        "--split",
        metavar="SHARES",
        help="of train/val or train/val/test, if the export has not both train and val (default: 0.8/0.2; with one of "
        "both, the photos in no list are the other)",
    )
    command.add_argument("--seed", type=int, default=0, help="of the split (default: %(default)s)")
    command.add_argument(
        "--group",
        metavar="REGEX",
        help="photos for whose path it finds the same text stay on one side (default: the same folder)",
    )
    command.add_argument(
        "--folds", type=integer(2), default=0, metavar="K", help="lists for K-fold cross-validation, too"
    )
    command.add_argument(
        "--range",
        type=float,
        nargs=2,
        metavar=("LO", "HI"),
        help="values of 16-bit and float photos that become black and white",
    )
    command.add_argument(
        "--workers", type=integer(1, 1024), default=1, metavar="N", help="processes (default: %(default)s)"
    )
    command.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    from pipeline.errors import DatasetError
    from pipeline.importing import formats
    from pipeline.importing.classes import ClassMap
    from pipeline.importing.write import Settings

    if arguments.format not in (None, *formats.names()):
        raise DatasetError(f"--format {arguments.format}: expected one of {', '.join(formats.names())}")
    if arguments.range and not arguments.range[0] < arguments.range[1]:
        raise DatasetError("--range: expected LO below HI")
    settings = Settings(
        format=arguments.format,
        class_map=ClassMap.parse(arguments.map),
        shares=arguments.split,
        seed=arguments.seed,
        group=arguments.group,
        folds=arguments.folds,
        value_range=tuple(arguments.range) if arguments.range else None,
        workers=arguments.workers,
    )
    import_export(arguments.source, arguments.dest, settings)
    print(f"next: fcn init {shlex.quote(str(arguments.dest))} NAME, which plans a profile of that name")


def import_export(source: Path, dest: Path, settings: "Settings") -> None:
    """Import an export and print what was found, left out and written."""
    from pipeline.files import and_more, counted
    from pipeline.importing.write import import_data

    result = import_data(source, dest, settings)
    total = sum(result.num_pixels)
    shares = [
        f"{name} {num / total:.1%}"
        for name, num in zip([*result.classes, "void"], result.num_pixels, strict=True)
    ]
    print(f"  classes: {and_more(shares, 30)}")
    for note, num in result.notes.items():
        print(f"  {counted(num, 'photo')}: {note}")
    reasons = sorted(set(result.left_out.values()))
    for reason in reasons:
        paths = [path for path, given in result.left_out.items() if given == reason]
        print(f"  left out, {reason}: {and_more(paths, 3)}")
    if result.num_passed_over:
        print(f"  passed over: {counted(result.num_passed_over, 'file')} that systems and tools leave behind")
    for warning in result.warnings:
        print(f"  warning: {warning}")
    kept = f" ({result.num_kept} were there)" if result.num_kept else ""
    lists = ", ".join(f"{name} {num}" for name, num in result.lists.items())
    print(f"wrote {dest}: {counted(result.num_photos, 'photo')}{kept}; {lists}")
