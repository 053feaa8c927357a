"""`fcn verify` and `fcn shards verify`: checks of this code and of shards."""

import argparse
import sys


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
    shards = commands.add_parser("shards", help="check shards", description="check shards")
    actions = shards.add_subparsers(title="actions", required=True, metavar="ACTION")

    text = "read every byte of a folder of shards and list all damage; exit code 1 if there is any"
    command = actions.add_parser("verify", help=text, description=text)
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
