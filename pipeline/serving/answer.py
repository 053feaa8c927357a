"""The answer to one photo: its classes with their shares and confidence, as JSON and as images."""

import base64
import io
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.errors import PhotoSizeError
from pipeline.models.predictor import Predictor
from pipeline.prediction.predict import legend
from pipeline.shards.labels import encode_label

JPEG_QUALITY = 90  # of the photo that the page gets back
MAX_JPEG_SIDE = 65500  # pixels, libjpeg's limit


class Segmentation(NamedTuple):
    """What a net predicts for a photo.

    prediction: (H, W) uint8, each pixel's best class.
    confidence: (H, W) uint8, the probability (softmax) of that class, 0..1 as 0..255.
    """

    prediction: NDArray[np.uint8]
    confidence: NDArray[np.uint8]


def segment(predictor: Predictor, photo: Image.Image, side: int | None, deadline: float) -> Segmentation:
    """Return the segmentation of a photo.

    side: of the tiles of large photos, in pixels; see Predictor.parts.
    deadline: in seconds of time.monotonic().

    Raises TimeoutError before or after the first tile that is past the deadline.
    """
    prediction = np.empty((photo.height, photo.width), np.uint8)
    confidence = np.empty_like(prediction)
    _check(deadline)
    for part in predictor.parts(np.asarray(photo), side, with_score=True):
        assert part.score is not None
        prediction[part.region] = part.label
        confidence[part.region] = np.rint(255 / np.exp(part.score - part.score.max(0)).sum(0))
        _check(deadline)
    return Segmentation(prediction, confidence)


def _check(deadline: float) -> None:
    if time.monotonic() > deadline:
        raise TimeoutError


def described(segmentation: Segmentation, classes: Sequence[str]) -> dict[str, Any]:
    """Return width and height, and each class's index, name, colour, share of the pixels and mean confidence.

    A class that no pixel is predicted as has share 0 and confidence None.
    """
    prediction, confidence = segmentation
    num_pixels = np.bincount(prediction.ravel(), minlength=len(classes))
    total_confidence = np.bincount(prediction.ravel(), confidence.ravel(), len(classes)) / 255
    rows = legend(classes)
    for row, num, total in zip(rows, num_pixels.tolist(), total_confidence.tolist(), strict=True):
        row["share"] = num / prediction.size
        row["confidence"] = total / num if num else None
    height, width = prediction.shape
    return {"width": width, "height": height, "classes": rows}


def require_layers(photo: Image.Image) -> None:
    """Raise PhotoSizeError unless a JPEG can hold the photo, as `layers` needs it."""
    if max(photo.size) > MAX_JPEG_SIDE:
        raise PhotoSizeError(
            f"the photo is {photo.width} x {photo.height}; the page shows at most {MAX_JPEG_SIDE} pixels a side. "
            "`fcn predict` takes it, and so do the formats png and json"
        )


def layers(segmentation: Segmentation, photo: Image.Image) -> dict[str, str]:
    """Return images of one size in base64: the photo (JPEG), prediction (palette PNG) and confidence (grey PNG)."""
    jpeg, png = io.BytesIO(), io.BytesIO()
    photo.save(jpeg, "JPEG", quality=JPEG_QUALITY)
    Image.fromarray(segmentation.confidence).save(png, "PNG")
    files = {
        "photo": jpeg.getvalue(),
        "prediction": encode_label(segmentation.prediction),
        "confidence": png.getvalue(),
    }
    return {name: base64.b64encode(data).decode() for name, data in files.items()}
