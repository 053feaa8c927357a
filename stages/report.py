"""Puts the nets' scores and pictures side by side in reports/<profile>, beside what was published, and prints them."""

from pathlib import Path

from pipeline import compare, config, paths, report
from pipeline.errors import exit_cleanly
from pipeline.uncertainty import Bootstrap


def main() -> None:
    profile_name, profile = config.load()
    results = [compare.read(paths.metrics(profile_name, net), net) for net in config.CHAIN]
    asked = profile.evaluate
    bootstrap = Bootstrap(asked.num_resamples, asked.level, asked.seed)
    tables = [compare.score_table(results), compare.difference_table(results, bootstrap)]
    report.write_report(
        profile_name,
        {result.name: result.values for result in results},
        "\n\n".join(compare.as_text(table, "markdown") for table in tables),
        Path("figures", profile_name),
        paths.inspection(profile_name),
        paths.report(profile_name),
    )
    print("\n\n".join(compare.as_text(table, "plain") for table in tables))


if __name__ == "__main__":
    exit_cleanly(main)
