"""Describe a data set from the shards' manifests alone: images, sizes, classes, conversions, refusals."""

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fcn import IGNORE_LABEL
from pipeline.errors import DatasetError
from pipeline.files import and_more
from pipeline.shards.read import Shards
from pipeline.tables import Table

NUM_SIZES = 20  # the most frequent sizes are listed
BIN = 25  # pixels, of the histograms of height and width
CONVERSIONS = {  # by Pillow's mode of the file; nets see RGB
    "1": "black and white to RGB",
    "L": "greyscale to RGB",
    "P": "palette to RGB",
    "CMYK": "CMYK to RGB",
    "LA": "transparent on white",
    "PA": "transparent on white",
    "RGBA": "transparent on white",
}


def describe(shards: Shards) -> dict[str, Any]:
    """Return the counts of one split as plain values, the content of inspection.json.

    classes: by name, num_pixels, share (of the pixels that are not void) and num_images (that show the class).
    void: num_pixels of value 255, share (of all pixels) and num_images.
    height, width: min, median, max and a histogram, in pixels.
    """
    column = shards.table.column
    height, width = (column(name).to_numpy() for name in ("height", "width"))
    pixels = column("class_pixels").combine_chunks().flatten().to_numpy().reshape(len(shards), -1)
    void = column("void_pixels").to_numpy()
    num_valid, num_void = int(pixels.sum()), int(void.sum())
    sizes = Counter(zip(height.tolist(), width.tolist(), strict=True))
    modes = Counter(column("mode").to_pylist())
    conversions: Counter[str] = Counter()
    for mode in [*CONVERSIONS, *sorted(modes.keys() - CONVERSIONS.keys() - {"RGB"})]:
        if modes[mode]:
            conversions[CONVERSIONS.get(mode, f"{mode} to RGB")] += modes[mode]
    return {
        "num_images": len(shards),
        "digest": shards.digest,
        "num_shards": len(shards.header["shards"]),
        "num_bytes": sum(shard["bytes"] for shard in shards.header["shards"]),
        "height": _spread(height),
        "width": _spread(width),
        "num_sizes": len(sizes),
        "sizes": [
            {"height": rows, "width": columns, "num_images": count}
            for (rows, columns), count in sizes.most_common(NUM_SIZES)
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
        "conversions": dict(conversions),
        "map": shards.header.get("map", {}),
        "refused": shards.header.get("refused", []),
    }


def refuse_missing_classes(train: Shards, *, allow_partial: bool) -> None:
    """Raise DatasetError if a class has no pixel in the training split; with allow_partial only if all lack them.

    A net cannot learn such a class, and a mean over the other classes looks better than it is.

    allow_partial: data.allow_partial of the profile.
    """
    problem = missing_classes(
        train.classes, train.class_pixels, int(train.table["void_pixels"].to_numpy().sum())
    )
    if not problem:
        return
    if allow_partial and train.class_pixels.any():
        print(f"warning: {problem}", file=sys.stderr, flush=True)
        return
    raise DatasetError(
        f"{problem}; otherwise add images that show it to the training list, or remove it from data.classes. Then "
        "run `dvc repro`" + ("" if allow_partial else ". With data.allow_partial this is only a warning")
    )


def missing_classes(classes: Sequence[str], pixels: NDArray[np.integer], num_void: int) -> str:
    """Return which classes have no pixel, and the remedy if void may take their place; "" if none is missing.

    pixels: (C,) number of pixels of each class in the training split.
    num_void: its number of pixels of IGNORE_LABEL.
    """
    missing = [name for name, number in zip(classes, pixels, strict=True) if not number]
    if not missing:
        return ""
    verb = "class {} is" if len(missing) == 1 else "classes {} are"
    problem = f"{verb.format(and_more(missing))} in no training image"
    if num_void:
        value = classes.index(missing[0])
        problem += (
            f", and {num_void / (num_void + int(pixels.sum())):.1%} of the pixels are {IGNORE_LABEL} (void); "
            f"if {IGNORE_LABEL} means {missing[0]}, run `fcn import`, or write {value} into the masks"
        )
    return problem


def _spread(values: NDArray[np.integer]) -> dict[str, Any]:
    edges = np.arange(values.min() // BIN * BIN, values.max() + BIN + 1, BIN)
    counts, _ = np.histogram(values, edges)
    return {
        "min": int(values.min()),
        "median": float(np.median(values)),
        "max": int(values.max()),
        "histogram": {"edges": edges.tolist(), "num_images": counts.tolist()},
    }


def as_metrics(splits: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Return the splits' numbers under MLflow's names: train/num_images ... and train/class_share/<class>.

    splits: by name, the result of `describe`.
    """
    metrics: dict[str, float] = {}
    for split, counts in splits.items():
        numbers = {
            "num_images": counts["num_images"],
            "num_bytes": counts["num_bytes"],
            "num_refused": len(counts["refused"]),
            "num_converted": sum(counts["conversions"].values()),
            "void_share": counts["void"]["share"],
        }
        for side in ("height", "width"):
            numbers |= {f"{side}/{name}": counts[side][name] for name in ("min", "median", "max")}
        for name, shown in counts["classes"].items():
            numbers |= {f"class_share/{name}": shown["share"], f"class_images/{name}": shown["num_images"]}
        metrics |= {f"{split}/{name}": float(value) for name, value in numbers.items()}
    return metrics


def as_tables(splits: Mapping[str, Mapping[str, Any]]) -> list[Table]:
    """Return the splits side by side: a table of totals, one of classes, and the refused images of each split.

    splits: by name, the result of `describe`; all have the same classes.
    """
    totals = [_totals(counts) for counts in splits.values()]
    head = ["class", *(f"{split}: {name}" for split in splits for name in ("images", "share of pixels"))]
    rows = []
    for name in next(iter(splits.values()))["classes"]:
        shown = [counts["classes"][name] for counts in splits.values()]
        rows.append([name, *(cell for one in shown for cell in (one["num_images"], f"{one['share']:.2%}"))])
    return [
        Table(["", *splits], [[name, *(column[name] for column in totals)] for name in totals[0]]),
        Table(head, rows),
        *(
            Table([f"refused in {split}", "reason"], counts["refused"])
            for split, counts in splits.items()
            if counts["refused"]
        ),
    ]


def _totals(counts: Mapping[str, Any]) -> dict[str, object]:
    mapping = counts.get("map", {})
    conversions = [f"{count} {name}" for name, count in counts["conversions"].items()]
    missing_classes = [name for name, shown in counts["classes"].items() if not shown["num_images"]]
    return {
        "images": counts["num_images"],
        "MiB in shards": f"{counts['num_bytes'] / 2**20:.1f} in {counts['num_shards']}",
        "height: smallest, median, largest": "{min}, {median:g}, {max}".format(**counts["height"]),
        "width: smallest, median, largest": "{min}, {median:g}, {max}".format(**counts["width"]),
        "different sizes": counts["num_sizes"],
        "void, share of pixels": f"{counts['void']['share']:.2%}",
        "converted": ", ".join(conversions) or "none",
        **({"classes mapped": ", ".join(f"{a} = {b}" for a, b in mapping.items())} if mapping else {}),
        "refused": len(counts["refused"]),
        "classes in no image": ", ".join(missing_classes) or "none",
    }
