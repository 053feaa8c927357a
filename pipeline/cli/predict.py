"""`fcn predict`: what a net sees in photos; `fcn serve`: on a page; `fcn submit`: as VOC's server takes it."""

import argparse
import sys
from pathlib import Path


def add_predict(commands) -> None:
    text = (
        "segment photos with a model: for each, a PNG of its size whose palette indices are the classes, and once, "
        "classes.json; exit code 1 if a photo could not be read (docs/predict.md)"
    )
    command = commands.add_parser("predict", help="segment photos with a model", description=text)
    command.add_argument("model", type=Path, help="a .pt, .safetensors or .onnx file of this project")
    command.add_argument(
        "inputs",
        nargs="+",
        metavar="INPUT",
        help="photos, folders of them, patterns such as '*.jpg', or - for a list on stdin",
    )
    command.add_argument("--output", type=Path, required=True, metavar="DIR", help="made if it is not there")
    command.add_argument(
        "--overlay", action="store_true", help="DIR/overlay/NAME.png, too: classes over the photo"
    )
    command.add_argument(
        "--scores",
        action="store_true",
        help="DIR/scores/NAME.npz, too: score, (classes, height, width) float16",
    )
    _add_tile(command)
    command.set_defaults(run=predict)


def _add_tile(command) -> None:
    command.add_argument(
        "--tile",
        type=_side,
        default=1536,  # VGG-16 takes about 2 GB for it
        metavar="PIXELS",
        help="run what has more than PIXELS x PIXELS in overlapping tiles of that side, with the same result; "
        "less takes less memory and more time (default: %(default)s)",
    )


def _side(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of pixels from 1 on")
    return int(text)


def _positive(text: str) -> int:
    if not _count(text):
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1 on")
    return int(text)


def predict(arguments: argparse.Namespace) -> None:
    from pipeline.prediction.photos import find_photos
    from pipeline.prediction.predict import predict_photos

    photos = find_photos(arguments.inputs, sys.stdin)
    failed = predict_photos(
        arguments.model,
        photos,
        arguments.output,
        side=arguments.tile,
        overlay=arguments.overlay,
        scores=arguments.scores,
    )
    print(f"wrote {len(photos) - len(failed)} of {len(photos)} predictions to {arguments.output}")
    if failed:
        sys.exit(1)


def add_serve(commands) -> None:
    text = (
        "show what a model sees in photos on a page of this machine, until Ctrl-C; and to programs: POST /predict, "
        "GET /health (docs/serve.md)"
    )
    command = commands.add_parser("serve", help="show on a web page what a model sees", description=text)
    command.add_argument("model", type=Path, help="a .pt, .safetensors or .onnx file of this project")
    command.add_argument(
        "--host",
        default="127.0.0.1",
        help="the address to listen on; the default, %(default)s, is reached from this machine alone",
    )
    command.add_argument("--port", type=_port, default=8000, help="0: any free one (default: %(default)s)")
    command.add_argument(
        "--max-mb", type=_positive, default=32, metavar="MB", help="largest request (default: %(default)s)"
    )
    command.add_argument(
        "--timeout",
        type=_positive,
        default=120,
        metavar="SECONDS",
        help="longest that a request may take (default: %(default)s)",
    )
    command.add_argument(
        "--waiting",
        type=_count,
        default=4,
        metavar="N",
        help="photos that may wait while one is worked on; more are refused (default: %(default)s)",
    )
    _add_tile(command)
    command.set_defaults(run=serve)


def _port(text: str) -> int:
    if _count(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text} is no port; expected 0 to 65535")
    return int(text)


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 0 on")
    return int(text)


def serve(arguments: argparse.Namespace) -> None:
    from pipeline.serving.app import Limits, serve

    limits = Limits(arguments.max_mb * 10**6, arguments.timeout, arguments.waiting, arguments.tile)
    serve(arguments.model, arguments.host, arguments.port, limits)


def add_submit(commands) -> None:
    text = (
        "pack predictions of a VOC2012 list for VOC's evaluation server, once all of them are found to be what it "
        "scores (docs/predict.md)"
    )
    command = commands.add_parser("submit", help="pack predictions for VOC's server", description=text)
    command.add_argument(
        "source", type=Path, help="a folder of `fcn predict`, or a model file to run on the list's images"
    )
    command.add_argument("dest", type=Path, help="the .tar to write")
    command.add_argument(
        "--voc",
        type=Path,
        required=True,
        metavar="DIR",
        help="the folder that holds JPEGImages and ImageSets, such as VOCdevkit/VOC2012",
    )
    command.add_argument(
        "--list", default="test", help="of ImageSets/Segmentation, without .txt (default: %(default)s)"
    )
    command.add_argument(
        "--competition",
        choices=("comp5", "comp6"),
        default="comp6",
        help="comp5: trained on VOC alone; comp6: on SBD or others, too (default: %(default)s)",
    )
    _add_tile(command)
    command.set_defaults(run=submit)


def submit(arguments: argparse.Namespace) -> None:
    from pipeline.prediction.voc_package import submit as pack

    num = pack(
        arguments.source,
        arguments.voc,
        arguments.list,
        arguments.dest,
        competition=arguments.competition,
        side=arguments.tile,
    )
    print(f"wrote {arguments.dest}: {num} predictions of {arguments.list} for {arguments.competition}")
