"""`fcn cluster`: jobs on a Ray cluster, and nodes of one."""

import argparse
import sys
from pathlib import Path

from pipeline.cluster import nodes
from pipeline.errors import INTERRUPTED
from pipeline.paths import CHAIN


def add_cluster(commands) -> None:
    text = "run the pipeline as a job on a Ray cluster, or start a cluster's nodes (docs/cluster.md)"
    cluster = commands.add_parser("cluster", help=text, description=text)
    ways = cluster.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _add_submit(ways)
    _add_follow(ways)
    _add_stop(ways)
    _add_head(ways)
    _add_join(ways)
    _add_token(ways)


def _add_submit(ways) -> None:
    text = (
        "run `dvc repro` on the cluster with this checkout's code and profile, and show its log until it ends; exit "
        "code 1 if it failed. Ctrl-C leaves the job running. Submitted again, it does what is left to do."
    )
    command = ways.add_parser("submit", help="run this checkout's pipeline as a job", description=text)
    nets = f"of {', '.join(CHAIN)}: train and score this one, and what it starts from (default: all)"
    command.add_argument("net", nargs="*", type=_net, metavar="NET", help=nets)
    command.add_argument(
        "--folder",
        required=True,
        help="absolute path on storage that all nodes share, for data, checkpoints and results; its parent must exist",
    )
    command.add_argument("--no-wait", action="store_true", help="do not show the log")
    _add_address(command)
    command.set_defaults(run=submit)


def _net(name: str) -> str:
    if name not in CHAIN:
        raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(CHAIN)}")
    return name


def submit(arguments: argparse.Namespace) -> None:
    from pipeline.cluster import jobs

    client = jobs.connect(arguments.address)
    job = jobs.submit(client, arguments.folder, arguments.net, Path())
    print(f"job {job}: submitted to {arguments.address}, working in {arguments.folder}", flush=True)
    if not arguments.no_wait:
        _follow(client, job)


def _add_follow(ways) -> None:
    text = "show a job's log until it ends; exit code 1 if it failed. Ctrl-C leaves the job running."
    command = ways.add_parser("follow", help="show a job's log", description=text)
    command.add_argument("job")
    _add_address(command)
    command.set_defaults(run=follow)


def follow(arguments: argparse.Namespace) -> None:
    from pipeline.cluster import jobs

    _follow(jobs.connect(arguments.address), arguments.job)


def _follow(client, job: str) -> None:
    from pipeline.cluster import jobs

    try:
        succeeded = jobs.follow(client, job)
    except KeyboardInterrupt:
        print(f"\nthe job goes on; watch it: fcn cluster follow {job}, or end it: fcn cluster stop {job}")
        sys.exit(INTERRUPTED)
    if not succeeded:
        sys.exit(1)


def _add_stop(ways) -> None:
    text = "end a job; submitted again, it goes on from its last checkpoint"
    command = ways.add_parser("stop", help=text, description=text)
    command.add_argument("job")
    _add_address(command)
    command.set_defaults(run=stop)


def stop(arguments: argparse.Namespace) -> None:
    from pipeline.cluster import jobs

    jobs.stop(jobs.connect(arguments.address), arguments.job)
    print(f"job {arguments.job}: ended")


def _add_head(ways) -> None:
    text = (
        "start a cluster's head on this machine, until Ctrl-C: with token authentication, and with the dashboard and "
        "job server on loopback alone"
    )
    command = ways.add_parser("head", help="start a cluster with this machine", description=text)
    command.add_argument(
        "--port", type=int, default=nodes.PORT, help="where other nodes join (default: %(default)s)"
    )
    _add_options(command)
    command.set_defaults(run=head)


def head(arguments: argparse.Namespace) -> None:
    nodes.start_head(arguments.port, arguments.options)


def _add_join(ways) -> None:
    text = "add this machine to a cluster, until Ctrl-C"
    command = ways.add_parser("join", help=text, description=text)
    command.add_argument("head", metavar="HOST:PORT", help="of the cluster's head")
    _add_options(command)
    command.set_defaults(run=join)


def join(arguments: argparse.Namespace) -> None:
    nodes.join(arguments.head, arguments.options)


def _add_token(ways) -> None:
    text = "make the token of a cluster yet to be started, unless there is one, and say where it is"
    ways.add_parser("token", help=text, description=text).set_defaults(run=token)


def token(_: argparse.Namespace) -> None:
    print(nodes.ensure_token())


def _add_address(command) -> None:
    command.add_argument(
        "--address", default=nodes.JOB_SERVER, help="of the job server (default: %(default)s)"
    )


def _add_options(command) -> None:
    text = "more options of `ray start`, after `--`: fcn cluster head -- --num-cpus 4"
    command.add_argument("options", nargs="*", help=text)
