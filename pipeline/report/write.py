"""The folder reports/<profile>: README.md for a terminal or a forge, index.html for a browser."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.evaluation.compare import as_text
from pipeline.report import plots
from pipeline.report.page.page import Content, write_page

PAGE = "index.html"
PREDICTIONS = "predictions.png"  # of the pictures of a net, the one that README.md shows


def write(content: Content, pictures: Mapping[str, Path], dest: Path) -> None:
    """Writes README.md with tables, bars, pictures and what the data are like, what it shows, and the page.

    pictures: of each net, the figure that README.md shows.
    """
    dest.mkdir(parents=True, exist_ok=True)
    scores: dict[str, dict[str, Any]] = {one.name: one.values for one in content.results}
    plots.draw_class_bars(scores, dest / "class_iu.png")
    tables = [as_text(table, "markdown") for table in (content.scores, content.differences)]
    parts = [
        f"# FCN on profile `{content.profile}`",
        f"[{PAGE}]({PAGE}), opened in a browser, shows the same with curves and with every layer of the images.",
        *tables,
    ]
    for net, values in scores.items():
        if values["num_leaked"]:
            parts.append(
                f"**LEAK: {net} was trained on {values['num_leaked']} of the {values['num_images']} images it is "
                "scored on.** Why that was allowed stands below, under Data."
            )
    parts.append("![IU of every class](class_iu.png)")
    for net in scores:
        picture = dest / f"{net}.png"
        picture.write_bytes(pictures[net].read_bytes())
        parts.append(f"## {net}\n\n![image, label, prediction and error of {net}]({picture.name})")
    (dest / "inspection.png").write_bytes((content.inspection / "inspection.png").read_bytes())
    parts.append("## Data\n\n![classes and sizes](inspection.png)")
    parts += [
        (content.inspection / f"{name}.md").read_text("utf-8").strip() for name in ("inspection", "leaks")
    ]
    (dest / "README.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    write_page(dest / PAGE, content)
