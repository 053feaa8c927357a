"""Puts the nets' scores and pictures side by side in reports/<profile>, beside what was published, and prints them."""

from pipeline import config, paths
from pipeline.curves import read_curve
from pipeline.errors import exit_cleanly
from pipeline.evaluation import compare, confusion
from pipeline.evaluation.bootstrap import Bootstrap
from pipeline.report import gallery, write
from pipeline.report.page.page import Content


def main() -> None:
    profile_name, profile = config.load()
    results = [compare.read(paths.metrics(profile_name, net), net) for net in config.CHAIN]
    asked, figures = profile.evaluate, {net: paths.figures(profile_name, net) for net in config.CHAIN}
    bootstrap = Bootstrap(asked.num_resamples, asked.level, asked.seed)
    content = Content(
        profile=profile_name,
        classes=list(results[0].values["class_iu"]),
        results=results,
        scores=compare.score_table(results),
        differences=compare.difference_table(results, bootstrap),
        curves=[read_curve(paths.curve(profile_name, net)) for net in config.CHAIN],
        confusions=[confusion.read(folder / confusion.FILE) for folder in figures.values()],
        galleries=[gallery.read(folder / gallery.FOLDER) for folder in figures.values()],
        inspection=paths.inspection(profile_name),
    )
    shown = {net: folder / write.PREDICTIONS for net, folder in figures.items()}
    write.write(content, shown, paths.report(profile_name))
    print("\n\n".join(compare.as_text(table, "plain") for table in (content.scores, content.differences)))


if __name__ == "__main__":
    exit_cleanly(main)
