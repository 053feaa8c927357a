"""`fcn sweep`: try settings of a profile, and write a profile of the best."""

import argparse
from pathlib import Path


def add_sweep(commands) -> None:
    text = (
        "train a profile with many settings, end bad trials early, and write profiles/NAME-best.yaml with the best. "
        "Trials are compared on images that are left out of train for that, never on val. Stop it with Ctrl-C or kill "
        "it; the same command goes on (docs/sweeps.md)"
    )
    command = commands.add_parser("sweep", help="try settings of a profile", description=text)
    command.add_argument("file", type=Path, metavar="SWEEP.yaml", help="such as sweeps/sample-lr.yaml")
    command.set_defaults(run=run_sweep)


def run_sweep(arguments: argparse.Namespace) -> None:
    from pipeline.experiments import sweep

    winner = sweep.run_sweep(arguments.file, Path.cwd())
    print(f"the best settings are in {winner.relative_to(Path.cwd())}: dvc exp run -S profile={winner.stem}")
