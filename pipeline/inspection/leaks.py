"""Which images are in more than one split: by id, and by what their pixels are, whatever they are called.

A score on images that the net was trained on says nothing, so such a leak stops the pipeline.
"""

import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from typing import Any, Literal

from pipeline.errors import LeakError
from pipeline.shards.read import Shards
from pipeline.tables import table

NUM_NAMED = 8  # ids in a message; all of them are in the JSON


@dataclass(frozen=True)
class Images:
    """A set of images. pixels: by id, the sha256 that datasets.files.examine gives, None where it is not known."""

    name: str
    pixels: Mapping[str, bytes | None]

    @classmethod
    def of_shards(cls, name: str, shards: Shards) -> "Images":
        return cls(name, dict(zip(shards.keys, shards.table["pixel_sha256"].to_pylist(), strict=True)))

    @classmethod
    def of_record(cls, name: str, record: Mapping[str, Any]) -> "Images":
        """The images of a record of trained_on.py."""
        digests, size = bytes.fromhex(record["pixel_sha256"]), 32
        starts = range(0, len(digests), size)
        pixels = (digests[start : start + size] for start in starts)
        return cls(name, dict(zip(record["keys"], pixels, strict=True)))

    @cached_property
    def ids_by_pixels(self) -> dict[bytes, list[str]]:
        """Ids in their order, by their pixels, where these are known."""
        found: dict[bytes, list[str]] = {}
        for key in sorted(self.pixels):
            if (digest := self.pixels[key]) is not None:
                found.setdefault(digest, []).append(key)
        return found


def seen(evaluated: Images, trained: Images) -> dict[str, str]:
    """Those evaluated images that are trained on too, each with its id there: its own, or one of the same pixels."""
    found = {}
    for key, digest in sorted(evaluated.pixels.items()):
        if key in trained.pixels:
            found[key] = key
        elif digest is not None and digest in trained.ids_by_pixels:
            found[key] = trained.ids_by_pixels[digest][0]
    return found


def survey(
    train: Images,
    val: Images,
    lists: Mapping[str, Sequence[str]],
    trained_on: Collection[str],
    evaluated_on: Collection[str],
) -> dict[str, Any]:
    """What every two splits have in common, and which images of val are trained on, as JSON holds it.

    lists: ids of published lists by name, whether their images are in the shards or not.
    trained_on, evaluated_on: the lists that train and val are made of, before anything is excluded.
    """
    known = {**train.pixels, **val.pixels}
    splits = [
        train,
        val,
        *(Images(name, {key: known.get(key) for key in ids}) for name, ids in lists.items()),
    ]
    uses = {train.name: {"train"}, val.name: {"val"}}
    for name in lists:
        uses[name] = {use for use, names in (("train", trained_on), ("val", evaluated_on)) if name in names}
    leak = seen(val, train)
    return {
        "leak": {"num_images": len(leak), "id_in_train": leak},
        "splits": {
            one.name: {
                "num_images": len(one.pixels),
                "num_pixels_known": sum(digest is not None for digest in one.pixels.values()),
            }
            for one in splits
        },
        "pairs": [_pair(a, b, uses, train, val, leak) for a, b in combinations(splits, 2)],
        "duplicates": {
            one.name: [ids for ids in one.ids_by_pixels.values() if len(ids) > 1] for one in (train, val)
        },
    }


def _pair(
    a: Images, b: Images, uses: Mapping[str, set[str]], train: Images, val: Images, leak: Mapping[str, str]
) -> dict[str, Any]:
    same_id = sorted(a.pixels.keys() & b.pixels.keys())
    renamed = {key: other for key, other in seen(a, b).items() if key != other}
    met = {*same_id, *renamed, *renamed.values()}
    numbers = {
        "num_same_id": len(same_id),
        "num_same_pixels": len(a.ids_by_pixels.keys() & b.ids_by_pixels.keys()),
        "num_in_train": len(met & train.pixels.keys()),
        "num_in_val": len(met & val.pixels.keys()),
    }
    pair = {"splits": [a.name, b.name], **numbers, "same_pixels_other_id": renamed}
    if (
        uses[a.name] == uses[b.name] and len(uses[a.name]) == 1
    ):  # meant to meet: the ids would only fill the file
        return pair | {"verdict": f"both are for {', '.join(uses[a.name])}"}
    if not met:
        verdict = "nothing in common"
    elif num_leaked := len(met & leak.keys()):
        verdict = f"LEAK: {num_leaked} are trained and evaluated on"
    elif numbers["num_in_train"] == 0:
        verdict = "left out of train"
    elif numbers["num_in_val"] == 0:
        verdict = "left out of val"
    else:
        verdict = "each is left out of train or of val"
    return pair | {"verdict": verdict, "same_id": same_id}


def as_markdown(found: Mapping[str, Any], reasons: Sequence[str]) -> str:
    """A survey as a person reads it. reasons: data.allow_leak."""
    num_leaked, num_val = found["leak"]["num_images"], found["splits"]["val"]["num_images"]
    parts = ["No image of val is trained on."]
    if num_leaked:
        parts = [
            f"**LEAK: {num_leaked} of the {num_val} images of val are trained on**: "
            f"{named(found['leak']['id_in_train'], 'train')}. Scores on val say little."
        ]
        parts += [f"Allowed by data.allow_leak: {reason}" for reason in reasons] or [
            "Not allowed: training is refused."
        ]
    parts.append(
        table(
            ["split", "images", "pixels known"],
            [[name, one["num_images"], one["num_pixels_known"]] for name, one in found["splits"].items()],
        )
    )
    head = [
        "split",
        "split",
        "same id",
        "same pixels",
        "under another id",
        "of these in train",
        "in val",
        "so",
    ]
    rows = [
        [
            *pair["splits"],
            pair["num_same_id"],
            pair["num_same_pixels"],
            len(pair["same_pixels_other_id"]),
            pair["num_in_train"],
            pair["num_in_val"],
            pair["verdict"],
        ]
        for pair in found["pairs"]
    ]
    parts.append(table(head, rows))
    for name, groups in found["duplicates"].items():
        said = [" = ".join(ids) for ids in groups]
        parts.append(f"The same pixels under several ids within {name}: {_some(said) or 'none'}.")
    return "\n\n".join(parts) + "\n"


def verdict(leak: Mapping[str, str], reasons: Sequence[str]) -> Literal["none", "allowed", "refused"]:
    """What `refuse` will do."""
    return ("allowed" if reasons else "refused") if leak else "none"


def refuse(
    leak: Mapping[str, str], evaluated: str, trained: str, reasons: Sequence[str], remedy: str
) -> None:
    """LeakError if images are both trained and evaluated on; a loud warning if data.allow_leak gives reasons.

    leak: what `seen` found.   evaluated, trained: what to call the two.   remedy: what to do about it.
    """
    if not leak:
        return
    said = f"{len(leak)} images of {evaluated} are in {trained}: {named(leak, trained)}"
    if not reasons:
        raise LeakError(
            f"{said}; a score on them would say nothing: {remedy}, or give the reason in data.allow_leak"
        )
    warn(f"LEAK: {said}; allowed by data.allow_leak: {'; '.join(reasons)}")


def check_model(
    records: Sequence[Mapping[str, Any]] | None, evaluated: Images, model: str, reasons: Sequence[str]
) -> int | None:
    """How many of the evaluated images the model was trained on; LeakError if any, unless reasons allow it.

    records: what the model's file says (trained_on.py). Where it does not say all, a warning, and None instead of 0.
    """
    leak: dict[str, str] = {}
    known = [record for record in records or [] if record["keys"] is not None]
    for record in known:
        leak |= seen(evaluated, Images.of_record(record["split"], record))
    refuse(
        dict(sorted(leak.items())),
        evaluated.name,
        f"what {model} was trained on",
        reasons,
        "evaluate it on other images",
    )
    if leak or (records is not None and len(known) == len(records)):
        return len(leak)
    warn(f"{model} does not say all that it was trained on, so {evaluated.name} may hold some of that")
    return None


def named(leak: Mapping[str, str], trained: str) -> str:
    """The first ids of a leak, and how many more there are."""
    return _some([key if key == other else f"{key} ({other} in {trained})" for key, other in leak.items()])


def warn(message: str) -> None:
    print(f"warning: {message}", file=sys.stderr, flush=True)


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - NUM_NAMED} more" if len(names) > NUM_NAMED else ""
    return ", ".join(names[:NUM_NAMED]) + more
