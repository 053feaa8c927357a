"""`fcn inspect`, `fcn compare` and `fcn explain`: the content of shards, the scores of runs, and their origin."""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.cli.names import MODEL_SUFFIXES, model_path, require_scores, run_name

if TYPE_CHECKING:
    from pipeline.evaluation.bootstrap import Bootstrap
    from pipeline.evaluation.results import Result


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
        nargs="*",
        metavar="RUN",
        help="metrics/sample/fcn8s.json, or sample/fcn8s for short; sample/seeds/fcn8s for all seeds of the newest "
        "group of `fcn seeds`, or sample/seeds-1a2b3c4d/fcn8s for those of another; or the id or name of an MLflow run",
    )
    command.add_argument(
        "--parent",
        action="append",
        default=[],
        metavar="RUN",
        help="the id or name of an MLflow run with children, such as seeds-1a2b3c4d: compares them, the seeds of each "
        "net as one group. May be given several times",
    )
    command.add_argument(
        "--classes", action="store_true", help="also IU, F1, precision and recall of each class"
    )
    command.add_argument(
        "--published",
        action="store_true",
        help="also published scores that are not comparable to the first run",
    )
    command.add_argument("--format", choices=("plain", "markdown", "html"), default="plain")
    command.set_defaults(run=compare)


def compare(arguments: argparse.Namespace) -> None:
    from pipeline.errors import ResultError
    from pipeline.evaluation import compare
    from pipeline.evaluation.bootstrap import Bootstrap
    from pipeline.tables import render

    bootstrap = Bootstrap()
    results = [_result(run, bootstrap) for run in arguments.runs]
    for parent in arguments.parent:
        results += _children(parent, bootstrap)
    if not results:
        raise ResultError("no run to compare; give a RUN or --parent RUN")
    scores = compare.score_table(results, incomparable=arguments.published)
    tables = [scores, compare.difference_table(results, bootstrap)]
    if arguments.classes:
        tables.append(compare.class_table(results))
    print(render([table for table in tables if table.rows], arguments.format))


def _result(run: str, bootstrap: "Bootstrap") -> "Result":
    """Return the scores of a run, or of a group of seeds: profile/group/net."""
    from pipeline import paths
    from pipeline.evaluation.results import read_result

    profile, _, rest = run.partition("/")
    name, _, net = rest.partition("/")
    is_group = net and (name == "seeds" or name.startswith(paths.SEEDS))
    if not is_group or run.endswith(".json"):  # the path of a file may have such a folder
        with metrics_file(run) as path:
            return read_result(path, run)
    from pipeline.experiments import group  # imports torch and MLflow, which takes seconds

    if name == "seeds":
        name = group.newest_group(profile, Path.cwd())
    return group.read_net(profile, name, net, Path.cwd(), bootstrap, run)


def _children(parent: str, bootstrap: "Bootstrap") -> "list[Result]":
    """Return the scores of an MLflow run's children; those of one net and several seeds as one group."""
    from tempfile import TemporaryDirectory

    from pipeline import tracking
    from pipeline.evaluation.results import group_result, read_result

    with TemporaryDirectory() as folder:
        children = [
            (child, read_result(child.metrics, child.name))
            for child in tracking.download_children(parent, Path.cwd(), Path(folder))
        ]
    if not children[0][0].are_seeds:
        return [result for _, result in children]
    by_net: dict[str, dict[str, Result]] = {}
    for child, result in children:
        by_net.setdefault(child.net, {}).setdefault(child.variant, result)  # the newest is first
    return [group_result(f"{parent}/{net}", parent, runs, bootstrap) for net, runs in by_net.items()]


def add_explain(commands) -> None:
    text = "trace a model or a score to its origin: code, recipe, data, parents, versions, hardware"
    command = commands.add_parser("explain", help=text, description=text)
    command.add_argument(
        "what",
        metavar="RUN_OR_MODEL",
        help="models/sample/fcn8s.pt, or a run as `fcn compare` takes it; of a group of seeds, the metrics "
        "JSON of one",
    )
    command.set_defaults(run=explain)


def explain(arguments: argparse.Namespace) -> None:
    from pipeline.evaluation.explain import explain_model, explain_result
    from pipeline.evaluation.results import read_result

    path = Path(arguments.what)
    if path.suffix in MODEL_SUFFIXES:
        facts_of_files = explain_model(model_path(path))
    else:
        with metrics_file(arguments.what) as path:
            result = read_result(path, arguments.what)
            root = path.parent.parent.parent  # of metrics/PROFILE/NET.json: the project or a seed's folder
            facts_of_files = explain_result(result, root if (root / "models").is_dir() else Path())
    print("\n".join(facts.as_text() for facts in facts_of_files))


@contextmanager
def metrics_file(run: str) -> Iterator[Path]:
    """Give the metrics JSON of a run: a path to one, profile/net, or the id or name of an MLflow run."""
    from tempfile import TemporaryDirectory

    from pipeline import paths

    name = run if run.endswith(".json") else run_name(run)
    if run.endswith(".json"):
        yield require_scores(Path(run))
    elif named := paths.profile_and_net(name):
        yield paths.metrics(*named)
    else:
        from pipeline import tracking  # MLflow takes seconds to import

        with TemporaryDirectory() as folder:
            yield tracking.download_metrics(name, Path.cwd(), Path(folder))
