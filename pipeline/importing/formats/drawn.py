"""The classes of formats whose labels are drawn: from names alone, without values or colours of masks."""

from collections.abc import Sequence
from typing import NamedTuple

from fcn import IGNORE_LABEL
from pipeline.importing.classes import BACKGROUND, BACKGROUND_NAMES, ClassMap
from pipeline.importing.export import order_classes


class Classes(NamedTuple):
    """The classes of an export.

    names: in the order of the label values.
    values: the label value of each name, void's too; pickled, so its order follows from the export alone.
    void: a sentence about the names that are void.
    """

    names: list[str]
    values: dict[str, int]
    void: str


def classes_of(
    names: Sequence[str], class_map: ClassMap, where: str, *, add_background: bool = True
) -> Classes:
    """Return the classes of unique names. Those called void or ignore become void, unless --map names them.

    names: in the order of the classes; a background moves to the front.
    where: the export or file, for messages.
    """
    void = class_map.void_among(names)
    rest = [name for name in names if name not in void]
    classes = order_classes(rest, where, add_background=add_background)
    values = {name: number for number, name in enumerate(classes)} | dict.fromkeys(void, IGNORE_LABEL)
    sentence = f"void: the class {', '.join(void)}" if void else "void: no class is called void or ignore"
    return Classes(classes, values, sentence)


def canonical(name: str) -> str:
    """Return a class name without outer spaces, and one name for all names of the background."""
    name = name.strip()
    return BACKGROUND if name.casefold() in BACKGROUND_NAMES else name
