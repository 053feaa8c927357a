"""The `fcn` command. Each subcommand imports what it needs when it runs, so that `fcn --help` is there at once."""

import argparse
import sys
from pathlib import Path

from pipeline.cli.cluster import add_cluster
from pipeline.cli.predict import add_predict, add_serve, add_submit
from pipeline.cli.tracking import add_register, add_tracking
from pipeline.errors import exit_cleanly


def main() -> None:
    """Runs the command line; a user's mistake ends in one message and exit code 2."""
    arguments = parser().parse_args()
    exit_cleanly(lambda: arguments.run(arguments))


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="fcn", description="Fully convolutional networks: check, convert and use them."
    )
    commands = top.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _add_verify(commands)
    _add_inspect(commands)
    _add_export(commands)
    _add_caffe(commands)
    _add_heatmap(commands)
    _add_shards(commands)
    add_predict(commands)
    add_serve(commands)
    add_submit(commands)
    add_cluster(commands)
    _add_compare(commands)
    _add_explain(commands)
    add_tracking(commands)
    add_register(commands)
    return top


def _add_verify(commands) -> None:
    text = "hold this code against the facts of the paper and the reference release; exit code 1 if one fails"
    commands.add_parser("verify", help=text, description=text).set_defaults(run=verify)


def verify(_: argparse.Namespace) -> None:
    from fcn.ledger import facts

    all_hold = True
    for fact in facts():
        all_hold &= fact.holds
        mark = "ok  " if fact.holds else "FAIL"
        print(f"{mark} {fact.name:44} expected {fact.expected}  found {fact.actual}  [{fact.source}]")
    if not all_hold:
        sys.exit(1)


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


def _add_export(commands) -> None:
    text = (
        "write a model for use elsewhere: ONNX or torch.export with any image size and batch, or safetensors"
    )
    command = commands.add_parser("export", help=text, description=text)
    command.add_argument("model", type=Path, help="a file of models/, such as models/sample/fcn8s.pt")
    command.add_argument("dest", type=Path, help="the file to write")
    command.add_argument("--format", choices=("onnx", "pt2", "safetensors"), required=True)
    command.set_defaults(run=export)


def export(arguments: argparse.Namespace) -> None:
    from pipeline.export.export import export_model

    difference = export_model(arguments.model, arguments.dest, arguments.format)
    print(
        f"wrote {arguments.dest}; read back, it differs from the model by {difference:.1e} of its largest score"
    )


def _add_caffe(commands) -> None:
    text = "read and write Caffe's files, without Caffe"
    caffe = commands.add_parser("caffe", help=text, description=text)
    ways = caffe.add_subparsers(title="directions", required=True, metavar="DIRECTION")

    text = "a .caffemodel of the reference release, or an ImageNet classifier, into a file of ours"
    command = ways.add_parser("import", help=text, description=text)
    command.add_argument("caffemodel", type=Path)
    command.add_argument(
        "dest", type=Path, help="the .pt file to write: a model, or a backbone of a classifier"
    )
    command.add_argument("--padding", choices=("reference", "tight"), help="if the file does not say it")
    command.add_argument(
        "--learn-upscore", action="store_true", help="keep upsampling kernels that mix classes"
    )
    command.set_defaults(run=import_caffe)

    text = "a model of ours into DEST.caffemodel and DEST.prototxt"
    command = ways.add_parser("export", help=text, description=text)
    command.add_argument("model", type=Path)
    command.add_argument("dest", type=Path, help="the files' path without ending")
    command.add_argument("--size", type=int, nargs=2, default=(500, 500), metavar=("H", "W"))
    command.set_defaults(run=export_caffe)


def import_caffe(arguments: argparse.Namespace) -> None:
    from pipeline.export import caffe

    imported = caffe.import_caffemodel(
        arguments.caffemodel,
        arguments.dest,
        padding=arguments.padding,
        learn_upscore=arguments.learn_upscore,
    )
    options = ", ".join(f"{key}={value}" for key, value in imported.options.items())
    print(f"wrote {arguments.dest}: a {imported.kind} with {options}")


def export_caffe(arguments: argparse.Namespace) -> None:
    from pipeline.export import caffe

    for path in caffe.export_caffe(arguments.model, arguments.dest, *arguments.size):
        print(f"wrote {path}")


def _add_heatmap(commands) -> None:
    text = "draw where an ImageNet classifier, cast into a fully convolutional net, sees a class"
    command = commands.add_parser("heatmap", help=text, description=text)
    command.add_argument("image", type=Path)
    command.add_argument(
        "--class",
        dest="class_name",
        required=True,
        help="dog, cat, bird, a category of ImageNet or its number",
    )
    command.add_argument("--out", type=Path, help="the PNG to write (default: IMAGE-CLASS.png here)")
    command.add_argument("--classifier", choices=("vgg16", "alexnet"), default="vgg16")
    command.add_argument("--weights", type=Path, help="torchvision's file, if it is here already")
    command.set_defaults(run=heatmap)


def heatmap(arguments: argparse.Namespace) -> None:
    from pipeline.prediction.heatmap import heatmap as draw

    out = arguments.out or Path(f"{arguments.image.stem}-{arguments.class_name.replace(' ', '_')}.png")
    peak = draw(
        arguments.image,
        arguments.class_name,
        out,
        classifier=arguments.classifier,
        weights=arguments.weights,
    )
    names = ", ".join(peak.classes.name.split(", ")[:3])
    print(
        f"wrote {out}; {names}: at most {peak.probability:.3f}, around column {peak.x:.0f}, row {peak.y:.0f}"
    )


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


def _add_shards(commands) -> None:
    text = "look after shards"
    shards = commands.add_parser("shards", help=text, description=text)
    ways = shards.add_subparsers(title="actions", required=True, metavar="ACTION")

    text = "read every byte of a folder of shards and say all that is damaged; exit code 1 if something is"
    command = ways.add_parser("verify", help=text, description=text)
    command.add_argument(
        "path", help="a split's folder, such as data/sample/shards/train, or s3://bucket/prefix"
    )
    command.set_defaults(run=verify_shards)


def verify_shards(arguments: argparse.Namespace) -> None:
    from pipeline.shards.read import all_damage

    is_whole = True
    for damage in all_damage(arguments.path):
        is_whole = False
        print(damage)
    if not is_whole:
        sys.exit(1)
    print(f"{arguments.path}: whole")


if __name__ == "__main__":
    main()
