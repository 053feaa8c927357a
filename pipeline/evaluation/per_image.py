"""The counts of each image of a split as a Parquet table; every score of any subset of images follows from them.

One row per image, sorted by key, integers only. `right` is a class's intersection; its union is
`label + predicted - right`. The columns with the prefix `border_` count only the pixels near borders.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline import files
from pipeline.errors import ResultError

FORMAT = "fcn-per-image/1"
COUNTS = ("right", "label", "predicted")  # pixels of each class; as ConfusionMatrix.per_class orders them
PARTS = ("", "border_")  # the whole image, then the band along borders
SCHEMA = pa.schema(
    [("key", pa.string()), ("num_right", pa.int64()), ("num_valid", pa.int64())]
    + [(part + name, pa.list_(pa.int64())) for part in PARTS for name in COUNTS]
)
REMEDY = "run `dvc repro evaluate`"


@dataclass(frozen=True)
class PerImage:
    """The counts of each image of a split.

    keys: sorted ids of the images.
    counts: (N, 2, 3, C) int64 pixels by image, PARTS, COUNTS and class.
    about: plain values: `classes` (names), and the model, data and settings of the evaluation.
    """

    keys: tuple[str, ...]
    counts: NDArray[np.int64]
    about: dict[str, Any]

    @classmethod
    def sorted(cls, keys: Sequence[str], counts: NDArray[np.int64], about: dict[str, Any]) -> "PerImage":
        """Sort by key, so that the order of evaluation does not change the result."""
        order = sorted(range(len(keys)), key=keys.__getitem__)
        return cls(tuple(keys[i] for i in order), counts[order], about)

    @property
    def whole(self) -> NDArray[np.int64]:
        """(N, 3, C): the counts of the whole images."""
        return self.counts[:, 0]

    @property
    def border(self) -> NDArray[np.int64]:
        """(N, 3, C): the counts of the band along borders."""
        return self.counts[:, 1]


def write(path: Path, images: PerImage) -> None:
    """Write the file whole or not at all. The same counts give the same bytes."""
    num_images, _, _, num_classes = images.counts.shape
    right, label, _ = images.whole.sum(2).T
    columns = [pa.array(images.keys, pa.string()), pa.array(right), pa.array(label)]
    offsets = pa.array(np.arange(num_images + 1, dtype=np.int32) * num_classes)
    for part in range(len(PARTS)):
        for name in range(len(COUNTS)):
            values = np.ascontiguousarray(images.counts[:, part, name]).reshape(-1)
            columns.append(pa.ListArray.from_arrays(offsets, pa.array(values)))
    about = {"fcn": json.dumps({"format": FORMAT} | images.about, sort_keys=True)}
    table = pa.Table.from_arrays(columns, schema=SCHEMA.with_metadata(about))
    with files.whole(path) as file:
        pq.write_table(table, file, compression="zstd", write_page_checksum=True)


def read(path: Path) -> PerImage:
    """Read what `write` wrote. Raises ResultError if the file is missing, damaged or of another program."""
    if not path.is_file():
        raise ResultError(f"{path} is missing; {REMEDY}")
    try:
        table = pq.ParquetFile(path, page_checksum_verification=True).read()
        about = json.loads((table.schema.metadata or {})[b"fcn"])
        if about.pop("format") != FORMAT or table.schema.names != SCHEMA.names:
            raise ValueError(f"not a table of format {FORMAT!r}")
        keys = tuple(table["key"].to_pylist())
        flat = [table[part + name].combine_chunks().flatten().to_numpy() for part in PARTS for name in COUNTS]
        counts = np.stack(flat, 1).reshape(len(keys), len(about["classes"]), len(PARTS), len(COUNTS))
    except (OSError, pa.ArrowException, KeyError, ValueError, TypeError) as error:
        raise ResultError(f"{path} is not a table of counts by image ({error}); {REMEDY}") from error
    return PerImage(keys, np.moveaxis(counts, 1, 3).astype(np.int64), about)
