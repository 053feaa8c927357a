"""`fcn cluster`: jobs on a Ray cluster, and nodes of one."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

# jobs and start are imported where they are needed: with them come Ray, which takes seconds, and psutil
from pipeline.cluster import nodes
from pipeline.errors import INTERRUPTED
from pipeline.paths import CHAIN


def add_cluster(commands) -> None:
    text = "run the pipeline as a job on a Ray cluster, or start a cluster's nodes (docs/cluster.md)"
    cluster = commands.add_parser("cluster", help=text, description=text)
    subcommands = cluster.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def add(name: str, run: Callable[[argparse.Namespace], None], help: str, details: str = ""):
        command = subcommands.add_parser(name, help=help, description=f"{help}{details}")
        command.set_defaults(run=run)
        return command

    def add_job(command) -> None:
        command.add_argument("job")
        add_address(command)

    def add_address(command) -> None:
        command.add_argument(
            "--address", default=nodes.JOB_SERVER, help="of the job server (default: %(default)s)"
        )

    def add_ray_options(command) -> None:
        text = "more options of `ray start`, after `--`: fcn cluster head -- --num-cpus 4"
        command.add_argument("options", nargs="*", help=text)

    command = add(
        "submit",
        submit,
        "run this checkout's pipeline as a job",
        ": `dvc repro` on the cluster with this checkout's code and profile. Shows its log until it ends; exit code 1 "
        "if it failed. Ctrl-C leaves the job running. Submitted again, it does what is left to do.",
    )
    nets = f"of {', '.join(CHAIN)}: train and score this one, and what it starts from (default: all)"
    command.add_argument("net", nargs="*", type=_net, metavar="NET", help=nets)
    folder = "absolute path on storage that all nodes share, for data, checkpoints and results; its parent must exist"
    command.add_argument("--folder", required=True, help=folder)
    command.add_argument("--no-wait", action="store_true", help="do not show the log")
    add_address(command)

    details = " until it ends; exit code 1 if it failed. Ctrl-C leaves the job running."
    add_job(add("follow", follow, "show a job's log", details))
    add_job(add("stop", stop, "end a job; submitted again, it goes on from its last checkpoint"))

    details = (
        ", until Ctrl-C: with token authentication, and with the dashboard and job server on loopback alone"
    )
    command = add("head", head, "start a cluster with this machine as its head", details)
    text = "where other nodes join (default: %(default)s)"
    command.add_argument("--port", type=int, default=nodes.PORT, help=text)
    add_ray_options(command)

    command = add("join", join, "add this machine to a cluster, until Ctrl-C")
    command.add_argument("head", metavar="HOST:PORT", help="of the cluster's head")
    add_ray_options(command)

    add(
        "token",
        token,
        "make the token of a cluster yet to be started, unless there is one, and print its path",
    )


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


def stop(arguments: argparse.Namespace) -> None:
    from pipeline.cluster import jobs

    jobs.stop(jobs.connect(arguments.address), arguments.job)
    print(f"job {arguments.job}: ended")


def head(arguments: argparse.Namespace) -> None:
    from pipeline.cluster import start

    start.head(arguments.port, arguments.options)


def join(arguments: argparse.Namespace) -> None:
    from pipeline.cluster import start

    start.join(arguments.head, arguments.options)


def token(_: argparse.Namespace) -> None:
    print(nodes.ensure_token())
