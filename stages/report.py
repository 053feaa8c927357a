"""Puts the nets' scores and pictures side by side in reports/<profile>, and prints the table."""

import json
from pathlib import Path

from pipeline import config, paths, report
from pipeline.errors import exit_cleanly


def main() -> None:
    profile_name, _ = config.load()
    scores = {net: json.loads(paths.metrics(profile_name, net).read_text("utf-8")) for net in config.CHAIN}
    print(
        report.write_report(
            profile_name,
            scores,
            Path("figures", profile_name),
            paths.inspection(profile_name),
            paths.report(profile_name),
        )
    )


if __name__ == "__main__":
    exit_cleanly(main)
