"""`fcn verify`, a check of this code, and `fcn shards`: check, fetch and index shards."""

import argparse
import sys
from pathlib import Path


def add_verify(commands) -> None:
    text = "check this code against facts of the paper and of the reference release; exit code 1 if one fails"
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


def add_shards(commands) -> None:
    text = "check shards, fetch them from a store, and index anyone's WebDataset tars"
    shards = commands.add_parser("shards", help=text, description=text)
    actions = shards.add_subparsers(title="actions", required=True, metavar="ACTION")

    text = "read every byte of a folder of shards and list all damage; exit code 1 if there is any"
    command = actions.add_parser("verify", help=text, description=text)
    command.add_argument(
        "path", help="a split's folder, such as data/sample/shards/train, or s3://bucket/prefix"
    )
    command.set_defaults(run=verify_shards)

    text = "fill this node's cache with a split from a store, ahead of a run; run.cache of the profile sets the cache"
    command = actions.add_parser("fetch", help=text, description=text)
    command.add_argument(
        "path", help="a split's folder, such as data/voc/shards/train, or s3://bucket/prefix"
    )
    command.set_defaults(run=fetch_shards)

    text = "write the manifest of WebDataset tars that are there already; they are read once and checked"
    command = actions.add_parser("index", help=text, description=text)
    command.add_argument(
        "urls", nargs="+", metavar="URL", help="s3://bucket/train/{000000..000146}.tar, or a folder"
    )
    command.add_argument(
        "--image", default="jpg", help="the photo's name after the first dot (default: %(default)s)"
    )
    command.add_argument("--label", default="png", help="the label's, such as seg.png (default: %(default)s)")
    command.add_argument(
        "--classes", type=Path, required=True, help="a file with a class name a line, in label order"
    )
    command.add_argument("--split", choices=("train", "val"), required=True)
    command.add_argument("--output", type=Path, help="a folder for the manifest (default: beside the tars)")
    command.set_defaults(run=index_shards)


def verify_shards(arguments: argparse.Namespace) -> None:
    from pipeline.shards.read import all_damage

    is_whole = True
    for damage in all_damage(arguments.path):
        is_whole = False
        print(damage)
    if not is_whole:
        sys.exit(1)
    print(f"{arguments.path}: whole")


def fetch_shards(arguments: argparse.Namespace) -> None:
    from pipeline import config
    from pipeline.cache.client import NodeCache
    from pipeline.shards.read import fetch_all, open_shards

    profile = config.load()[1] if config.PARAMS.exists() else None
    node_cache = NodeCache(**profile.run.cache.model_dump()) if profile else NodeCache()
    shards = open_shards(arguments.path, node_cache=node_cache)
    num_fetched = fetch_all(shards)
    print(f"{arguments.path}: {num_fetched / 1e6:.1f} MB fetched, all of it is in {node_cache.path}")


def index_shards(arguments: argparse.Namespace) -> None:
    from pipeline.errors import DatasetError
    from pipeline.shards.foreign import Members, index

    try:
        lines = arguments.classes.read_text("utf-8-sig").splitlines()  # Windows writes a byte order mark
        classes = [line.strip() for line in lines if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text in UTF-8"
        raise DatasetError(
            f"--classes {arguments.classes} cannot be read: {reason}; name a file with a class name a line"
        ) from error
    members = Members(arguments.image.lower(), arguments.label.lower())
    num_samples = index(arguments.urls, members, classes, arguments.split, arguments.output)
    print(f"{num_samples} samples indexed")
