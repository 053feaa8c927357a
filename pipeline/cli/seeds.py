"""`fcn seeds`: train a profile's chain with several seeds, and score it over seeds and images."""

import argparse
from pathlib import Path

from pipeline.cli.arguments import integer
from pipeline.cli.names import profile_name
from pipeline.paths import CHAIN


def add_seeds(commands) -> None:
    text = (
        "train a profile's chain with several seeds (order of images, dropout, new layers, a random backbone; not the "
        "data), as many at once as there is room for, and score it over seeds and images. Stop it at any time and run "
        "it again: finished nets are not trained again, and a greater --num adds seeds (docs/comparing.md)"
    )
    command = commands.add_parser(
        "seeds", help="train with several seeds: mean, spread, interval", description=text
    )
    command.add_argument("profile", type=profile_name, metavar="PROFILE", help="profiles/PROFILE.yaml")
    command.add_argument(
        "--num",
        type=integer(2, 1000),
        default=5,
        help="of seeds, from train.seed of the profile on (default: 5)",
    )
    command.add_argument(
        "--net", choices=CHAIN, default=CHAIN[-1], help="the last net of the chain to train (default: fcn8s)"
    )
    command.set_defaults(run=seeds)


def seeds(arguments: argparse.Namespace) -> None:
    from pipeline import config, paths
    from pipeline.errors import UserError
    from pipeline.evaluation.compare import score_table
    from pipeline.experiments import group
    from pipeline.experiments.seeds import first_seeds, group_name, train_seeds
    from pipeline.files import lock
    from pipeline.tables import render

    root, name, last_net = Path.cwd(), arguments.profile, arguments.net
    profile = config.read(name)
    numbers = first_seeds(profile, arguments.num)
    folder = group_name(name, profile, root)
    with lock(root / paths.group(name, folder) / "lock", f"trains {name}/{folder}"):
        run = group.begin_run(name, profile, folder, root)
        errors = [
            f"seed {outcome.seed}: {outcome.error}"
            for outcome in train_seeds(name, profile, root, folder, numbers, last_net)
            if outcome.error
        ]
        if arguments.num - len(errors) > 1:
            scored = group.read_group(name, profile, folder, root)
            page = group.write_page(scored, root)
            group.end_run(*run, scored, page)
            print(render([score_table(scored.results, ()), scored.differences], "plain"))
            print(
                f"\n{page.relative_to(root)} shows every seed; compare: fcn compare {name}/seeds/{last_net} ..."
            )
    if errors:
        raise UserError(
            "\n".join([f"{len(errors)} of {arguments.num} seeds failed; the rest is done", *errors])
        )
