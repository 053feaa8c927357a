"""Class tables: names with colours or values, in the files that tools and data sets put beside their masks."""

import posixpath
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fcn import IGNORE_LABEL
from pipeline.errors import DatasetError
from pipeline.importing.classes import COLOUR, VOID, ClassMap, hex_colour, rgb
from pipeline.importing.export import UNKNOWN, order_classes
from pipeline.importing.source import Source

Colour = tuple[int, int, int]
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


@dataclass(frozen=True)
class Table:
    """What the values and colours of masks mean.

    classes: names in the order of the label.
    colours: the class, or 255 (void), of colours.
    values: the class, or 255, of stored values.
    has_values: the values were stated. Otherwise they follow from the order of the colours, which are looked up first.
    """

    classes: tuple[str, ...]
    colours: Mapping[Colour, int]
    values: Mapping[int, int]
    has_values: bool

    def colour_table(self) -> NDArray[np.uint8]:
        """Return the class of each colour 65536 R + 256 G + B, UNKNOWN for all others; (2**24,) uint8."""
        return _colour_table(tuple(self.colours.items()))


class Entry(NamedTuple):
    """One class of a class table; a colour or a value or neither."""

    name: str
    colour: Colour | None = None
    value: int | None = None


def find(source: Source) -> str | None:
    """Return the path of the class table: by the order of NAMES, in any case, the one nearest to the root.

    Tables of the same name in several folders, such as one a split, must be equal.
    """
    by_name: dict[str, list[str]] = defaultdict(list)
    for path in sorted(source.files, key=lambda path: (path.count("/"), path)):
        by_name[posixpath.basename(path).lower()].append(path)
    for name in NAMES:
        if paths := by_name[name]:
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
    name = posixpath.basename(path).lower()
    if name == "labelmap.txt":
        entries = _labelmap(source, path)
    elif name.endswith(".csv"):
        entries = _csv(source, path)
    elif name == "label_colors.txt":
        entries = _label_colors(source, path)
    else:
        lines = source.lines(path)
        if lines[:1] == ["__ignore__"]:  # labelme's labels.txt begins with -1, which no mask holds
            del lines[0]
        entries = [Entry(line) for line in lines]
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
        if value:
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


def make_table(
    entries: Iterable[Entry], class_map: ClassMap, where: str, background: str | None = None
) -> Table:
    """Return the table of a class list, and of the values and colours that --map names.

    Entries called void or ignore become void, unless --map names them. The background class is moved to the front.

    background: its name; None: found by the usual names.
    """
    entries = list(entries)
    listed = {entry.name for entry in entries}
    is_void = set(class_map.void_among(listed))
    extra = [
        *(Entry(name, colour=colour) for colour, name in class_map.colours.items()),
        *(Entry(name, value=value) for value, name in class_map.values.items() if str(value) not in listed),
    ]
    names = [entry.name for entry in entries if entry.name not in is_void]
    for entry in extra:
        if entry.name != VOID and entry.name not in names:
            names.append(entry.name)
    classes = order_classes(names, where, add_background=False, first=background)
    if not classes:
        raise DatasetError(f"{where}: names no class")
    index = {name: number for number, name in enumerate(classes)} | dict.fromkeys(is_void, IGNORE_LABEL)
    colours: dict[Colour, int] = {}
    values: dict[int, int] = {}
    for number, entry in enumerate(entries):
        if (
            entry.colour is not None
            and colours.setdefault(entry.colour, index[entry.name]) != index[entry.name]
        ):
            raise DatasetError(f"{where}: {hex_colour(entry.colour)} is the colour of two classes; keep one")
        value = number if entry.value is None else entry.value
        if values.setdefault(value, index[entry.name]) != index[entry.name]:
            raise DatasetError(f"{where}: {value} is the value of two classes; keep one")
    for entry in extra:  # what the user states comes last, and holds
        label = IGNORE_LABEL if entry.name == VOID else index[entry.name]
        if entry.colour is not None:
            colours[entry.colour] = label
        elif entry.value is not None:
            values[entry.value] = label
    has_values = any(entry.value is not None for entry in entries) or not colours
    return Table(tuple(classes), colours, values, has_values)


def void_names(entries: Iterable[Entry], table: Table) -> str:
    """Return the names of a class list that became void, for a sentence."""
    return ", ".join(entry.name for entry in entries if entry.name not in table.classes) or "none"


@cache
def _colour_table(colours: tuple[tuple[Colour, int], ...]) -> NDArray[np.uint8]:
    table = np.full(2**24, UNKNOWN, np.uint8)
    for (red, green, blue), label in colours:
        table[(red << 16) | (green << 8) | blue] = label
    return table
