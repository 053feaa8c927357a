"""Published data sets that are plain folders with a known table of classes."""

import re
from collections.abc import Callable
from typing import NamedTuple

from pipeline.errors import DatasetError
from pipeline.importing.export import Export, Options
from pipeline.importing.formats import plain
from pipeline.importing.source import Source
from pipeline.importing.tables import Entry, Table, make_table

_CITYSCAPES = (
    "road sidewalk building wall fence pole,traffic light,traffic sign,vegetation terrain sky person rider car truck "
    "bus train motorcycle bicycle"
)
CITYSCAPES = [
    name for part in _CITYSCAPES.split(",") for name in ([part] if "traffic" in part else part.split())
]
CITYSCAPES_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)


def _cityscapes(source: Source) -> tuple[list[Entry], dict[int, str]]:
    is_ids = any(path.endswith("_labelIds.png") for path in source.files)
    is_train_ids = any(path.endswith("_labelTrainIds.png") for path in source.files)
    if is_ids and is_train_ids:
        raise DatasetError(
            f"{source.name}: holds _labelIds.png and _labelTrainIds.png; keep one kind (the classes are the same)"
        )
    ids = CITYSCAPES_IDS if is_ids else range(len(CITYSCAPES))
    others = [value for value in range(34) if value not in ids] if is_ids else []
    return (
        [Entry(name, value=value) for name, value in zip(CITYSCAPES, ids, strict=True)],
        dict.fromkeys(others, "one of the classes that Cityscapes does not score"),
    )


def _pet(_: Source) -> tuple[list[Entry], dict[int, str]]:
    return [Entry("background", value=2), Entry("pet", value=1)], {3: "the border"}


def _ade20k(source: Source) -> tuple[list[Entry], dict[int, str]]:
    (path, *_) = source.named("objectInfo150.txt")
    entries = []
    for line in source.lines(path)[1:]:
        fields = [field.strip() for field in line.split("\t")]  # the published file has spaces before tabs
        if not fields[0].isdecimal():
            raise DatasetError(f"{path}: {line[:40]!r}; expected Idx and Name between tabs")
        entries.append(Entry(fields[-1].split(",")[0].strip(), value=int(fields[0])))
    seen: set[str] = set()
    unique = []
    for entry in entries:  # "screen" and others occur twice
        unique.append(entry if entry.name not in seen else entry._replace(name=f"{entry.name} {entry.value}"))
        seen.add(entry.name)
    return unique, {0: "other"}


class Known(NamedTuple):
    """A published data set: a path that shows it, and the function that gives its classes and void values."""

    sign: str
    pattern: str
    table: Callable[[Source], tuple[list[Entry], dict[int, str]]]


KNOWN = {
    "cityscapes": Known(
        "gtFine/.../*_labelIds.png", r"(?:.*/)?gt(Fine|Coarse)/.*_label(Train)?Ids\.png", _cityscapes
    ),
    "oxford-pet": Known("annotations/trimaps/*.png", r"(?:.*/)?annotations/trimaps/[^/]*\.png", _pet),
    "ade20k": Known("objectInfo150.txt", r"(?:.*/)?objectInfo150\.txt", _ade20k),
}


def matches(name: str, source: Source) -> str | None:
    pattern = re.compile(KNOWN[name].pattern)
    return next((path for path in source.files if pattern.fullmatch(path)), None)


def read(name: str, source: Source, options: Options) -> Export:
    entries, void = KNOWN[name].table(source)
    table = make_table(entries, options.class_map, name)
    stated = options.class_map.values
    table = Table(
        table.classes,
        table.colours,
        dict.fromkeys((value for value in void if value not in stated), 255) | dict(table.values),
        has_values=True,
    )
    reasons = "; ".join(
        f"{', '.join(str(v) for v, r in void.items() if r == reason)} ({reason}) is void"
        for reason in dict.fromkeys(void.values())
    )
    decisions = [f"classes: those of {name}, by value", *([reasons] if reasons else []), "255 is void"]
    return plain.export_of(source, plain.pair(source), table, decisions)
