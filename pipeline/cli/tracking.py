"""`fcn tracking`: what MLflow missed; `fcn register`: a model under a name."""

import argparse
import sys
from pathlib import Path


def add_tracking(commands) -> None:
    text = "look after what MLflow is told of (docs/mlflow.md)"
    tracking = commands.add_parser("tracking", help=text, description=text)
    ways = tracking.add_subparsers(title="actions", required=True, metavar="ACTION")
    text = (
        "send MLflow what it has not got of a profile's runs: curves, scores, tags, figures, files and models, as "
        "after an outage, or to a server that is new. What is there is not sent again. Exit code 1 if "
        "something stays behind"
    )
    command = ways.add_parser("replay", help="send MLflow what it missed", description=text)
    command.add_argument("profile", nargs="?", metavar="PROFILE", help="default: the one params.yaml names")
    command.set_defaults(run=replay)


def replay(arguments: argparse.Namespace) -> None:
    from pipeline import config, paths, tracking
    from pipeline.errors import ResultError

    root = Path.cwd()
    profile = arguments.profile or config.load(root)[0]
    if not (root / paths.RUNS / profile).is_dir():
        raise ResultError(
            f"no runs of profile {profile!r} in {root / paths.RUNS}; name another, or run from the project's root"
        )
    is_whole = True
    for is_there, sentence in tracking.replay(profile, root):
        is_whole &= is_there
        print(sentence, flush=True)
    if not is_whole:
        sys.exit(1)


def add_register(commands) -> None:
    text = "give a run's model a name in MLflow's registry, and an alias if asked; says what to load it by"
    command = commands.add_parser("register", help=text, description=text)
    command.add_argument(
        "model", metavar="RUN", help="sample/fcn8s, as metrics/ has it, or the id or name of an MLflow run"
    )
    command.add_argument("name", metavar="NAME", help="of the registered model; made if it is not there")
    command.add_argument(
        "--alias", help="such as champion; leads here from now on, whatever version had it before"
    )
    command.set_defaults(run=register)


def register(arguments: argparse.Namespace) -> None:
    from pipeline import tracking

    uri = tracking.register(arguments.model, arguments.name, arguments.alias, Path.cwd())
    print(uri)
