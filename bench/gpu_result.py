"""The results of bench.gpu_all: rows of measured values, written as JSON and as a Markdown table."""

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pipeline.files import write_json, write_text


@dataclass(frozen=True)
class Row:
    """One measured value.

    name: what was measured.
    value: the number; None if the row is text alone.
    unit: of value and limit.
    limit: the target, and at_most its sense; None for a value without one.
    note: more about it, in words.
    """

    name: str
    value: float | None
    unit: str = ""
    limit: float | None = None
    at_most: bool = True
    note: str = ""

    @property
    def verdict(self) -> str:
        """Return "met" or "missed", or "" without a limit. NaN misses every limit."""
        if self.limit is None or self.value is None:
            return ""
        is_met = self.value <= self.limit if self.at_most else self.value >= self.limit
        return "met" if is_met else "missed"

    @property
    def measured(self) -> str:
        parts = [] if self.value is None else [f"{_short(self.value)} {self.unit}".strip()]
        return "; ".join([*parts, self.note] if self.note else parts)

    @property
    def target(self) -> str:
        if self.limit is None:
            return ""
        sense = "at most" if self.at_most else "at least"
        return f"{sense} {_short(self.limit)} {self.unit}".strip()


@dataclass
class PartResult:
    """The outcome of one part.

    status: "running", "done", "failed", "stopped" at the end of its time, or "skipped".
    reason: of every status but "done".
    """

    name: str
    status: str = "running"
    reason: str = ""
    seconds: float = 0.0
    rows: list[Row] = field(default_factory=list)


@dataclass
class Results:
    """All parts so far, and the files that hold them.

    about: card, versions, date and command, by name.
    """

    folder: Path
    about: dict[str, Any]
    parts: list[PartResult] = field(default_factory=list)

    def write(self) -> None:
        """Write gpu.json and gpu.md, each whole or not at all."""
        parts = [asdict(part) | {"rows": [_as_json(row) for row in part.rows]} for part in self.parts]
        write_json(self.folder / "gpu.json", {"about": self.about, "parts": parts})
        write_text(self.folder / "gpu.md", self.markdown())

    def markdown(self) -> str:
        """Return the table for docs/benchmarks.md."""
        rows = [
            (part.name, row.name, row.measured, row.target, row.verdict)
            for part in self.parts
            for row in part.rows
        ]
        incomplete = [
            f"- {part.name}: {part.status} after {part.seconds:.0f} s: {_first_line(part.reason)}"
            for part in self.parts
            if part.status != "done"
        ]
        blocks = [
            ", ".join(f"{name} {value}" for name, value in self.about.items()),
            table(("part", "what", "measured", "target", ""), rows),
            "Seconds: " + ", ".join(f"{part.name} {part.seconds:.0f}" for part in self.parts) + ".",
            "\n".join(incomplete) or "No part failed, was stopped or was skipped.",
        ]
        return "\n\n".join(blocks) + "\n"


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Return a Markdown table. Written out here, because the renderer of pipeline.tables needs more packages."""
    head = list(head)
    cells = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in cells)


def _as_json(row: Row) -> dict[str, Any]:
    is_number = row.value is not None and math.isfinite(row.value)  # JSON has no NaN
    return asdict(row) | {"value": row.value if is_number else None, "verdict": row.verdict}


def _first_line(text: str) -> str:
    """Return a message's first line; of a traceback the last, which names the error."""
    lines = text.strip().splitlines() or [""]
    return lines[-1] if lines[0].startswith("Traceback") else lines[0]


def _short(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 100 and value < 1e6 else f"{value:.3g}"
