"""The gallery of a net: single images with label, prediction and confidence, as files.

A gallery is a folder: index.json, and for each of its keys KEY.jpg or KEY.png, KEY-label.png, KEY-prediction.png and
KEY-confidence.png. The same split gives the same keys for every net.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline import files
from pipeline.errors import DatasetError, ResultError
from pipeline.shards.images import is_jpeg_file
from pipeline.shards.labels import decode_label, encode_label

FOLDER = "gallery"  # in the folder of a net's figures
REMEDY = "run `dvc repro evaluate`"


class Seen(NamedTuple):
    """An image with what a net predicts for it.

    key: its id.
    image: (H, W, 3) uint8 RGB.
    label: (H, W) uint8 classes, 255 for void.
    prediction: (H, W) uint8 classes.
    confidence: (H, W) uint8, the softmax of the predicted class times 255.
    """

    key: str
    image: NDArray[np.uint8]
    label: NDArray[np.uint8]
    prediction: NDArray[np.uint8]
    confidence: NDArray[np.uint8]


def write(
    folder: Path,
    images: Iterable[tuple[Seen, bytes]],
    model_sha256: str,
    name_of: Callable[[str], str] = str,
) -> None:
    """Write a new gallery, index.json last.

    images: each with its photo as the JPEG or PNG file of the shards.
    name_of: returns the user's own name of a key.
    """
    folder.mkdir(parents=True)
    keys = []
    for seen, photo in images:
        suffix = "jpg" if is_jpeg_file(photo) else "png"
        (folder / f"{seen.key}.{suffix}").write_bytes(photo)
        (folder / f"{seen.key}-label.png").write_bytes(encode_label(seen.label))
        (folder / f"{seen.key}-prediction.png").write_bytes(encode_label(seen.prediction))
        Image.fromarray(seen.confidence).save(folder / f"{seen.key}-confidence.png")
        keys.append(seen.key)
    names = {key: name_of(key) for key in keys if name_of(key) != key}
    files.write_json(
        folder / "index.json",
        {"keys": keys, "model_sha256": model_sha256} | ({"names": names} if names else {}),
    )


@dataclass(frozen=True)
class Gallery:
    """A gallery on disk; images are read when they are looked up by key.

    names: the user's own names, of keys that say less.
    """

    folder: Path
    keys: tuple[str, ...]
    model_sha256: str
    names: Mapping[str, str]

    def __getitem__(self, key: str) -> Seen:
        """Read an image. Raises ResultError if a file is missing or damaged."""
        try:
            png = self.folder / f"{key}.png"
            path = png if png.exists() else png.with_suffix(".jpg")
            with Image.open(path, formats=["JPEG", "PNG"]) as photo:
                image = np.array(photo.convert("RGB"))
            label, prediction, confidence = (
                decode_label((self.folder / f"{key}-{name}.png").read_bytes())
                for name in ("label", "prediction", "confidence")
            )
            return Seen(key, image, label, prediction, confidence)
        except (OSError, SyntaxError, DatasetError) as error:
            raise ResultError(
                f"{self.folder}: the pictures of {key} cannot be read ({error}); {REMEDY}"
            ) from error


def read(folder: Path) -> Gallery:
    """Open a gallery. Raises ResultError if its index is missing or damaged."""
    path = folder / "index.json"
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
        return Gallery(
            folder, tuple(map(str, index["keys"])), str(index["model_sha256"]), dict(index.get("names", {}))
        )
    except FileNotFoundError:
        raise ResultError(f"{path} is missing; {REMEDY}") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ResultError(f"{path} is not the index of a gallery ({error}); {REMEDY}") from error


def shared_keys(galleries: Sequence[Gallery]) -> tuple[str, ...]:
    """Return the keys of all galleries. Raises ResultError if they differ, as after an interrupted evaluation."""
    first = galleries[0]
    for other in galleries[1:]:
        if other.keys != first.keys:
            raise ResultError(f"{first.folder} and {other.folder} show other images; {REMEDY}")
    return first.keys
