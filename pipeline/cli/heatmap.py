"""`fcn heatmap`: where an ImageNet classifier sees a class."""

import argparse
from pathlib import Path


def add_heatmap(commands) -> None:
    text = "draw where an ImageNet classifier, converted to a fully convolutional net, sees a class"
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
    command.add_argument("--weights", type=Path, help="torchvision's file (default: downloaded)")
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
