"""Trains one net of the chain on Ray workers: python -m stages.train fcn32s|fcn16s|fcn8s."""

import argparse
from pathlib import Path

from pipeline import config
from pipeline.surroundings import run_command
from pipeline.training import driver


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("net", choices=config.CHAIN)
    net = parser.parse_args().net
    profile_name, profile = config.load()
    driver.train_net(profile_name, profile, net, Path.cwd())


if __name__ == "__main__":
    run_command(main)
