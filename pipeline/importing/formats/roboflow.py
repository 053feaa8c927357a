"""Roboflow's "Semantic Segmentation Masks": train|valid|test/ with X.jpg, X_mask.png and _classes.csv."""

from pipeline.errors import DatasetError
from pipeline.importing import tables
from pipeline.importing.export import Export, Options
from pipeline.importing.formats import plain
from pipeline.importing.source import Source
from pipeline.importing.tables import make_table

SIGN = "_classes.csv beside *_mask.png (Roboflow, Semantic Segmentation Masks)"


def matches(source: Source) -> str | None:
    paths = source.named("_classes.csv")
    return paths[0] if paths and any(path.endswith("_mask.png") for path in source.files) else None


def read(source: Source, options: Options) -> Export:
    paths = source.named("_classes.csv")
    tables.check_equal(source, paths)
    entries = tables.read(source, paths[0])
    if any(entry.value is None for entry in entries):
        raise DatasetError(f"{paths[0]}: expected the columns Pixel Value and Class")
    table = make_table(entries, options.class_map, paths[0])
    decisions = [
        f"classes: {paths[0]}, by pixel value",
        f"background: {table.classes[0]}",
        "overlaps: as Roboflow drew them",
        "void: 255 where no class has it",
    ]
    return plain.export_of(source, plain.pair(source), table, decisions)
