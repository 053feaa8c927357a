"""Tables that read well as text and as a page, and our own Markdown as HTML."""

import html
import re
from collections.abc import Iterable, Iterator, Sequence


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table; every row has as many cells as the head."""
    lines = [head, ["---"] * len(head), *rows]
    assert all(len(line) == len(head) for line in lines), lines
    return "\n".join(
        "| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines
    )


def as_html(text: str) -> str:
    """HTML of the Markdown that this project writes: paragraphs, tables, lists with "* " and **bold**, nothing else."""
    return "\n".join(_block(block.splitlines()) for block in re.split(r"\n{2,}", text.strip()))


def _block(lines: list[str]) -> str:
    if lines[0].startswith("|"):
        head, _, *rows = ([_inline(cell) for cell in _cells(line)] for line in lines)
        return "\n".join(html_table(head, rows))
    if all(line.startswith("* ") for line in lines):
        return "<ul>" + "".join(f"<li>{_inline(line[2:])}</li>" for line in lines) + "</ul>"
    return f"<p>{_inline(' '.join(lines))}</p>"


def html_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """Lines of an HTML table whose cells are HTML."""
    yield "<table>"
    yield "<thead><tr>" + "".join(f'<th scope="col">{cell}</th>' for cell in head) + "</tr></thead>"
    yield "<tbody>"
    for first, *rest in rows:
        cells = "".join(f"<td>{cell}</td>" for cell in rest)
        yield f'<tr><th scope="row">{first}</th>{cells}</tr>'
    yield "</tbody></table>"


def _cells(line: str) -> list[str]:
    return [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line.strip()[1:-1])]


def _inline(text: str) -> str:
    return re.sub(r"\*\*(.+?)\*\*", r"<strong>\1</strong>", html.escape(text))
