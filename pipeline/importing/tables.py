"""Class tables: names with colours or values, in the files that tools and data sets put beside their masks."""

import re
from collections.abc import Sequence

from pipeline.errors import DatasetError
from pipeline.importing.classes import COLOUR, rgb
from pipeline.importing.masks import Colour, Entry
from pipeline.importing.source import Source

NAMES = (  # the first that is there is taken
    "labelmap.txt",
    "class_mapping.csv",
    "_classes.csv",
    "class_dict.csv",
    "classes.csv",
    "label_colors.txt",
    "label_colors.csv",
    "classes.txt",
    "class_names.txt",
    "labels.txt",
)
_NAME = ("name", "class", "class_name", "label", "names", "label_name")
_VALUE = ("pixel value", "value", "pixel_value", "id", "index", "class_id", "label_id")
_COLOUR = ("color", "colour", "class_color", "rgb", "color_rgb")
_CHANNELS = (("r", "g", "b"), ("red", "green", "blue"))


def find(source: Source) -> str | None:
    """Return the path of the class table: by the order of NAMES, the one nearest to the root.

    Tables of the same name in several folders, such as one a split, must be equal.
    """
    for name in NAMES:
        paths = source.named(name)
        if paths:
            check_equal(source, paths)
            return paths[0]
    return None


def check_equal(source: Source, paths: Sequence[str]) -> None:
    first = source.lines(paths[0])
    for path in paths[1:]:
        if source.lines(path) != first:
            raise DatasetError(f"{path} and {paths[0]} differ; keep one table for all masks")


def read(source: Source, path: str) -> list[Entry]:
    """Return the classes of a table in the file's order."""
    name = path.rpartition("/")[2]
    if name == "labelmap.txt":
        entries = _labelmap(source, path)
    elif name.endswith(".csv"):
        entries = _csv(source, path)
    elif name == "label_colors.txt":
        entries = _label_colors(source, path)
    else:
        entries = [Entry(line) for line in source.lines(path)]
    if not entries:
        raise DatasetError(f"{path}: names no class")
    return entries


def _labelmap(source: Source, path: str) -> list[Entry]:
    """CVAT's: name:r,g,b:parts:actions; the colour may be empty."""
    entries = []
    for line in source.lines(path):
        if line.startswith("#"):
            continue
        fields = line.rsplit(":", 3)
        if len(fields) < 4:
            fields = [*line.split(":"), "", ""]
        name, colour = fields[0], fields[1].strip()
        entries.append(Entry(name.strip(), _colour(colour.split(","), path, line) if colour else None))
    return entries


def _label_colors(source: Source, path: str) -> list[Entry]:
    """CamVid's: r g b, then the name."""
    entries = []
    for line in source.lines(path):
        match = re.fullmatch(r"(\d+)[ ,]+(\d+)[ ,]+(\d+)[\s,]+(.+)", line)
        if match is None:
            raise DatasetError(f"{path}: {line!r}; expected r g b and a name")
        entries.append(Entry(match[4].strip(), _colour(match.groups()[:3], path, line)))
    return entries


def _csv(source: Source, path: str) -> list[Entry]:
    rows = source.csv(path)
    columns = list(rows[0]) if rows else []

    def column(choices: Sequence[str]) -> str | None:
        return next((name for name in choices if name in columns), None)

    name, value, colour = column(_NAME), column(_VALUE), column(_COLOUR)
    channels = next((three for three in _CHANNELS if all(one in columns for one in three)), None)
    if rows and (name is None or not (value or colour or channels)):
        raise DatasetError(
            f"{path}: columns {', '.join(columns)}; expected a name and r, g, b, a colour or a pixel value"
        )
    entries = []
    for row in rows:
        text, number = row.get(name or "", ""), None
        found: Colour | None = None
        if not text:
            raise DatasetError(f"{path}: a line without a class name")
        if channels:
            found = _colour([row[one] for one in channels], path, text)
        elif colour and COLOUR.fullmatch(row[colour]):
            found = rgb(row[colour])
        elif colour and len(parts := re.findall(r"\d+", row[colour])) == 3:
            found = _colour(parts, path, text)
        elif colour:
            number = _whole(row[colour], path, text)
        if value and not channels:
            number = _whole(row[value], path, text)
        entries.append(Entry(text, found, number))
    return entries


def _colour(parts: Sequence[str], path: str, what: str) -> Colour:
    numbers = [_whole(part, path, what) for part in parts]
    if len(numbers) != 3 or max(numbers) > 255:
        raise DatasetError(f"{path}: {what!r}: expected three numbers from 0 to 255")
    return numbers[0], numbers[1], numbers[2]


def _whole(text: str, path: str, what: str) -> int:
    if not text.strip().isdecimal() or len(text) > 9:
        raise DatasetError(f"{path}: {what!r}: {text!r} is not a whole number from 0 on")
    return int(text)
