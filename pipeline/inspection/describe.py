"""What a data set is like, from its manifests alone: how many images, how large, which classes, what was converted."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.shards.read import Shards
from pipeline.tables import table

NUM_SIZES = 20  # the most frequent ones are listed
BIN = 25  # pixels, of the histograms of height and width
SPREAD = ("min", "median", "max")
CONVERSIONS = {
    "L": "greyscale to RGB",
    "CMYK": "CMYK to RGB",
}  # by Pillow's mode of the file; all nets see RGB


def inspect(shards: Shards) -> dict[str, Any]:
    """The counts of one split, as JSON holds them.

    classes: pixels, their share of the pixels that are not void, and the images that show the class.
    void: pixels 255, their share of all pixels, and the images with any.
    """
    column = shards.table.column
    height, width = (column(name).to_numpy() for name in ("height", "width"))
    pixels = column("class_pixels").combine_chunks().flatten().to_numpy().reshape(len(shards), -1)
    void = column("void_pixels").to_numpy()
    num_valid, num_void = int(pixels.sum()), int(void.sum())
    sizes = Counter(zip(height.tolist(), width.tolist(), strict=True))
    modes = Counter(column("mode").to_pylist())
    return {
        "num_images": len(shards),
        "digest": shards.digest,
        "num_shards": len(shards.header["shards"]),
        "num_bytes": sum(shard["bytes"] for shard in shards.header["shards"]),
        "height": _spread(height),
        "width": _spread(width),
        "num_sizes": len(sizes),
        "sizes": [
            {"height": high, "width": wide, "num_images": count}
            for (high, wide), count in sizes.most_common(NUM_SIZES)
        ],
        "classes": {
            name: {
                "num_pixels": int(pixels[:, i].sum()),
                "share": float(pixels[:, i].sum() / max(num_valid, 1)),
                "num_images": int((pixels[:, i] > 0).sum()),
            }
            for i, name in enumerate(shards.classes)
        },
        "void": {
            "num_pixels": num_void,
            "share": num_void / (num_valid + num_void),
            "num_images": int((void > 0).sum()),
        },
        "modes": dict(sorted(modes.items())),
        "conversions": {said: modes[mode] for mode, said in CONVERSIONS.items() if modes[mode]},
        "refused": shards.header.get("refused", []),
    }


def _spread(values: NDArray[np.integer]) -> dict[str, Any]:
    edges = np.arange(values.min() // BIN * BIN, values.max() + BIN + 1, BIN)
    counts, _ = np.histogram(values, edges)
    return {
        "min": int(values.min()),
        "median": float(np.median(values)),
        "max": int(values.max()),
        "histogram": {"edges": edges.tolist(), "num_images": counts.tolist()},
    }


def as_metrics(found: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """The numbers of the splits under MLflow's names: train/num_images ... and train/class_share/<class>."""
    metrics: dict[str, float] = {}
    for split, one in found.items():
        numbers = {
            "num_images": one["num_images"],
            "num_bytes": one["num_bytes"],
            "num_refused": len(one["refused"]),
            "num_converted": sum(one["conversions"].values()),
            "void_share": one["void"]["share"],
        }
        numbers |= {f"{side}/{what}": one[side][what] for side in ("height", "width") for what in SPREAD}
        for name, counts in one["classes"].items():
            numbers |= {f"class_share/{name}": counts["share"], f"class_images/{name}": counts["num_images"]}
        metrics |= {f"{split}/{name}": float(value) for name, value in numbers.items()}
    return metrics


def as_markdown(found: Mapping[str, Mapping[str, Any]]) -> str:
    """The splits side by side, as a person reads them; all of the same classes."""
    sides = [_column(one) for one in found.values()]
    parts = [table(["", *found], [[name, *(side[name] for side in sides)] for name in sides[0]])]
    head = ["class", *(f"{split}: {what}" for split in found for what in ("images", "share of pixels"))]
    rows = []
    for name in next(iter(found.values()))["classes"]:
        counts = [one["classes"][name] for one in found.values()]
        rows.append([name, *(cell for one in counts for cell in (one["num_images"], f"{one['share']:.2%}"))])
    parts.append(table(head, rows))
    for split, one in found.items():
        if one["refused"]:
            reasons = [f"* {key}: {reason}" for key, reason in one["refused"]]
            parts.append("\n".join([f"Refused in {split}:", "", *reasons]))
    return "\n\n".join(parts) + "\n"


def _column(one: Mapping[str, Any]) -> dict[str, object]:
    conversions = [f"{count} {said}" for said, count in one["conversions"].items()]
    missing = [name for name, counts in one["classes"].items() if not counts["num_images"]]
    return {
        "images": one["num_images"],
        "MiB in shards": f"{one['num_bytes'] / 2**20:.1f} in {one['num_shards']}",
        "height: smallest, median, largest": "{min}, {median:g}, {max}".format(**one["height"]),
        "width: smallest, median, largest": "{min}, {median:g}, {max}".format(**one["width"]),
        "different sizes": one["num_sizes"],
        "void, share of pixels": f"{one['void']['share']:.2%}",
        "converted": ", ".join(conversions) or "none",
        "refused": len(one["refused"]),
        "classes in no image": ", ".join(missing) or "none",
    }
