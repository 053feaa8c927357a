"""The formats that `fcn import` reads. Each is a file with two functions:

matches(source) -> the evidence, such as "labelmap.txt beside SegmentationClass/", or None
read(source, options) -> Export
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from pipeline.errors import DatasetError
from pipeline.importing.export import Export, Options
from pipeline.importing.formats import (
    coco,
    cvat,
    json_files,
    known,
    label_studio,
    labelme,
    labelme2voc,
    plain,
    roboflow,
    supervisely,
)
from pipeline.importing.source import Source


class Format(NamedTuple):
    """A format: how it is recognised and read, and what shows it, for messages."""

    matches: Callable[[Source], str | None]
    read: Callable[[Source, Options], Export]
    sign: str


FORMATS: dict[str, Format] = {
    "cvat": Format(cvat.matches, cvat.read, cvat.SIGN),
    "coco": Format(coco.matches, coco.read, coco.SIGN),
    "coco-panoptic": Format(coco.matches_panoptic, coco.read_panoptic, coco.PANOPTIC_SIGN),
    "labelme": Format(labelme.matches, labelme.read, labelme.SIGN),
    "labelme2voc": Format(labelme2voc.matches, labelme2voc.read, labelme2voc.SIGN),
    "label-studio": Format(label_studio.matches, label_studio.read, label_studio.SIGN),
    "roboflow": Format(roboflow.matches, roboflow.read, roboflow.SIGN),
    "supervisely": Format(supervisely.matches, supervisely.read, supervisely.SIGN),
}
FORMATS |= {
    name: Format(partial(known.matches, name), partial(known.read, name), data_set.sign)
    for name, data_set in known.KNOWN.items()
}
PLAIN = Format(
    plain.matches, plain.read, "photos and masks of the same name, such as images/a.jpg, masks/a.png"
)


def names() -> list[str]:
    return [*FORMATS, "plain"]


def recognise(source: Source, name: str | None) -> tuple[str, str, Format]:
    """Return the format's name, the evidence and its functions.

    name: --format; None: found from the files. A plain folder is what fits no other format.
    """
    if name is not None:
        chosen = PLAIN if name == "plain" else FORMATS[name]
        evidence = chosen.matches(source)
        if evidence is None:
            raise DatasetError(f"{source.name}: --format {name} looks for {chosen.sign}, which is not there")
        return name, evidence, chosen
    fitting = {key: evidence for key, known in FORMATS.items() if (evidence := known.matches(source))}
    if len(fitting) > 1:
        found = "; ".join(f"{key}: {evidence}" for key, evidence in fitting.items())
        raise DatasetError(f"{source.name}: may be any of {found}; choose by --format {next(iter(fitting))}")
    if fitting:
        key, evidence = next(iter(fitting.items()))
        return key, evidence, FORMATS[key]
    if evidence := PLAIN.matches(source):
        return "plain", evidence, PLAIN
    for path in json_files.paths(source):
        source.json(path)  # refuses a damaged one, which may be the annotations
    signs = "; ".join(f"{key}: {known.sign}" for key, known in [*FORMATS.items(), ("plain", PLAIN)])
    left_out = "".join(f"; {path} is {reason}" for path, reason in list(source.left_out.items())[:1])
    more = f", and {len(source.left_out) - 1} more" if len(source.left_out) > 1 else ""
    raise DatasetError(
        f"{source.name}: no format is recognised among {len(source.files)} files{left_out}{more}; looked for {signs}"
    )
