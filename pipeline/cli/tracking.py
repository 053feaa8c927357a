"""`fcn tracking`: send MLflow what it lacks, show its pages; `fcn register`: name a model in MLflow's registry."""

import argparse
import sys
from pathlib import Path

from pipeline.cli.arguments import integer
from pipeline.cli.names import profile_name, run_name

PROFILE_HELP = "default: the one params.yaml names"


def add_tracking(commands) -> None:
    text = "care for the runs in MLflow (docs/mlflow.md)"
    tracking = commands.add_parser("tracking", help=text, description=text)
    actions = tracking.add_subparsers(title="actions", required=True, metavar="ACTION")
    text = (
        "send MLflow what it lacks of a profile's runs: curves, scores, tags, figures, files and models, as after an "
        "outage, or to a new server. What MLflow has already is not sent again. Exit code 1 if something could not "
        "be sent"
    )
    command = actions.add_parser("replay", help="send MLflow what it missed", description=text)
    command.add_argument("profile", nargs="?", type=profile_name, metavar="PROFILE", help=PROFILE_HELP)
    command.set_defaults(run=replay)
    text = "show the runs on a local web page, MLflow's own, until Ctrl-C; print the page's address"
    command = actions.add_parser("ui", help=text, description=text)
    command.add_argument("profile", nargs="?", type=profile_name, metavar="PROFILE", help=PROFILE_HELP)
    command.add_argument(
        "--port", type=integer(1, 65535), default=5000, help="on 127.0.0.1 (default: %(default)s)"
    )
    command.set_defaults(run=ui)


def replay(arguments: argparse.Namespace) -> None:
    from pipeline import config, paths, tracking
    from pipeline.errors import ResultError

    root = Path.cwd()
    profile = arguments.profile or config.load(root)[0]
    if not (root / paths.RUNS / profile).is_dir():
        known = sorted(folder.name for folder in (root / paths.RUNS).glob("[!.]*/"))
        raise ResultError(
            f"no runs of profile {profile!r} in {root / paths.RUNS}; profiles with runs: {', '.join(known) or 'none'}"
        )
    are_complete = []
    for is_complete, message in tracking.replay(profile, root):
        are_complete.append(is_complete)
        print(message, flush=True)
    if not all(are_complete):
        sys.exit(1)


def ui(arguments: argparse.Namespace) -> None:
    from pipeline import config, paths, tracking

    root = Path.cwd()
    profile = arguments.profile or config.load(root)[0]
    if not (root / paths.RUNS / profile).is_dir():  # of a profile whose file is gone, the runs may be there
        config.path_of(profile, root)
    tracking.serve(profile, root, arguments.port)


def add_register(commands) -> None:
    text = (
        "give a run's model a name in MLflow's registry, and an alias if wanted; print the URI to load it by"
    )
    command = commands.add_parser("register", help=text, description=text)
    command.add_argument(
        "model", metavar="RUN", help="sample/fcn8s, as in metrics/, or the id or name of an MLflow run"
    )
    command.add_argument("name", metavar="NAME", help="of the registered model; created if it is missing")
    command.add_argument("--alias", help="such as champion; leads to this version from now on")
    command.set_defaults(run=register)


def register(arguments: argparse.Namespace) -> None:
    from pipeline import tracking

    print(tracking.register(run_name(arguments.model), arguments.name, arguments.alias, Path.cwd()))
