"""The folder reports/<profile>: README.md for a terminal or a forge, index.html for a browser."""

from pathlib import Path

from pipeline import files
from pipeline.evaluation.results import leak_warning
from pipeline.inspection import near_duplicates
from pipeline.report import canvas, plots
from pipeline.report.content import Content
from pipeline.report.page import write_page
from pipeline.tables import render

PAGE = "index.html"


def write(content: Content, dest: Path) -> None:
    """Write the whole folder or none of it."""
    values = {result.name: result.values for result in content.results}
    warnings = [warning for net in values if (warning := leak_warning(net, values[net]))]
    pairs = content.inspection / near_duplicates.PICTURE
    with files.whole_folder(dest) as folder:
        canvas.save(plots.class_bars(values), folder / "class_iu.png")
        _copy(content.inspection / "inspection.png", folder / "inspection.png")
        for net, figures in zip(values, content.figures, strict=True):
            _copy(figures / plots.PREDICTIONS, folder / f"{net}.png")
        if pairs.exists():
            _copy(pairs, folder / pairs.name)
        parts = [
            f"# FCN on profile `{content.profile}`",
            f"[{PAGE}]({PAGE}), opened in a browser, shows the same with curves and every layer of the images.",
            render([content.scores, content.differences], "markdown"),
            *(
                f"**{warning}.** The section Data has the reason why this was allowed."
                for warning in warnings
            ),
            "![IU of every class](class_iu.png)",
            *(f"## {net}\n\n![image, label, prediction and error of {net}]({net}.png)" for net in values),
            "## Data\n\n![classes and sizes](inspection.png)",
            *(
                (content.inspection / name).read_text("utf-8").strip()
                for name in ("inspection.md", "leaks.md")
            ),
            *([f"![near duplicates of val and train]({pairs.name})"] if pairs.exists() else []),
        ]
        files.write_text(folder / "README.md", "\n\n".join(parts) + "\n")
        write_page(folder / PAGE, content)


def _copy(source: Path, dest: Path) -> None:
    dest.write_bytes(source.read_bytes())
