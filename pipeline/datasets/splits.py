"""Training and validation splits put together from the lists of data sets."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

from pipeline.datasets import own, sbd, voc
from pipeline.datasets.layout import Layout
from pipeline.errors import DatasetError
from pipeline.shards.labels import REMEDY
from pipeline.shards.sample import Sample

# name in a profile: (how it is laid out, where its files lie under the raw folder)
DATASETS: dict[str, tuple[Layout, Callable[[Path], Path]]] = {
    "voc2007": (voc.LAYOUT, partial(voc.root, year=2007)),
    "voc2011": (voc.LAYOUT, partial(voc.root, year=2011)),
    "voc2012": (voc.LAYOUT, voc.root),
    "sbd": (sbd.LAYOUT, sbd.root),
    "own": (own.LAYOUT, own.root),
}
PUBLISHED_COUNTS = voc.PUBLISHED_COUNTS | sbd.PUBLISHED_COUNTS
UNLABELLED = ("voc2011/test", "voc2012/test")  # scored by VOC's own server alone


class Derived(NamedTuple):
    """A list that is not in the archives but follows from theirs; sha256: of its ids, sorted, one a line."""

    include: tuple[str, ...]
    exclude: tuple[str, ...]
    sha256: str


# A list file of the same name in the data set's folder goes first, and must agree
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
    # SBD's own page has it, and torchvision its md5; ImageSets/Main splits all of VOC's images, not the segmented only
    "sbd/train_noval": Derived(
        ("sbd/train", "sbd/val"),
        ("voc2012-main/val",),
        "0b2068f7a359d2907431803e1cd63bf6162da37d7d503b589d3b08c6fd0c2432",
    ),
}
_MAIN = {"voc2012-main": (replace(voc.LAYOUT, lists="ImageSets/Main"), voc.root)}


@dataclass(frozen=True)
class Split:
    """Which ids a split holds, and from which data set each takes image and label."""

    raw: Path
    sources: dict[str, str]  # id: name in DATASETS
    num_classes: int

    def load(self, key: str) -> Sample:
        """The sample of an id; DatasetError names the file that is missing or unusable."""
        layout, root = DATASETS[self.sources[key]]
        return layout.sample(root(self.raw), key, self.num_classes)

    def stamp(self, key: str) -> str:
        """Changes when a file of the id does: their sizes and times."""
        layout, root = DATASETS[self.sources[key]]
        files = [path.stat() for path in layout.files(root(self.raw), key) if path.exists()]
        return " ".join(f"{file.st_size} {file.st_mtime_ns}" for file in files)


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
    """The ids of the `include` lists without those of the `exclude` lists, e.g. ["voc2012/train", "sbd/train"].

    An id in several lists takes image and label from the first.   count: how many ids there must be.
    checks_published: hold every list against its published length, derived ones against their content too.
    allow_partial: keep the ids whose files are there, and say how many are not, instead of refusing the rest later
    or holding their number against `count`.
    """
    sources = _combined(raw, include, exclude, checks_published)
    what = " + ".join(include) + "".join(f" - {name}" for name in exclude)
    if allow_partial:
        listed = len(sources)
        sources = {key: source for key, source in sources.items() if _is_there(raw, source, key)}
        print(f"{what}: {len(sources)} of {listed} listed images are there (data.allow_partial)", flush=True)
    if not sources:
        raise DatasetError(f"{what}: no image left in {raw}; {REMEDY}")
    for name in set(include) & set(UNLABELLED):
        _require_labels(raw, name)
    if count is not None and not allow_partial and len(sources) != count:
        raise DatasetError(
            f"{what}: expected {count} images, found {len(sources)} in {raw}; "
            "run `dvc repro -f download`, mend data.splits in the profile, or set data.allow_partial"
        )
    return Split(raw, sources, num_classes)


def _combined(raw: Path, include: Sequence[str], exclude: Sequence[str], checks: bool) -> dict[str, str]:
    """id: data set, for the ids of some lists without those of others."""
    sources: dict[str, str] = {}
    for name in include:
        sources |= {key: source for key, source in _ids(raw, name, checks).items() if key not in sources}
    for name in exclude:
        for key in _ids(raw, name, checks):
            sources.pop(key, None)
    return sources


def _ids(raw: Path, name: str, checks_published: bool) -> dict[str, str]:
    """id: data set, for the ids of one list, in its order."""
    dataset, _, split = name.partition("/")
    layout, root = (DATASETS | _MAIN)[dataset]
    derived, folder = DERIVED.get(name), root(raw)
    if derived and not (folder / layout.lists / f"{split}.txt").is_file():
        ids = _combined(raw, derived.include, derived.exclude, checks_published)
        where = f"{raw} ({' + '.join(derived.include)} - {' - '.join(derived.exclude)})"
    else:
        ids, where = dict.fromkeys(layout.ids(folder, split), dataset), folder
    expected = PUBLISHED_COUNTS.get(name, len(ids))
    if checks_published and len(ids) != expected:
        raise DatasetError(
            f"{name}: expected {expected} images as published, found {len(ids)} listed in {where}; "
            "run `dvc repro -f download` or set data.allow_partial"
        )
    if checks_published and derived and _digest(ids) != derived.sha256:
        raise DatasetError(
            f"{name}: {len(ids)} images as published, but not the same ones, are listed in {where}; "
            "run `dvc repro -f download` or set data.allow_partial"
        )
    return ids


def _digest(ids: dict[str, str]) -> str:
    return hashlib.sha256("".join(f"{key}\n" for key in sorted(ids)).encode()).hexdigest()


def _is_there(raw: Path, dataset: str, key: str) -> bool:
    layout, root = DATASETS[dataset]
    return all(path.is_file() for path in layout.files(root(raw), key))


def _require_labels(raw: Path, name: str) -> None:
    """Refuses a test list whose labels nobody has published, instead of calling them missing files."""
    dataset, _, split = name.partition("/")
    layout, root = DATASETS[dataset]
    first = layout.ids(root(raw), split)[0]
    if not layout.files(root(raw), first)[1].exists():
        raise DatasetError(
            f"{name}: VOC has published no labels of these images, so nothing can be trained or scored on them "
            "here; its evaluation server scores predictions"
        )


def listed(raw: Path, names: Sequence[str]) -> dict[str, list[str]]:
    """The ids of each list, whether their files are there or not."""
    return {name: list(_ids(raw, name, checks_published=False)) for name in names}
