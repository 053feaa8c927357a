"""The page's gallery: what gallery.html, gallery.js and the images' data make together."""

import html
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Any

from fcn import IGNORE_LABEL
from pipeline.evaluation.bootstrap import mean_iu, pixel_acc
from pipeline.evaluation.compare import Result
from pipeline.report.gallery import Gallery
from pipeline.report.page import images
from pipeline.shards.labels import voc_palette

HERE = Path(__file__).parent
LAYERS = ("image", "label", "prediction", "error", "confidence")


def section(
    results: Sequence[Result], classes: Sequence[str], galleries: Sequence[Gallery], max_bytes: int
) -> str:
    """The HTML, with its pictures inside; about max_bytes at most.   galleries: one for each of the results."""
    pictures = images.as_data(galleries, len(classes), max_bytes)
    for number, result in enumerate(results):
        scores = _scores_by_key(result)
        for picture in pictures:
            picture["nets"][number] |= scores.get(picture["key"], {})
    named = [*enumerate(classes), ("void", "void")]
    colours = voc_palette()[[*range(len(classes)), IGNORE_LABEL]].tolist()
    data = {
        "nets": [one.name for one in results],
        "classes": list(classes),
        "colours": colours,  # of the classes, then of void
        "layers": LAYERS,
        "images": pictures,
    }
    legend = "".join(
        f'<li data-class="{number}">{swatch(colour)}{html.escape(name)}</li>'
        for (number, name), colour in zip(named, colours, strict=True)
    )
    errors = "".join(f"<li>{swatch(colour)}{html.escape(words)}</li>" for words, colour in images.ERRORS)
    template = Template((HERE / "gallery.html").read_text("utf-8"))
    return template.substitute(classes=legend, errors=errors, layers=_choices(), data=_as_script(data))


def _choices() -> str:
    return "".join(
        f'<label><input type="radio" name="layer" value="{name}"{" checked" if name == "prediction" else ""}>'
        f"<span><kbd>{number}</kbd> {name}</span></label>"
        for number, name in enumerate(LAYERS, start=1)
    )


def _scores_by_key(result: Result) -> dict[str, dict[str, float]]:
    if result.images is None:
        return {}
    each = zip(result.images.keys, mean_iu(result.images.whole), pixel_acc(result.images.whole), strict=True)
    return {
        key: {"mean_iu": round(float(iu), 4), "pixel_acc": round(float(acc), 4)}
        for key, iu, acc in each
        if iu == iu and acc == acc
    }


def _as_script(values: Mapping[str, Any]) -> str:
    """JSON that no name in it can end the <script> of."""
    text = json.dumps(values, separators=(",", ":"), allow_nan=False)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def swatch(colour: Sequence[int]) -> str:
    """A small square of an RGB colour."""
    red, green, blue = colour
    return f'<i class="swatch" style="background:rgb({red},{green},{blue})"></i>'
