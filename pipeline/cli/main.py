"""The `fcn` command. Each subcommand imports its libraries when it runs, so that `fcn --help` is fast."""

import argparse
from pathlib import Path

from pipeline.cli.checks import add_shards, add_verify
from pipeline.cli.cluster import add_cluster
from pipeline.cli.export import add_caffe, add_export
from pipeline.cli.heatmap import add_heatmap
from pipeline.cli.predict import add_predict, add_serve, add_submit
from pipeline.cli.tracking import add_register, add_tracking
from pipeline.errors import exit_cleanly


def main() -> None:
    """Run the command line; a user's mistake ends with one message and exit code 2."""
    arguments = parser().parse_args()
    exit_cleanly(lambda: arguments.run(arguments))


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="fcn", description="Fully convolutional networks: check, convert and use them."
    )
    commands = top.add_subparsers(title="commands", required=True, metavar="COMMAND")
    add_verify(commands)
    _add_inspect(commands)
    add_export(commands)
    add_caffe(commands)
    add_heatmap(commands)
    add_shards(commands)
    add_predict(commands)
    add_serve(commands)
    add_submit(commands)
    add_cluster(commands)
    _add_compare(commands)
    _add_explain(commands)
    add_tracking(commands)
    add_register(commands)
    return top


def _add_inspect(commands) -> None:
    text = "say what is in folders of shards: sizes, classes, void, conversions, and what two folders share"
    command = commands.add_parser("inspect", help=text, description=text)
    command.add_argument(
        "folders", type=Path, nargs="+", metavar="FOLDER", help="such as data/voc/shards/train"
    )
    command.set_defaults(run=inspect)


def inspect(arguments: argparse.Namespace) -> None:
    from itertools import combinations

    from pipeline.inspection import describe, leaks
    from pipeline.shards.read import open_shards

    opened = {str(folder): open_shards(folder) for folder in arguments.folders}
    for name, shards in opened.items():
        print(describe.as_markdown({name: describe.inspect(shards)}))
    images = [leaks.Images.of_shards(name, shards) for name, shards in opened.items()]
    for one, other in combinations(images, 2):
        shared = leaks.seen(one, other)
        said = f": {leaks.named(shared, other.name)}" if shared else ""
        print(f"{one.name} shares {len(shared)} images with {other.name}, by id or pixels{said}")


def _add_compare(commands) -> None:
    text = "put runs beside each other and beside published scores; say how sure a difference is, and what compares"
    command = commands.add_parser("compare", help=text, description=text)
    command.add_argument(
        "runs",
        nargs="+",
        metavar="RUN",
        help="metrics/sample/fcn8s.json, or sample/fcn8s for short, or the id or name of an MLflow run",
    )
    command.add_argument("--format", choices=("plain", "markdown", "html"), default="plain")
    command.set_defaults(run=compare)


def compare(arguments: argparse.Namespace) -> None:
    from tempfile import TemporaryDirectory

    from pipeline.evaluation import compare
    from pipeline.evaluation.bootstrap import Bootstrap

    results = []
    for run in arguments.runs:
        with TemporaryDirectory() as folder:
            results.append(compare.load(run, Path(folder)))
    tables = [compare.score_table(results), compare.difference_table(results, Bootstrap())]
    print("\n\n".join(compare.as_text(table, arguments.format) for table in tables if table.rows))


def _add_explain(commands) -> None:
    text = "say what a model or a score comes from: code, recipe, data, parents, versions, hardware; or what is lacking"
    command = commands.add_parser("explain", help=text, description=text)
    command.add_argument(
        "what", metavar="RUN_OR_MODEL", help="models/sample/fcn8s.pt, or a run as `fcn compare` takes it"
    )
    command.set_defaults(run=explain)


def explain(arguments: argparse.Namespace) -> None:
    from tempfile import TemporaryDirectory

    from pipeline.evaluation.explain import explain

    with TemporaryDirectory() as folder:
        print("\n".join(part.as_text() for part in explain(arguments.what, Path(folder))))


if __name__ == "__main__":
    main()
