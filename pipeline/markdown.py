"""Tables that read well as text and as a page."""

from collections.abc import Iterable, Sequence


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table; every row has as many cells as the head."""
    lines = [head, ["---"] * len(head), *rows]
    assert all(len(line) == len(head) for line in lines), lines
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)
