"""Single images and what a net makes of them, for figures and for the report's page.

A gallery is a folder: index.json, and for each key of it KEY.jpg, KEY-label.png, KEY-prediction.png and
KEY-confidence.png. The same split gives the same keys for every net.
"""

import json
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fcn import IGNORE_LABEL
from pipeline.errors import DatasetError, ResultError
from pipeline.shards.labels import decode_label, encode_label

FOLDER = "gallery"  # among the pictures of a net
REMEDY = "run `dvc repro evaluate`"


class Seen(NamedTuple):
    """An image through a net's eyes.

    image: (H, W, 3) uint8 RGB.   label, prediction: (H, W) uint8 classes, in label 255 for void.
    confidence: (H, W) uint8, the prediction's softmax times 255.
    """

    key: str
    image: NDArray[np.uint8]
    label: NDArray[np.uint8]
    prediction: NDArray[np.uint8]
    confidence: NDArray[np.uint8]

    @property
    def is_wrong(self) -> NDArray[np.bool_]:
        """(H, W): where the prediction is another class than the label, which is not void."""
        return (self.prediction != self.label) & (self.label != IGNORE_LABEL)


def write(folder: Path, shown: Iterable[tuple[Seen, bytes]], model_sha256: str) -> None:
    """Writes the folder anew, index.json last.   shown: each with its photo as the JPEG it was."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    keys = []
    for one, jpeg in shown:
        (folder / f"{one.key}.jpg").write_bytes(jpeg)
        (folder / f"{one.key}-label.png").write_bytes(encode_label(one.label))
        (folder / f"{one.key}-prediction.png").write_bytes(encode_label(one.prediction))
        Image.fromarray(one.confidence).save(folder / f"{one.key}-confidence.png")
        keys.append(one.key)
    about = {"keys": keys, "model_sha256": model_sha256}
    (folder / "index.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")


@dataclass(frozen=True)
class Gallery:
    """A folder that `write` wrote."""

    folder: Path
    keys: tuple[str, ...]
    model_sha256: str

    def __getitem__(self, key: str) -> Seen:
        """ResultError if a file is missing or damaged."""
        try:
            with Image.open(self.folder / f"{key}.jpg", formats=["JPEG"]) as photo:
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
    """ResultError if there is no gallery, or a damaged one."""
    path = folder / "index.json"
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
        return Gallery(folder, tuple(map(str, about["keys"])), str(about["model_sha256"]))
    except FileNotFoundError:
        raise ResultError(f"{path} is missing; {REMEDY}") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ResultError(f"{path} holds no list of pictures ({error}); {REMEDY}") from error


def shared_keys(galleries: Sequence[Gallery]) -> tuple[str, ...]:
    """The keys that all galleries have; ResultError if they differ, as after half an evaluation."""
    first = galleries[0]
    for other in galleries[1:]:
        if other.keys != first.keys:
            raise ResultError(f"{first.folder} and {other.folder} show other images; {REMEDY}")
    return first.keys
