"""--map: classes merged, renamed, dropped to void or to background; values and colours of masks given a name."""

import csv
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fcn import IGNORE_LABEL
from pipeline.errors import DatasetError
from pipeline.files import and_more

VOID = "void"
VOID_NAMES = ("void", "ignore", "__ignore__", "_ignore_")
BACKGROUND = "background"
BACKGROUND_NAMES = ("background", "_background_", "__background__", "bg")
ALL_OTHERS = "*"
COLOUR = re.compile(r"#[0-9a-fA-F]{6}")
VALUE = re.compile(r"-?[0-9]{1,9}")


@dataclass(frozen=True)
class ClassMap:
    """The pairs of --map, from left to right: class, value, "#rrggbb" or "*", each with its new class."""

    pairs: tuple[tuple[str, str], ...] = ()

    @classmethod
    def parse(cls, texts: Sequence[str]) -> "ClassMap":
        """Read 'truck=vehicle,bus=vehicle,#ff0000=car,7=void,*=background'; a name with a comma stands in quotes."""
        pairs: list[tuple[str, str]] = []
        for text in texts:
            if len(text.splitlines()) > 1:
                raise DatasetError(f"--map: {text!r}; expected OLD=NEW,... on one line")
            for entry in next(csv.reader([text], skipinitialspace=True), []):
                old, equals, new = (part.strip() for part in entry.rpartition("="))
                if not (equals and old and new):
                    raise DatasetError(
                        f"--map: {entry!r}; expected OLD=NEW, such as truck=vehicle or other=void"
                    )
                old = old.lower() if COLOUR.fullmatch(old) else old
                if old in dict(pairs):
                    raise DatasetError(f"--map: {old!r} is given twice; keep one")
                pairs.append((old, new))
        # A class called "ignore" stays one if it is mapped to itself
        kept = {old for old, new in pairs if old == new}
        is_void = [new.casefold() in VOID_NAMES and new not in kept for _, new in pairs]
        return cls(
            tuple((old, VOID if void else new) for (old, new), void in zip(pairs, is_void, strict=True))
        )

    @property
    def colours(self) -> dict[tuple[int, int, int], str]:
        """The classes of colours."""
        return {rgb(old): new for old, new in self.pairs if COLOUR.fullmatch(old)}

    @property
    def values(self) -> dict[int, str]:
        """The classes of whole numbers."""
        return {int(old): new for old, new in self.pairs if VALUE.fullmatch(old)}

    def void_among(self, names: Iterable[str]) -> list[str]:
        """Return the class names that mean void, such as "ignore", and that --map does not name."""
        named = {old for old, _ in self.pairs}
        return [name for name in names if name.casefold() in VOID_NAMES and name not in named]

    def names(self, classes: Sequence[str], background: str = "") -> dict[str, str]:
        """Return the new class of each class that --map names; refuse names that are not there.

        "*" leaves the background as it is, unless all others join it.

        background: its name, if it is none of the usual ones.
        """
        rest = dict(self.pairs).get(ALL_OTHERS, "")
        grounds = {*BACKGROUND_NAMES, background.casefold()} - {""}
        others = {
            name: rest
            for name in classes
            if rest and (name.casefold() not in grounds or rest.casefold() in grounds)
        }
        named = {old: new for old, new in self.pairs if old in classes}
        unknown = [
            old for old, _ in self.pairs if old not in classes and old != ALL_OTHERS and not _is_of_masks(old)
        ]
        if unknown:
            raise DatasetError(
                f"--map: no class {unknown[0]!r}; the export has {and_more(list(classes), 20)} "
                f"({ALL_OTHERS} stands for all others)"
            )
        return others | named

    def refuse_values(self, classes: Sequence[str], name: str) -> None:
        """Refuse values and colours where no mask has any.

        classes: the export's.
        name: the format's, for the message.
        """
        stray = [old for old, _ in self.pairs if old not in classes and _is_of_masks(old)]
        if stray:
            raise DatasetError(
                f"--map: {stray[0]!r} is a value or colour, and {name} has class names: {and_more(list(classes), 20)}"
            )

    def apply(self, classes: Sequence[str], background: str = "") -> tuple[list[str], NDArray[np.uint8]]:
        """Return the final class names and a table of their values.

        classes: the export's, in the order of its label values.
        background: its name, if it is none of the usual ones.

        Returns (names, (256,) uint8): old value -> new value; void stays void.
        """
        renamed = self.names(classes, background)
        table = np.arange(256, dtype=np.uint8)
        final: list[str] = []
        for value, name in enumerate(classes):
            new = renamed.get(name, name)
            if new == VOID and name in renamed:
                table[value] = IGNORE_LABEL
                continue
            if new not in final:
                final.append(new)
            table[value] = final.index(new)
        if not final:
            raise DatasetError("--map: every class becomes void; keep one")
        return final, table


def _is_of_masks(old: str) -> bool:
    """Return whether the left side of a pair may be a colour or value of masks."""
    return bool(COLOUR.fullmatch(old) or VALUE.fullmatch(old))


def rgb(text: str) -> tuple[int, int, int]:
    """Return the colour of "#rrggbb"."""
    return int(text[1:3], 16), int(text[3:5], 16), int(text[5:7], 16)


def hex_colour(colour: tuple[int, int, int]) -> str:
    return "#{:02x}{:02x}{:02x}".format(*colour)
