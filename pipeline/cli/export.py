"""`fcn export` and `fcn caffe`: models for other programs, and weights from and for Caffe."""

import argparse
from pathlib import Path

from pipeline.cli.arguments import integer
from pipeline.cli.names import model_path


def add_export(commands) -> None:
    text = "write a model for other programs: ONNX or torch.export for images and batches of any size, or safetensors"
    command = commands.add_parser("export", help=text, description=text)
    command.add_argument(
        "model", type=Path, help="a model file, such as models/sample/fcn8s.pt, or sample/fcn8s for short"
    )
    command.add_argument("dest", type=Path, help="the file to write: .onnx, .pt2 or .safetensors")
    command.set_defaults(run=export)


def export(arguments: argparse.Namespace) -> None:
    from pipeline.export.export import export_model

    difference = export_model(model_path(arguments.model), arguments.dest)
    print(
        f"wrote {arguments.dest}; read back, it differs from the model by {difference:.1e} of its largest score"
    )


def add_caffe(commands) -> None:
    text = "read and write Caffe's files, without Caffe"
    caffe = commands.add_parser("caffe", help=text, description=text)
    directions = caffe.add_subparsers(title="directions", required=True, metavar="DIRECTION")

    text = "convert a .caffemodel of the reference release, or of an ImageNet classifier, to a .pt file"
    command = directions.add_parser("import", help=text, description=text)
    command.add_argument("caffemodel", type=Path)
    command.add_argument(
        "dest", type=Path, help="the .pt file to write: a model, or a backbone if it is a classifier"
    )
    command.add_argument("--padding", choices=("reference", "tight"), help="if the file does not name it")
    command.add_argument(
        "--learn-upscore", action="store_true", help="keep upsampling kernels that mix classes"
    )
    command.set_defaults(run=import_caffe)

    text = "convert a model file to DEST.caffemodel and DEST.prototxt"
    command = directions.add_parser("export", help=text, description=text)
    command.add_argument("model", type=Path)
    command.add_argument("dest", type=Path, help="path of both files, without suffix")
    command.add_argument("--size", type=integer(1), nargs=2, default=(500, 500), metavar=("H", "W"))
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

    for path in caffe.export_caffe(model_path(arguments.model), arguments.dest, *arguments.size):
        print(f"wrote {path}")
