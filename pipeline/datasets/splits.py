"""Training and validation splits, combined from the lists of data sets."""

import hashlib
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

from pipeline.datasets import own, sbd, voc
from pipeline.datasets.layout import Layout
from pipeline.errors import DatasetError, LeakError
from pipeline.files import and_more
from pipeline.shards.images import REMEDY
from pipeline.shards.sample import Sample, digest_of_keys

# By the name in a profile: the layout, and the function that finds its folder below the raw folder
DATASETS: dict[str, tuple[Layout, Callable[[Path], Path]]] = {
    "voc2007": (voc.LAYOUT, partial(voc.root, year=2007)),
    "voc2011": (voc.LAYOUT, partial(voc.root, year=2011)),
    "voc2012": (voc.LAYOUT, voc.root),
    "sbd": (sbd.LAYOUT, sbd.root),
    "own": (own.LAYOUT, own.root),
}
PUBLISHED_COUNTS = voc.PUBLISHED_COUNTS | sbd.PUBLISHED_COUNTS
UNLABELLED = ("voc2011/test", "voc2012/test")  # only VOC's own server can score these

# VOC's lists of all images instead of the segmented ones; derived lists need them, profiles cannot name them
_MAIN = {"voc2012-main": (replace(voc.LAYOUT, lists="ImageSets/Main"), voc.root)}


class Derived(NamedTuple):
    """A list that the archives do not hold but that follows from theirs: the union of some without others.

    sha256: of its ids, sorted, one per line.
    """

    include: tuple[str, ...]
    exclude: tuple[str, ...]
    sha256: str


# A list file of the same name in the data set's folder takes precedence, and must hold the same ids
DERIVED = {
    "voc2012/trainaug": Derived(
        ("voc2012/train", "sbd/train", "sbd/val"),
        ("voc2012/val",),
        "d1326bd532648d73bc4b1bd275434eba81930982dc7401a65a8cecb26c028e24",
    ),
    # The paper's validation set; in the reference release it is data/pascal/seg11valid.txt
    "voc2011/seg11valid": Derived(
        ("voc2011/val",), ("sbd/train",), "4ca991bd72c251fd2485eaa9e29536502ea3800d1b1c17c151fd6a04bcfbc2cc"
    ),
    # SBD's own page has it, and torchvision its md5
    "sbd/train_noval": Derived(
        ("sbd/train", "sbd/val"),
        ("voc2012-main/val",),
        "0b2068f7a359d2907431803e1cd63bf6162da37d7d503b589d3b08c6fd0c2432",
    ),
}


@dataclass(frozen=True)
class Split:
    """The ids of a split, and the data set that each takes photo and label from.

    raw: the folder of all data sets.
    sources: by id, a name in DATASETS.
    values: what each value of the labels' files becomes; empty: the same.
    """

    raw: Path
    sources: dict[str, str]
    num_classes: int
    values: tuple[int, ...] = ()

    def without(self, keys: Collection[str]) -> "Split":
        """Return the split without some ids."""
        kept = {key: source for key, source in self.sources.items() if key not in keys}
        return replace(self, sources=kept)

    def load(self, key: str) -> Sample:
        """Return the sample of an id; DatasetError names the file that is missing or unusable."""
        layout, root = _located(self.raw, self.sources[key])
        return layout.sample(root, key, self.num_classes, self.values)

    def stamp(self, key: str) -> str:
        """Return the sizes and times of an id's files, which change when a file does, and the values of its label."""
        files = [path.stat() for path in _files(self.raw, self.sources[key], key) if path.exists()]
        return " ".join(
            [f"{file.st_size} {file.st_mtime_ns}" for file in files] + [str(self.values)] * bool(self.values)
        )


def resolve(
    raw: Path,
    include: Sequence[str],
    exclude: Sequence[str],
    *,
    num_classes: int,
    count: int | None,
    checks_published: bool,
    allow_partial: bool,
) -> Split:
    """Return the ids of some lists without those of others. An id in several lists belongs to the first.

    include: lists as <data set>/<list>, such as "voc2012/train".
    exclude: lists in the same form.
    num_classes: label values from this number on are refused, except void.
    count: the number of ids expected, None for any.
    checks_published: compare every list with its published length, and derived lists with their published content.
    allow_partial: keep only ids whose files exist, print their number, and accept any count of at least one.
    """
    sources = _combined(raw, include, exclude, checks_published)
    wanted = " + ".join(include) + "".join(f" - {name}" for name in exclude)
    if allow_partial:
        num_listed = len(sources)
        sources = {
            key: source
            for key, source in sources.items()
            if all(path.is_file() for path in _files(raw, source, key))
        }
        print(
            f"{wanted}: {len(sources)} of {num_listed} listed images are there (data.allow_partial)",
            flush=True,
        )
    if not sources:
        raise DatasetError(f"{wanted}: no image left in {raw}; {REMEDY}")
    for name in set(include) & set(UNLABELLED):
        _require_labels(raw, name)
    if count is not None and not allow_partial and len(sources) != count:
        raise DatasetError(
            f"{wanted}: expected {count} images, found {len(sources)} in {raw}; "
            "run `dvc repro -f download`, correct data.splits in the profile, or set data.allow_partial"
        )
    return Split(raw, sources, num_classes)


def hold_out(train: Split, share: float, evaluated: Collection[str]) -> Split:
    """Return a share of a training split, at least one image.

    The images with the smallest hashes of their ids are chosen, so the choice is the same on every machine, and an
    image that is added or removed changes at most one other.

    share: of the training split's images, above 0.
    evaluated: ids that are never chosen.

    Raises DatasetError if no other image can be chosen, or none would be left to train on.
    """
    keys = sorted(
        train.sources.keys() - set(evaluated), key=lambda key: hashlib.sha256(key.encode()).digest()
    )
    number = max(1, round(share * len(train.sources)))
    if number > len(keys) or number == len(train.sources):
        raise DatasetError(
            f"data.tuning {share} of {len(train.sources)} images of train: {number} must be held out, {len(keys)} "
            "are not in val, and at least one must be left; add images to train or set data.tuning: 0"
        )
    return train.without(set(train.sources) - set(keys[:number]))


def refuse_shared(tuning: Split, val: Split, train: Split) -> None:
    """Refuse a list of data.tuning that holds images of val, or every image of train."""
    if shared := sorted(tuning.sources.keys() & val.sources.keys()):
        names = own.sources(tuning.raw)
        shown = and_more([names.get(key, key) for key in shared])
        raise LeakError(
            f"data.tuning holds {len(shared)} images of val: {shown}; settings chosen on the images of a "
            "score make it too good: list other images"
        )
    if not train.sources.keys() - tuning.sources.keys():
        raise DatasetError("data.tuning holds every image of train; list fewer")


def listed(raw: Path, names: Sequence[str]) -> dict[str, list[str]]:
    """Return the ids of each list, whether their files exist or not."""
    return {name: list(_ids(raw, name, checks_published=False)) for name in names}


def _combined(raw: Path, include: Sequence[str], exclude: Sequence[str], checks: bool) -> dict[str, str]:
    sources: dict[str, str] = {}
    for name in include:
        sources |= {key: source for key, source in _ids(raw, name, checks).items() if key not in sources}
    for name in exclude:
        for key in _ids(raw, name, checks):
            sources.pop(key, None)
    return sources


def _ids(raw: Path, name: str, checks_published: bool) -> dict[str, str]:
    """Return the data set of each id of a list, in the list's order."""
    dataset, _, split = name.partition("/")
    layout, root = _located(raw, dataset)
    derived = DERIVED.get(name)
    if derived and not (root / layout.lists / f"{split}.txt").is_file():
        ids = _combined(raw, derived.include, derived.exclude, checks_published)
        where = f"{raw} ({' + '.join(derived.include)} - {' - '.join(derived.exclude)})"
    else:
        ids, where = dict.fromkeys(layout.ids(root, split), dataset), root
    expected = PUBLISHED_COUNTS.get(name, len(ids))
    if checks_published and len(ids) != expected:
        raise DatasetError(
            f"{name}: expected {expected} images as published, found {len(ids)} listed in {where}; "
            "run `dvc repro -f download` or set data.allow_partial"
        )
    if checks_published and derived and digest_of_keys(ids) != derived.sha256:
        raise DatasetError(
            f"{name}: {len(ids)} images as published, but not the same ones, are listed in {where}; "
            "run `dvc repro -f download` or set data.allow_partial"
        )
    return ids


def _located(raw: Path, dataset: str) -> tuple[Layout, Path]:
    layout, root = (DATASETS | _MAIN)[dataset]
    return layout, root(raw)


def _files(raw: Path, dataset: str, key: str) -> tuple[Path, Path]:
    layout, root = _located(raw, dataset)
    return layout.files(root, key)


def _require_labels(raw: Path, name: str) -> None:
    """Refuse a test list without published labels, instead of reporting each label as missing."""
    dataset, _, split = name.partition("/")
    layout, root = _located(raw, dataset)
    _, first_label = layout.files(root, layout.ids(root, split)[0])
    if not first_label.exists():
        raise DatasetError(
            f"{name}: VOC has published no labels of these images, so they can be neither trained nor scored on "
            "here; VOC's evaluation server scores predictions"
        )
