"""`fcn inspect`, `fcn compare` and `fcn explain`: the content of shards, the scores of runs, and their origin."""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def add_inspect(commands) -> None:
    text = (
        "describe folders of shards: sizes, classes, void, conversions, and the images that two folders share"
    )
    command = commands.add_parser("inspect", help=text, description=text)
    command.add_argument(
        "folders", type=Path, nargs="+", metavar="FOLDER", help="such as data/voc/shards/train"
    )
    command.set_defaults(run=inspect)


def inspect(arguments: argparse.Namespace) -> None:
    from itertools import combinations

    from pipeline.inspection import leaks
    from pipeline.inspection.describe import as_tables, describe
    from pipeline.shards.read import open_shards
    from pipeline.tables import render

    opened = {str(folder): open_shards(folder) for folder in arguments.folders}
    for name, shards in opened.items():
        print(render(as_tables({name: describe(shards)}), "markdown"), end="\n\n")
    images = [leaks.Images.of_shards(name, shards) for name, shards in opened.items()]
    for first, second in combinations(images, 2):
        shared = leaks.shared_images(first, second)
        ids = f": {leaks.named(shared, second.name)}" if shared else ""
        print(f"{first.name} shares {len(shared)} images with {second.name}, by id or pixels{ids}")


def add_compare(commands) -> None:
    text = "compare runs with each other and with published scores, with intervals and paired differences"
    command = commands.add_parser("compare", help=text, description=text)
    command.add_argument(
        "runs",
        nargs="+",
        metavar="RUN",
        help="metrics/sample/fcn8s.json, or sample/fcn8s for short, or the id or name of an MLflow run",
    )
    command.add_argument(
        "--classes", action="store_true", help="also IU, F1, precision and recall of each class"
    )
    command.add_argument("--format", choices=("plain", "markdown", "html"), default="plain")
    command.set_defaults(run=compare)


def compare(arguments: argparse.Namespace) -> None:
    from pipeline.evaluation import compare
    from pipeline.evaluation.bootstrap import Bootstrap
    from pipeline.tables import render

    results = []
    for run in arguments.runs:
        with metrics_file(run) as path:
            results.append(compare.read(path, run))
    tables = [compare.score_table(results), compare.difference_table(results, Bootstrap())]
    if arguments.classes:
        tables.append(compare.class_table(results))
    print(render([table for table in tables if table.rows], arguments.format))


def add_explain(commands) -> None:
    text = "trace a model or a score to its origin: code, recipe, data, parents, versions, hardware"
    command = commands.add_parser("explain", help=text, description=text)
    command.add_argument(
        "what", metavar="RUN_OR_MODEL", help="models/sample/fcn8s.pt, or a run as `fcn compare` takes it"
    )
    command.set_defaults(run=explain)


def explain(arguments: argparse.Namespace) -> None:
    from pipeline.evaluation import compare
    from pipeline.evaluation.explain import explain_model, explain_result

    path = Path(arguments.what)
    if path.suffix in (".pt", ".safetensors"):
        facts_of_files = explain_model(path)
    else:
        with metrics_file(arguments.what) as path:
            facts_of_files = explain_result(compare.read(path, arguments.what))
    print("\n".join(facts.as_text() for facts in facts_of_files))


@contextmanager
def metrics_file(run: str) -> Iterator[Path]:
    """Give the metrics JSON of a run: a path to one, profile/net, or the id or name of an MLflow run."""
    from tempfile import TemporaryDirectory

    from pipeline import paths

    profile, _, net = run.partition("/")
    if run.endswith(".json"):
        yield Path(run)
    elif net and "/" not in net:
        yield paths.metrics(profile, net)
    else:
        from pipeline import tracking  # MLflow takes seconds to import

        with TemporaryDirectory() as folder:
            yield tracking.download_metrics(run, Path.cwd(), Path(folder))
