"""Write the report of a profile, reports/<profile>: scores, differences, figures and images of its nets."""

from pipeline import config, paths
from pipeline.evaluation.bootstrap import Bootstrap
from pipeline.report import content, write
from pipeline.surroundings import run_command
from pipeline.tables import render


def main() -> None:
    profile_name, profile = config.load()
    evaluate = profile.evaluate
    bootstrap = Bootstrap(evaluate.num_resamples, evaluate.level, evaluate.seed)
    report = content.read(profile_name, bootstrap)
    write.write(report, paths.report(profile_name))
    print(render([report.scores, report.differences], "plain"))


if __name__ == "__main__":
    run_command(main)
