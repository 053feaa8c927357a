"""Tables and paragraphs as plain text, Markdown or HTML."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

FORMATS = ("plain", "markdown", "html")


@dataclass(frozen=True)
class Table:
    """A table with notes under it.

    head: the names of the columns.
    rows: as many cells each as the head; a cell that is not text is shown by str().
    notes: sentences, one paragraph each.
    """

    head: Sequence[str]
    rows: Sequence[Sequence[object]]
    notes: Sequence[str] = ()


def render(blocks: Iterable[Table | str], form: str) -> str:
    """Return tables and paragraphs as one text.

    blocks: in their order; a string is one paragraph of plain words.
    form: one of FORMATS.
    """
    if form not in FORMATS:
        raise ValueError(f"unknown format {form!r}; known: {', '.join(FORMATS)}")
    parts: list[str] = []
    for block in blocks:
        if isinstance(block, Table):
            parts.append(_table(block, form))
        paragraphs = block.notes if isinstance(block, Table) else [block]
        parts += [f"<p>{escape(text)}</p>" if form == "html" else text for text in paragraphs]
    return "\n\n".join(parts)


def _table(table: Table, form: str) -> str:
    from tabulate import tabulate  # training imports this module where tabulate is missing

    assert all(len(row) == len(table.head) for row in table.rows), table
    head, *rows = ([str(cell) for cell in row] for row in (table.head, *table.rows))
    if form == "plain":  # the head as a row: as such, it would widen its columns by two spaces
        return tabulate([head, *rows], tablefmt="plain", disable_numparse=True)
    if form == "html":
        return tabulate(rows, head, tablefmt="html", disable_numparse=True, stralign=None)
    head, *rows = ([cell.replace("|", "\\|") for cell in row] for row in (head, *rows))
    return tabulate(rows, head, tablefmt="github", disable_numparse=True)
