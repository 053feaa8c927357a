"""What a net sees in one photo, as a page shows it: classes, their shares, and how sure the net is of each pixel."""

import base64
import io
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.prediction.predict import Net, legend, score_maps
from pipeline.shards.labels import encode_label

JPEG_QUALITY = 90  # of the photo that a page gets back


class Segmentation(NamedTuple):
    """prediction: (H, W) uint8, each pixel's best class.

    confidence: (H, W) uint8, the probability (softmax) of that class, 0..1 as 0..255.
    """

    prediction: NDArray[np.uint8]
    confidence: NDArray[np.uint8]


def segment(net: Net, photo: Image.Image, side: int, name: str, go_on: Callable[[], object]) -> Segmentation:
    """side, name: of predict.score_maps.   go_on: called before and after each tile; what it raises ends the work."""
    image = np.array(photo)  # torch takes no memory of another that it must not write to
    prediction = np.empty(image.shape[:2], np.uint8)
    confidence = np.empty_like(prediction)
    go_on()
    for place, score in score_maps(net, image, side, name):
        prediction[place] = score.argmax(0)
        confidence[place] = np.rint(255 / np.exp(score - score.max(0)).sum(0))
        go_on()
    return Segmentation(prediction, confidence)


def described(found: Segmentation, classes: list[str]) -> dict[str, Any]:
    """For JSON: width, height, and of every class its index, name, colour, share of the pixels and mean confidence.

    A class that no pixel is predicted as has share 0 and no confidence (null).
    """
    num = np.bincount(found.prediction.ravel(), minlength=len(classes))
    sure = np.bincount(found.prediction.ravel(), found.confidence.ravel(), len(classes)) / 255
    rows = legend(classes)
    for row, pixels, total in zip(rows, num.tolist(), sure.tolist(), strict=True):
        row["share"] = pixels / found.prediction.size
        row["confidence"] = total / pixels if pixels else None
    height, width = found.prediction.shape
    return {"width": width, "height": height, "classes": rows}


def layers(found: Segmentation, photo: Image.Image) -> dict[str, str]:
    """In base64: the photo as the net saw it (JPEG), prediction (palette PNG), confidence (PNG); of one size."""
    pictures = {"photo": io.BytesIO(), "confidence": io.BytesIO()}
    photo.save(pictures["photo"], "JPEG", quality=JPEG_QUALITY)
    Image.fromarray(found.confidence).save(pictures["confidence"], "PNG")
    whole = {name: file.getvalue() for name, file in pictures.items()}
    whole["prediction"] = encode_label(found.prediction)
    return {name: base64.b64encode(data).decode() for name, data in whole.items()}
