"""Masks without a class table: what their values and colours are, and the table that follows from them."""

from collections.abc import Mapping
from functools import partial
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import DatasetError
from pipeline.importing.classes import BACKGROUND, BACKGROUND_NAMES, VOID, ClassMap, hex_colour
from pipeline.importing.export import MAX_CLASSES
from pipeline.importing.masks import (
    MAX_NAMED_COLOURS,
    VOID_VALUES,
    Seen,
    colours_of,
    decode_mask,
    index_counts,
    is_grey,
    named_colours,
    open_mask,
    packed_colours,
    value_counts,
)
from pipeline.importing.source import Source
from pipeline.importing.tables import Colour, Entry, Table, make_table
from pipeline.importing.workers import mapped
from pipeline.progress import bar
from pipeline.shards.labels import is_label_png, voc_palette


class Content(NamedTuple):
    """The values or colours that a mask holds, with their pixels.

    size: (height, width) of a label PNG; None of other masks.
    digest: sha256 of the file.
    by_alpha: as Pixels has it; None for a mask that is black all over, with nothing transparent.
    palette: the colours of the values that occur; empty without a palette.
    """

    path: str
    values: dict[int, int]
    colours: dict[str, int]
    size: tuple[int, int] | None
    digest: str
    by_alpha: bool | None = False
    palette: Mapping[int, Colour] = MappingProxyType({})


class Scan(NamedTuple):
    """The content of all masks.

    values, colours: pixels of each, over all masks.
    first: the first file with colours, "" if there is none.
    seen: label PNGs by path.
    apart: the first files with 1 and with 255, if no mask holds both.
    palette: the colours of values, if masks have palettes.
    """

    values: dict[int, int]
    colours: dict[str, int]
    first: str
    seen: dict[str, Seen]
    apart: tuple[str, str] | None = None
    palette: Mapping[int, Colour] = MappingProxyType({})


def scan(source: Source, paths: list[str], workers: int) -> Scan:
    """Decode all masks; return what they hold."""
    values: dict[int, int] = {}
    colours: dict[str, int] = {}
    first = ""
    seen: dict[str, Seen] = {}
    holders: dict[frozenset[int], str] = {}  # the first file with 1, with 255, with both
    drawn: dict[bool | None, str] = {}  # the first file of each kind of transparency
    shown: dict[int, tuple[Colour, str]] = {}  # each value's colour in palettes, and the first file with it
    with (
        mapped(partial(_content, source), workers) as run,
        bar(len(paths), "read masks", unit="mask", delay_s=2) as progress,
    ):
        for content in run(paths):
            first = first or (content.path if content.colours else "")
            drawn.setdefault(content.by_alpha, content.path)
            source.digests[content.path] = content.digest
            _refuse_other_colours(content, shown)
            holders.setdefault(frozenset(content.values.keys() & {1, 255}), content.path)
            if content.size:
                seen[content.path] = Seen(content.digest, content.size, content.values)
            for total, counts in ((values, content.values), (colours, content.colours)):
                for key, count in counts.items():
                    total[key] = total.get(key, 0) + count
            progress.update()
    if drawn.keys() >= {True, None}:
        raise DatasetError(
            f"{drawn[None]}: all black, which may be all background or all foreground: {drawn[True]} is drawn in "
            "black on a transparent ground; save the masks in black and white"
        )
    one, other = holders.get(frozenset({1})), holders.get(frozenset({255}))
    apart = (one, other) if one and other and frozenset({1, 255}) not in holders else None
    palette = {value: colour for value, (colour, _) in shown.items()}
    return Scan(values, colours, first, seen, apart, palette)


def _refuse_other_colours(content: Content, shown: dict[int, tuple[Colour, str]]) -> None:
    """Refuse a palette that shows a value in another colour than an earlier mask's.

    A tool that reduces colours may give them other numbers in each file. One value then means two classes.
    """
    for value, colour in content.palette.items():
        other, path = shown.setdefault(value, (colour, content.path))
        if other != colour:
            raise DatasetError(
                f"{content.path}: its palette shows value {value} as {hex_colour(colour)}, that of {path} as "
                f"{hex_colour(other)}, and no table of classes states which counts. Put a classes.csv beside the "
                "masks: with the header name,r,g,b for classes by colour, with name,value for classes by value"
            )


def _content(source: Source, path: str) -> Content:
    data = source.read(path)
    digest = source.digests[path]
    if is_label_png(data):
        image = open_mask(data, path)
        counts = index_counts(image)
        palette = _palette_of(counts, voc_palette())
        return Content(path, counts, {}, (image.height, image.width), digest, palette=palette)
    decoded = decode_mask(data, path)
    pixels, by_alpha = decoded.values, decoded.by_alpha
    if pixels.ndim == 3 and not is_grey(pixels):
        return Content(path, {}, named_colours(packed_colours(pixels)), None, digest)
    flat = pixels[:, :, 0] if pixels.ndim == 3 else pixels
    counts = value_counts(flat)
    if len(counts) > 4 * MAX_CLASSES:
        raise DatasetError(f"{path}: {len(counts)} different values; it may be a photo, not a mask")
    is_black = pixels.ndim == 3 and list(counts) == [0]
    palette = _palette_of(counts, decoded.palette)
    return Content(path, counts, {}, None, digest, None if is_black else by_alpha, palette)


def _palette_of(counts: Mapping[int, int], palette: NDArray[np.uint8] | None) -> dict[int, Colour]:
    return {} if palette is None else dict(zip(counts, colours_of(list(counts), palette), strict=True))


def table_of_content(found: Scan, names: list[str], class_map: ClassMap) -> tuple[Table, str]:
    """Return a table for masks that have none, and a sentence that states it.

    names: of a list of names only, in the order of the values; may be empty.
    """
    if found.colours:
        return _table_of_colours(found, class_map)
    present = set(found.values)
    stated = class_map.values
    if found.apart and present <= {0, 1, 255} and 255 not in stated:
        raise DatasetError(
            f"masks of 0 and 1, such as {found.apart[0]}, and of 0 and 255, such as {found.apart[1]}: 255 may be void "
            "or the class that 1 is; say which: --map 255=void, or --map 1=NAME,255=NAME"
        )
    if len(names) < 2 and not {0, 1} <= stated.keys():
        _refuse_dark_foreground(found)
    for foreground in (1, 255, 65535):
        if present <= {0, foreground} and foreground in present and len(names) <= 2:
            lines = names if len(names) == 2 else [BACKGROUND, *names, "foreground"][:2]
            ground, name = stated.get(0, lines[0]), stated.get(foreground, lines[1])
            if (
                foreground > 1
                and lines[1].casefold() in BACKGROUND_NAMES
                and not {0, foreground} <= stated.keys()
            ):
                raise DatasetError(
                    f"masks of 0 and {foreground}, and classes {', '.join(names)}: by the lines 0 would be {lines[0]}; "
                    f"say which is which: --map '0={lines[1]},{foreground}={lines[0]}', or the other way round"
                )
            entries = [Entry(ground, value=0), Entry(name, value=foreground)]
            table = make_table(entries, class_map, "masks")
            return table, f"masks of 0 and {foreground}: 0 is {ground}, {foreground} is {name}"
    if names:
        table = make_table(
            [Entry(name, value=number) for number, name in enumerate(names)], class_map, "classes"
        )
        return table, "a mask's value is the line of its class, from 0"
    between = sum(count for value, count in found.values.items() if value not in (0, 255))
    if {0, 255} < present and 255 not in stated and found.values[255] > between:
        raise DatasetError(
            f"masks mostly of 0 and 255, with {len(present) - 2} other values: 255 may be void, or the class of masks "
            "that were smoothed, resized or JPEGs once. Give --map 255=void, or export the masks again unsmoothed"
        )
    used = sorted(value for value in present if value not in VOID_VALUES or value in stated)
    below = [value for value in used if value < 0 and value not in stated]
    if below:
        raise DatasetError(
            f"masks: value {below[0]}; one below 0 often stands for no data: give it a class, or void, by "
            f"--map={below[0]}=void"
        )
    if len(used) > MAX_CLASSES:
        raise DatasetError(f"masks: {len(used)} different values; a label holds up to {MAX_CLASSES}")
    entries = [
        Entry(stated.get(value) or (BACKGROUND if value == 0 else f"class{value}"), value=value)
        for value in used
        if stated.get(value) != VOID
    ]
    merged = {entry.name: entry for entry in reversed(entries)}
    table = make_table(reversed(merged.values()), class_map, "masks")
    void = "".join(f", {value} is void" for value in VOID_VALUES if value in present - stated.keys())
    return (
        table,
        f"no class table: each value is a class, 0 the background{void}; name them by --map 1=NAME,2=NAME",
    )


def _refuse_dark_foreground(found: Scan) -> None:
    """Refuse masks of 0 and 1 whose palette shows 0 lighter than 1: tools that reduce colours number white first."""
    ground, drawn = found.palette.get(0), found.palette.get(1)
    if set(found.values) == {0, 1} and ground and drawn and sum(ground) > sum(drawn) and len({*drawn}) == 1:
        raise DatasetError(
            f"masks whose palette shows 0 as {hex_colour(ground)} and 1 as {hex_colour(drawn)}: the light one may be "
            f"the class or the background; say which: --map '0=NAME,1={BACKGROUND}', or --map '0={BACKGROUND},1=NAME'"
        )


def _table_of_colours(found: Scan, class_map: ClassMap) -> tuple[Table, str]:
    greys = {hex_colour((value, value, value)): count for value, count in found.values.items() if value < 256}
    counts = dict(found.colours)
    for colour, count in greys.items():
        counts[colour] = counts.get(colour, 0) + count
    stated = {hex_colour(colour) for colour in class_map.colours}
    missing = sorted(set(counts) - stated, key=lambda colour: -counts[colour])
    if missing:
        total = sum(counts.values())
        if len(missing) >= MAX_NAMED_COLOURS:
            raise DatasetError(
                f"{found.first}: a mask of {len(missing)} colours or more; it may be a photo, a JPEG saved as PNG, or "
                "drawn with smoothed edges: export the masks again, as indices or unmixed colours"
            )
        shares = ", ".join(f"{colour} ({counts[colour] / total:.2%})" for colour in missing[:8])
        pairs = ",".join(f"{colour}=NAME" for colour in missing[:8])
        more = f" and {len(missing) - 8} more" if len(missing) > 8 else ""
        raise DatasetError(
            f"{found.first}: a colour mask, and no table of classes; colours: {shares}{more}. Put a classes.csv with "
            f"the header name,r,g,b beside the masks, or give --map '{pairs}'"
        )
    return make_table([], class_map, "--map"), "colours of masks have the classes that --map gives"
