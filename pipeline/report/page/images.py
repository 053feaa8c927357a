"""A gallery's pictures as data URIs, small enough that the page stays light."""

import base64
import io
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fcn import IGNORE_LABEL
from pipeline.report.gallery import Gallery, Seen, shared_keys
from pipeline.shards.labels import voc_palette

SIDES = (500, 400, 320, 240, 160)  # of a picture, the longer one: the first at which all of them fit
RIGHT, MISSED, INVENTED, CONFUSED, VOID = range(5)  # what a pixel of the error layer says
ERRORS = (
    ("missed: an object taken for background", (255, 176, 0)),
    ("invented: background taken for an object", (0, 190, 255)),
    ("confused: an object taken for another", (255, 45, 120)),
    ("void: not counted", (224, 224, 192)),
)


def as_data(galleries: Sequence[Gallery], num_classes: int, max_bytes: int) -> list[dict[str, Any]]:
    """The images as gallery.js reads them, in as much detail as max_bytes of JSON hold.

    Each has key, height, width, photo, label, present (the classes in its label), and under nets, in the galleries'
    order, prediction, error, confidence and present of each.
    """
    keys, images = shared_keys(galleries), []
    for side in SIDES:
        images, left = [], max_bytes
        for key in keys:
            images.append(_image([one[key] for one in galleries], num_classes, side))
            left -= len(json.dumps(images[-1]))
            if left < 0 and side != SIDES[-1]:
                break  # too large already
        else:
            break
    return images


def _image(seen: Sequence[Seen], num_classes: int, side: int) -> dict[str, Any]:
    first = seen[0]
    height, width = first.label.shape
    factor = min(1.0, side / max(height, width))
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    photo = Image.fromarray(first.image).resize(size, Image.Resampling.LANCZOS)
    label = _resized(first.label, size)
    nets = []
    for one in seen:
        prediction = _resized(one.prediction, size)
        sure = Image.fromarray(one.confidence).resize(size, Image.Resampling.BOX)
        nets.append(
            {
                "prediction": class_png(prediction, num_classes),
                "error": error_png(label, prediction),
                "confidence": _uri(sure, "JPEG", quality=70, optimize=True),
                "present": _present(one.prediction),
            }
        )
    return {
        "key": first.key,
        "height": height,
        "width": width,
        "photo": _uri(photo, "JPEG", quality=80, optimize=True),
        "label": class_png(label, num_classes),
        "present": _present(first.label),
        "nets": nets,
    }


def class_png(classes: NDArray[np.uint8], num_classes: int) -> str:
    """(H, W) classes, 255 for void -> a PNG in VOC's colours, the background, class 0, transparent."""
    palette = np.vstack((voc_palette()[:num_classes], voc_palette()[IGNORE_LABEL:]))
    return _palette_png(np.where(classes == IGNORE_LABEL, num_classes, classes), palette)


def error_kinds(label: NDArray[np.uint8], prediction: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(H, W): RIGHT, MISSED, INVENTED, CONFUSED or VOID."""
    kinds = np.full(label.shape, CONFUSED, np.uint8)
    kinds[prediction == 0] = MISSED
    kinds[label == 0] = INVENTED
    kinds[prediction == label] = RIGHT
    kinds[label == IGNORE_LABEL] = VOID
    return kinds


def error_png(label: NDArray[np.uint8], prediction: NDArray[np.uint8]) -> str:
    """What is right is transparent, the rest in the colours of ERRORS."""
    palette = np.array([(0, 0, 0), *(colour for _, colour in ERRORS)], np.uint8)
    return _palette_png(error_kinds(label, prediction), palette)


def _palette_png(indices: NDArray[np.integer], palette: NDArray[np.uint8]) -> str:
    image = Image.fromarray(indices.astype(np.uint8))
    image.putpalette(palette.tobytes())  # no more colours than needed: few bits a pixel
    return _uri(image, "PNG", transparency=0, optimize=True)


def _resized(classes: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    return np.array(Image.fromarray(classes).resize(size, Image.Resampling.NEAREST))


def _present(classes: NDArray[np.uint8]) -> list[int]:
    return [value for value in np.unique(classes).tolist() if value != IGNORE_LABEL]


def _uri(image: Image.Image, kind: str, **options: Any) -> str:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return data_uri(file.getvalue(), f"image/{kind.lower()}")


def data_uri(content: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
