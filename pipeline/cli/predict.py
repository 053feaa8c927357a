"""`fcn predict`, `fcn serve` and `fcn submit`: use a model on photos."""

import argparse
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from pipeline.cli.arguments import integer
from pipeline.cli.names import model_path
from pipeline.files import and_more, counted

MODEL_HELP = (
    "a .pt, .safetensors or .onnx file of this project; sample/fcn8s stands for models/sample/fcn8s.pt"
)


def add_predict(commands) -> None:
    text = (
        "segment photos with a model: for each, a PNG of its size whose palette indices are the classes, and once, "
        "classes.json; exit code 1 if a photo could not be read (docs/predict.md)"
    )
    command = commands.add_parser("predict", help="segment photos with a model", description=text)
    command.add_argument("model", type=Path, help=MODEL_HELP)
    command.add_argument(
        "inputs",
        nargs="+",
        metavar="INPUT",
        help="photos, folders of them, patterns such as '*.jpg', or - for a list on stdin",
    )
    command.add_argument("--output", type=Path, required=True, metavar="DIR", help="created if missing")
    command.add_argument(
        "--overlay", action="store_true", help="also write DIR/overlay/NAME.png: classes over the photo"
    )
    command.add_argument(
        "--scores",
        action="store_true",
        help="also write DIR/scores/NAME.npz: score, (classes, height, width) float16",
    )
    _add_tile(command)
    command.set_defaults(run=predict)


def predict(arguments: argparse.Namespace) -> None:
    from pipeline.models.predictor import Predictor
    from pipeline.prediction.photos import find_photos, other_files
    from pipeline.prediction.predict import predict_photos

    model = model_path(arguments.model)
    photos = find_photos(arguments.inputs, _lines_of_stdin())
    if others := other_files(arguments.inputs):
        names = and_more([str(file) for file in others])
        print(
            f"not read, {counted(len(others), 'file')} of other kinds: {names}; save photos as JPEG or PNG",
            file=sys.stderr,
        )
    unreadable = predict_photos(
        Predictor.load(model),
        photos,
        arguments.output,
        side=arguments.tile,
        overlay=arguments.overlay,
        scores=arguments.scores,
    )
    print(f"wrote {len(photos) - len(unreadable)} of {len(photos)} predictions to {arguments.output}")
    if unreadable:
        sys.exit(1)


def _lines_of_stdin() -> Iterator[str]:
    """Yield the file names on stdin, which may be in any encoding."""
    yield from map(os.fsdecode, sys.stdin.buffer)


def add_serve(commands) -> None:
    text = (
        "show on a web page of this machine what a model sees in photos, until Ctrl-C; for programs: POST /predict, "
        "GET /health (docs/serve.md)"
    )
    command = commands.add_parser("serve", help="show on a web page what a model sees", description=text)
    command.add_argument("model", type=Path, help=MODEL_HELP)
    command.add_argument(
        "--host",
        default="127.0.0.1",
        help="the address to listen on; the default, %(default)s, is reached from this machine alone",
    )
    command.add_argument(
        "--port", type=integer(0, 65535), default=8000, help="0: any free one (default: %(default)s)"
    )
    command.add_argument(
        "--allowed-host",
        type=_host,
        action="append",
        default=[],
        metavar="NAME",
        help="a name under which a proxy shows the page, such as segment.example.org; may be given several times",
    )
    command.add_argument(
        "--root-path",
        type=_root_path,
        default="",
        metavar="/PREFIX",
        help="under which a proxy shows the page, as in https://example.org/PREFIX/",
    )
    command.add_argument(
        "--max-mb",
        type=integer(1),
        default=32,
        metavar="MB",
        help="size of the largest request (default: %(default)s)",
    )
    command.add_argument(
        "--timeout",
        type=integer(1),
        default=120,
        metavar="SECONDS",
        help="from a request's start to its answer (default: %(default)s)",
    )
    command.add_argument(
        "--waiting",
        type=integer(0),
        default=4,
        metavar="N",
        help="photos that may wait while one is worked on; more are refused (default: %(default)s)",
    )
    _add_tile(command)
    command.set_defaults(run=serve)


def _host(text: str) -> str:
    if not re.fullmatch(r"[\w.-]+|[0-9a-fA-F:.]+", text):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a name such as segment.example.org; leave out https:// and the port, any is allowed"
        )
    return text


def _root_path(text: str) -> str:
    if not re.fullmatch(r"(/[\w.~-]+)*/?", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a path such as /segment")
    return text.rstrip("/")


def serve(arguments: argparse.Namespace) -> None:
    from pipeline.serving.app import Limits, Proxy, serve

    limits = Limits(arguments.max_mb * 10**6, arguments.timeout, arguments.waiting, arguments.tile)
    proxy = Proxy(tuple(arguments.allowed_host), arguments.root_path)
    serve(model_path(arguments.model), arguments.host, arguments.port, limits, proxy)


def add_submit(commands) -> None:
    text = (
        "pack predictions of a VOC2012 list for VOC's evaluation server, after checking that it would score all of "
        "them (docs/predict.md)"
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

    num_predictions = pack(
        model_path(arguments.source),
        arguments.voc,
        arguments.list,
        arguments.dest,
        competition=arguments.competition,
        side=arguments.tile,
    )
    print(
        f"wrote {arguments.dest}: {num_predictions} predictions of {arguments.list} for {arguments.competition}"
    )


def _add_tile(command) -> None:
    command.add_argument(
        "--tile",
        type=integer(1),
        metavar="PIXELS",
        help="run photos of more than PIXELS x PIXELS in overlapping tiles of that side, with the same result; "
        "smaller tiles take less memory and more time (default: 1536, or 5 times the net's overlap if that is more)",
    )
