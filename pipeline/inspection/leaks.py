"""The leak guard: find images that two splits share, by id or by pixels, and refuse scores on training images."""

import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from typing import Any, Literal

from pipeline import files
from pipeline.errors import LeakError
from pipeline.shards.read import Shards
from pipeline.tables import Table

DIGEST_BYTES = 32  # of a sha256


@dataclass(frozen=True)
class Images:
    """A named set of images.

    pixels: by id, the sha256 of the decoded pixels (shards/images.py); None where it is not known.
    """

    name: str
    pixels: Mapping[str, bytes | None]

    @classmethod
    def of_shards(cls, name: str, shards: Shards) -> "Images":
        return cls(name, dict(zip(shards.keys, shards.table["pixel_sha256"].to_pylist(), strict=True)))

    @classmethod
    def of_record(cls, name: str, record: Mapping[str, Any]) -> "Images":
        """Read a record of a model file (training/provenance.py)."""
        digests = bytes.fromhex(record["pixel_sha256"])
        starts = range(0, len(digests), DIGEST_BYTES)
        pixels = (digests[start : start + DIGEST_BYTES] for start in starts)
        return cls(name, dict(zip(record["keys"], pixels, strict=True)))

    @cached_property
    def ids_by_pixels(self) -> dict[bytes, list[str]]:
        """Sorted ids by pixel digest; images of unknown pixels are left out."""
        ids: dict[bytes, list[str]] = {}
        for key in sorted(self.pixels):
            if (digest := self.pixels[key]) is not None:
                ids.setdefault(digest, []).append(key)
        return ids


def shared_images(evaluated: Images, trained: Images) -> dict[str, str]:
    """Return the evaluated images that are also trained on: id -> id in training (the same, or of equal pixels)."""
    leak = {}
    for key, digest in sorted(evaluated.pixels.items()):
        if key in trained.pixels:
            leak[key] = key
        elif digest is not None and digest in trained.ids_by_pixels:
            leak[key] = trained.ids_by_pixels[digest][0]
    return leak


def survey(
    train: Images,
    val: Images,
    lists: Mapping[str, Sequence[str]],
    trained_on: Collection[str],
    evaluated_on: Collection[str],
) -> dict[str, Any]:
    """Compare every two splits and return the content of leaks.json.

    lists: ids of published lists by name, whether their images are in the shards or not.
    trained_on: the lists that train is made of, before exclusions.
    evaluated_on: the lists that val is made of, before exclusions.
    """
    known = {**train.pixels, **val.pixels}
    of_lists = [Images(name, {key: known.get(key) for key in ids}) for name, ids in lists.items()]
    splits = [train, val, *of_lists]
    uses = {train.name: {"train"}, val.name: {"val"}}
    for name in lists:
        uses[name] = {use for use, names in (("train", trained_on), ("val", evaluated_on)) if name in names}
    leak = shared_images(val, train)
    return {
        "leak": {"num_images": len(leak), "id_in_train": leak},
        "splits": {
            split.name: {
                "num_images": len(split.pixels),
                "num_pixels_known": sum(digest is not None for digest in split.pixels.values()),
            }
            for split in splits
        },
        "pairs": [_compare(a, b, uses, train, val, leak) for a, b in combinations(splits, 2)],
        "duplicates": {
            split.name: [ids for ids in split.ids_by_pixels.values() if len(ids) > 1]
            for split in (train, val)
        },
    }


def survey_tuning(tuning: Images, train: Images, val: Images) -> dict[str, Any]:
    """Return the value of "tuning" in leaks.json: how many images data.tuning holds out, and those that others share.

    id_in_tuning: val's images that settings would be chosen on.
    id_in_train: images of tuning that are trained on under another id; their scores favour settings that overfit.
    """
    return {
        "num_images": len(tuning.pixels),
        "id_in_tuning": shared_images(val, tuning),
        "id_in_train": shared_images(tuning, train),
    }


def names_of(shared: Mapping[str, Any], shards: Iterable[Shards]) -> dict[str, str]:
    """Return the value of "names" in leaks.json: the user's own names of the ids that `as_blocks` shows.

    shared: the result of `survey`, with that of `survey_tuning` if there is one.
    """
    tuning = shared.get("tuning", {"id_in_tuning": {}, "id_in_train": {}})
    pairs = (shared["leak"]["id_in_train"], tuning["id_in_tuning"], tuning["id_in_train"])
    shown = {key for found in pairs for pair in found.items() for key in pair}
    shown |= {key for groups in shared["duplicates"].values() for ids in groups for key in ids}
    names = [(key, opened.name_of(key)) for opened in shards for key in sorted(shown)]
    return {key: name for key, name in names if key != name}


def _compare(
    a: Images, b: Images, uses: Mapping[str, set[str]], train: Images, val: Images, leak: Mapping[str, str]
) -> dict[str, Any]:
    same_id = sorted(a.pixels.keys() & b.pixels.keys())
    renamed = {key: other for key, other in shared_images(a, b).items() if key != other}
    shared = {*same_id, *renamed, *renamed.values()}
    num_in_train, num_in_val = (len(shared & images.pixels.keys()) for images in (train, val))
    pair = {
        "splits": [a.name, b.name],
        "num_same_id": len(same_id),
        "num_same_pixels": len(a.ids_by_pixels.keys() & b.ids_by_pixels.keys()),
        "num_in_train": num_in_train,
        "num_in_val": num_in_val,
        "same_pixels_other_id": renamed,
    }
    if uses[a.name] == uses[b.name] and len(uses[a.name]) == 1:  # overlap is expected: no list of ids
        return pair | {"verdict": f"both are for {', '.join(uses[a.name])}"}
    if not shared:
        verdict = "nothing in common"
    elif num_leaked := len(shared & leak.keys()):
        verdict = f"LEAK: {num_leaked} are trained and evaluated on"
    elif num_in_train == 0:
        verdict = "left out of train"
    elif num_in_val == 0:
        verdict = "left out of val"
    else:
        verdict = "each is left out of train or of val"
    return pair | {"verdict": verdict, "same_id": same_id}


def as_blocks(shared: Mapping[str, Any], reasons: Sequence[str]) -> list[Table | str]:
    """Return a survey as paragraphs and tables.

    shared: the result of `survey`.
    reasons: data.allow_leak of the profile.
    """
    leak, splits, num_val = shared["leak"], shared["splits"], shared["splits"]["val"]["num_images"]
    names = shared.get("names", {})  # not in the records of earlier versions
    blocks: list[Table | str] = ["No image of val is trained on."]
    if leak["num_images"]:
        ids = named(renamed(leak["id_in_train"], names), "train")
        allowed = [f"Allowed by data.allow_leak: {reason}" for reason in reasons]
        blocks = [
            f"LEAK: {leak['num_images']} of the {num_val} images of val are trained on: {ids}. "
            "The scores on val are not valid.",
            *(allowed or ["Not allowed: training is refused."]),
        ]
    if tuning := shared.get("tuning"):
        tuned, trained = (renamed(tuning[key], names) for key in ("id_in_tuning", "id_in_train"))
        blocks.append(
            f"data.tuning leaves {tuning['num_images']} images out of train to choose settings on. "
            f"Of these are in val: {named(tuned, 'tuning') or 'none'}; "
            f"trained on under another id: {named(trained, 'train') or 'none'}."
        )
    rows = [[name, split["num_images"], split["num_pixels_known"]] for name, split in splits.items()]
    blocks.append(Table(["split", "images", "pixels known"], rows))
    sides = ["split", "split", "same id", "same pixels", "under another id", "of these in train", "in val"]
    pairs = [
        [
            *pair["splits"],
            pair["num_same_id"],
            pair["num_same_pixels"],
            len(pair["same_pixels_other_id"]),
            pair["num_in_train"],
            pair["num_in_val"],
            pair["verdict"],
        ]
        for pair in shared["pairs"]
    ]
    blocks.append(Table([*sides, "verdict"], pairs))
    for name, groups in shared["duplicates"].items():
        duplicates = [" = ".join(names.get(key, key) for key in ids) for ids in groups]
        blocks.append(
            f"The same pixels under several ids within {name}: {files.and_more(duplicates) or 'none'}."
        )
    return blocks


def verdict(leak: Mapping[str, str], reasons: Sequence[str]) -> Literal["none", "allowed", "refused"]:
    """Return the decision that `refuse` takes."""
    return ("allowed" if reasons else "refused") if leak else "none"


def refuse(
    leak: Mapping[str, str], evaluated: str, trained: str, reasons: Sequence[str], remedy: str
) -> None:
    """Raise LeakError if images are both trained and evaluated on; only warn if the profile allows it.

    leak: the result of `shared_images`.
    evaluated: the name of the evaluated images, for the message.
    trained: the name of the training images, for the message.
    reasons: data.allow_leak of the profile.
    remedy: what the user can do about it, for the message.
    """
    if not leak:
        return
    leaked = f"{len(leak)} images of {evaluated} are in {trained}: {named(leak, trained)}"
    if not reasons:
        raise LeakError(
            f"{leaked}; a score on images that were trained or tuned on is not valid: {remedy}, or give the reason "
            "in data.allow_leak"
        )
    _warn(f"LEAK: {leaked}; allowed by data.allow_leak: {'; '.join(reasons)}")


def check_model(
    records: Sequence[Mapping[str, Any]] | None, evaluated: Images, model: str, reasons: Sequence[str]
) -> int | None:
    """Return how many of the evaluated images a model was trained on.

    Warn and return None if no leak is found, but the file does not list all training images.

    records: the file's `trained_on` (training/provenance.py).

    Raises LeakError if there are any, unless data.allow_leak gives reasons.
    """
    leak: dict[str, str] = {}
    known = [record for record in records or [] if record["keys"] is not None]
    for record in known:
        leak |= shared_images(evaluated, Images.of_record(record["split"], record))
    trained = f"what {model} was trained or tuned on"
    refuse(dict(sorted(leak.items())), evaluated.name, trained, reasons, "evaluate it on other images")
    if leak or (records is not None and len(known) == len(records)):
        return len(leak)
    _warn(f"{model} does not list all its training images, so {evaluated.name} may hold some of them")
    return None


def renamed(leak: Mapping[str, str], names: Mapping[str, str]) -> dict[str, str]:
    """Return a leak under the user's own names, by id."""
    return {names.get(key, key): names.get(other, other) for key, other in leak.items()}


def named(leak: Mapping[str, str], trained: str) -> str:
    """Return the first ids of a leak, and how many more there are."""
    return files.and_more(
        [key if key == other else f"{key} ({other} in {trained})" for key, other in leak.items()]
    )


def _warn(message: str) -> None:
    print(f"warning: {message}", file=sys.stderr, flush=True)
