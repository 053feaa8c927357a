"""The data of the page's image viewer (templates/gallery.js): pictures as data URIs, small enough for one page."""

import base64
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fcn import IGNORE_LABEL
from pipeline.evaluation.bootstrap import mean_iu, pixel_acc
from pipeline.evaluation.results import Result
from pipeline.report.gallery import Gallery, Seen, shared_keys
from pipeline.shards.labels import voc_palette

LAYERS = ("image", "label", "prediction", "error", "confidence")
SIDES = (500, 400, 320, 240, 160)  # pixels of a picture's longer side: the first at which all pictures fit
RIGHT, MISSED, INVENTED, CONFUSED, VOID = range(5)  # the values of the error layer
ERRORS = (
    ("missed: an object taken for background", (255, 176, 0)),
    ("invented: background taken for an object", (0, 190, 255)),
    ("confused: an object taken for another", (255, 45, 120)),
    ("void: not counted", (224, 224, 192)),
)


def viewer_data(
    results: Sequence[Result], galleries: Sequence[Gallery], classes: Sequence[str], max_bytes: int
) -> dict[str, Any]:
    """Return what gallery.js reads, as plain values.

    results, galleries: of the same nets, in the same order.
    max_bytes: of the pictures as JSON, about; larger pictures are scaled down.
    """
    pictures = as_data(galleries, len(classes), max_bytes)
    for number, result in enumerate(results):
        scores = _scores_by_key(result)
        for picture in pictures:
            picture["nets"][number] |= scores.get(picture["key"], {})
    return {
        "nets": [result.name for result in results],
        "classes": list(classes),
        "colours": colours(len(classes)),
        "layers": LAYERS,
        "images": pictures,
    }


def colours(num_classes: int) -> list[list[int]]:
    """Return the RGB colours of the classes, then of void, in 0..255."""
    return voc_palette()[[*range(num_classes), IGNORE_LABEL]].tolist()


def _scores_by_key(result: Result) -> dict[str, Mapping[str, float]]:
    if result.images is None:
        return {}
    each = zip(result.images.keys, mean_iu(result.images.whole), pixel_acc(result.images.whole), strict=True)
    return {
        key: {"mean_iu": round(float(iu), 4), "pixel_acc": round(float(acc), 4)}
        for key, iu, acc in each
        if iu == iu and acc == acc
    }


def as_data(galleries: Sequence[Gallery], num_classes: int, max_bytes: int) -> list[dict[str, Any]]:
    """Return the images of all galleries, in as much detail as max_bytes of JSON can hold.

    Each has key, name (the user's own), height, width, photo, label, present (the classes in its label) and nets: for
    each gallery, prediction, error, confidence and present.
    """
    keys, images = shared_keys(galleries), []
    for side in SIDES:
        images = [_image([gallery[key] for gallery in galleries], num_classes, side) for key in keys]
        if len(json.dumps(images)) <= max_bytes:
            break
    return [image | {"name": galleries[0].names.get(image["key"], image["key"])} for image in images]


def _image(seen: Sequence[Seen], num_classes: int, side: int) -> dict[str, Any]:
    first = seen[0]
    height, width = first.label.shape
    factor = min(1.0, side / max(height, width))
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    photo = Image.fromarray(first.image).resize(size, Image.Resampling.LANCZOS)
    label = _resized(first.label, size)
    nets = []
    for net in seen:
        prediction = _resized(net.prediction, size)
        confidence = Image.fromarray(net.confidence).resize(size, Image.Resampling.BOX)
        nets.append(
            {
                "prediction": class_png(prediction, num_classes),
                "error": error_png(label, prediction),
                "confidence": _encode(confidence, "JPEG", quality=70, optimize=True),
                "present": _present(net.prediction),
            }
        )
    return {
        "key": first.key,
        "height": height,
        "width": width,
        "photo": _encode(photo, "JPEG", quality=80, optimize=True),
        "label": class_png(label, num_classes),
        "present": _present(first.label),
        "nets": nets,
    }


def class_png(classes: NDArray[np.uint8], num_classes: int) -> str:
    """Return a PNG in VOC's colours, with class 0 (background) transparent.

    classes: (H, W), 255 for void.
    """
    indices = np.where(classes == IGNORE_LABEL, num_classes, classes)
    return _palette_png(indices, np.array(colours(num_classes), np.uint8))


def error_kinds(label: NDArray[np.uint8], prediction: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return (H, W): RIGHT, MISSED, INVENTED, CONFUSED or VOID."""
    kinds = np.full(label.shape, CONFUSED, np.uint8)
    kinds[prediction == 0] = MISSED
    kinds[label == 0] = INVENTED
    kinds[prediction == label] = RIGHT
    kinds[label == IGNORE_LABEL] = VOID
    return kinds


def error_png(label: NDArray[np.uint8], prediction: NDArray[np.uint8]) -> str:
    """Return a PNG in which right pixels are transparent and the others have the colours of ERRORS."""
    palette = np.array([(0, 0, 0), *(colour for _, colour in ERRORS)], np.uint8)
    return _palette_png(error_kinds(label, prediction), palette)


def _palette_png(indices: NDArray[np.integer], palette: NDArray[np.uint8]) -> str:
    image = Image.fromarray(indices.astype(np.uint8))
    image.putpalette(palette.tobytes())  # only the colours in use: few bits a pixel
    return _encode(image, "PNG", transparency=0, optimize=True)


def _resized(classes: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    return np.array(Image.fromarray(classes).resize(size, Image.Resampling.NEAREST))


def _present(classes: NDArray[np.uint8]) -> list[int]:
    return [value for value in np.unique(classes).tolist() if value != IGNORE_LABEL]


def _encode(image: Image.Image, form: str, **options: Any) -> str:
    file = io.BytesIO()
    image.save(file, form, **options)
    return data_uri(file.getvalue(), f"image/{form.lower()}")


def data_uri(content: bytes, media_type: str) -> str:
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"
