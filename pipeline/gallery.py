"""Single images and what a net makes of them, for figures and for the report's page.

A gallery is a folder: index.json, and for each key of it KEY.jpg, KEY-label.png, KEY-prediction.png and
KEY-confidence.png. The same split gives the same keys for every net.
"""

import json
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from fcn import IGNORE_LABEL
from fcn.model import FCN
from pipeline.datasets.files import decode_label, encode_label
from pipeline.errors import DatasetError, ResultError
from pipeline.per_image import PerImage
from pipeline.samples import Samples, decode_jpeg
from pipeline.shards import Shards
from pipeline.uncertainty import mean_iu

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


def spread(num_images: int, num: int) -> list[int]:
    """`num` places of a split, evenly far from each other, the first and the last among them; all, if it has fewer."""
    return np.linspace(0, num_images - 1, min(num, num_images), dtype=int).tolist()


def worst_and_best(images: PerImage, num: int) -> tuple[list[tuple[str, float]], list[tuple[str, float]]]:
    """(key, mean IU) of the images that score least, worst first, and most, best first; never one in both.

    An image without a valid pixel has no score. Of equal scores the first key comes first.
    """
    scores = mean_iu(images.whole)
    scored = [(key, float(score)) for key, score in zip(images.keys, scores, strict=True) if score == score]
    ordered = sorted(scored, key=lambda one: (one[1], one[0]))
    best = sorted(ordered[len(ordered) // 2 :], key=lambda one: (-one[1], one[0]))
    return ordered[: len(ordered) // 2][:num], best[:num]


@torch.inference_mode()
def look(model: FCN, shards: Shards, indices: Iterable[int], device: torch.device) -> Iterator[Seen]:
    """The samples at these places of the shards, one after the other, at their own size."""
    samples = Samples(shards)
    for index in indices:
        image, label, (key,) = samples[index]
        score = model(image.to(device))
        prediction = score.argmax(1)[0].to("cpu", torch.uint8)
        confidence = score.softmax(1).amax(1)[0].mul(255).round().to("cpu", torch.uint8)
        pixels = image[0].permute(1, 2, 0).numpy()
        yield Seen(key, pixels, label[0].numpy(), prediction.numpy(), confidence.numpy())


def write(folder: Path, shards: Shards, seen: Iterable[Seen], model_sha256: str) -> None:
    """Writes the folder anew; a photo keeps the bytes it has in the shards. index.json comes last."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    places, keys = {key: index for index, key in enumerate(shards.keys)}, []
    for one in seen:
        jpeg, _ = shards.read(places[one.key])
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
            jpeg, label, prediction = (
                (self.folder / f"{key}{end}").read_bytes()
                for end in (".jpg", "-label.png", "-prediction.png")
            )
            image = decode_jpeg(jpeg).permute(1, 2, 0).numpy()
            with Image.open(self.folder / f"{key}-confidence.png", formats=["PNG"]) as picture:
                confidence = np.array(picture.convert("L"))
            return Seen(key, image, decode_label(label), decode_label(prediction), confidence)
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
