"""`fcn predict`: what a net sees in photos."""

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
    command.add_argument(
        "--tile",
        type=_side,
        default=1536,  # VGG-16 takes about 2 GB for it
        metavar="PIXELS",
        help="run what has more than PIXELS x PIXELS in overlapping tiles of that side, with the same result; "
        "less takes less memory and more time (default: %(default)s)",
    )
    command.set_defaults(run=predict)


def _side(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of pixels from 1 on")
    return int(text)


def predict(arguments: argparse.Namespace) -> None:
    from pipeline.photos import find_photos
    from pipeline.predict import predict_photos

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
