"""The form of this project's docstrings: a line `name: meaning` describes one argument, key or attribute."""

import re
from collections.abc import Iterator

ENTRY = re.compile(r"([a-z_0-9]+(?:, [a-z_0-9]+)*): (.+)")


def entries(docstring: str) -> Iterator[tuple[str, str]]:
    """Yield (name, meaning) of each line that describes something."""
    for line in _joined(docstring):
        if match := ENTRY.fullmatch(line):
            for name in match[1].split(", "):
                yield name, match[2]


def as_markdown(docstring: str) -> str:
    """Return the docstring with those lines as a list."""
    lines, was_entry = [], False
    for line in _joined(docstring):
        match = ENTRY.fullmatch(line)
        if bool(match) != was_entry and line and lines and lines[-1]:
            lines.append("")  # Markdown begins and ends a list at an empty line
        was_entry = bool(match)
        lines.append(f"- `{match[1]}`: {escaped(match[2])}" if match else escaped(line))
    return "\n".join(lines)


def escaped(text: str) -> str:
    """Return the text with everything outside of code that Markdown would take for HTML, emphasis or a table."""
    parts = re.split(r"(`[^`]*`)", text)
    parts[::2] = [re.sub(r"([*_|])", r"\\\1", part).replace("<", "&lt;") for part in parts[::2]]
    return "".join(parts)


def _joined(docstring: str) -> list[str]:
    """Return the lines; an indented one continues the one before it."""
    lines: list[str] = []
    for line in docstring.splitlines():
        if line.startswith("    ") and lines:
            lines[-1] += " " + line.strip()
        else:
            lines.append(line)
    return lines
