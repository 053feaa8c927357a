"""The JSON files of an export, by their kind."""

from collections.abc import Iterator

from pipeline.errors import DatasetError
from pipeline.importing.source import Outline, Source


def paths(source: Source) -> list[str]:
    return [path for path in source.files if path.lower().endswith(".json")]


def outlines(source: Source) -> Iterator[tuple[str, Outline]]:
    """Yield each JSON file that can be read, to recognise a format.

    A damaged file is of another kind here: beside photos and masks may lie JSON of any sort. A format that was
    recognised refuses it when it reads.
    """
    for path in paths(source):
        try:
            outline = source.outline(path)
        except DatasetError:
            continue
        yield path, outline
