"""The `fcn` command. Each subcommand imports its libraries when it runs, so that `fcn --help` is fast."""

import argparse

from pipeline.cli.checks import add_shards, add_verify
from pipeline.cli.cluster import add_cluster
from pipeline.cli.doctor import add_doctor
from pipeline.cli.export import add_caffe, add_export
from pipeline.cli.heatmap import add_heatmap
from pipeline.cli.importing import add_import
from pipeline.cli.init import add_init
from pipeline.cli.predict import add_predict, add_serve, add_submit
from pipeline.cli.results import add_compare, add_explain, add_inspect
from pipeline.cli.seeds import add_seeds
from pipeline.cli.sweep import add_sweep
from pipeline.cli.tracking import add_register, add_tracking
from pipeline.surroundings import run_command


def main() -> None:
    """Run the command line; a user's mistake ends with one message and exit code 2."""
    arguments = parser().parse_args()
    run_command(lambda: arguments.run(arguments))


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="fcn", description="Fully convolutional networks: check, convert and use them."
    )
    commands = top.add_subparsers(title="commands", required=True, metavar="COMMAND")
    add_doctor(commands)
    add_import(commands)
    add_init(commands)
    add_verify(commands)
    add_inspect(commands)
    add_export(commands)
    add_caffe(commands)
    add_heatmap(commands)
    add_shards(commands)
    add_predict(commands)
    add_serve(commands)
    add_submit(commands)
    add_cluster(commands)
    add_seeds(commands)
    add_sweep(commands)
    add_compare(commands)
    add_explain(commands)
    add_tracking(commands)
    add_register(commands)
    return top


if __name__ == "__main__":
    main()
