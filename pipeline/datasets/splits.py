"""Training and validation splits put together from the lists of published data sets."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType

from pipeline.datasets import Sample, sbd, voc
from pipeline.errors import DatasetError

# name in a profile: (module that reads it, where its files lie under the raw folder)
DATASETS: dict[str, tuple[ModuleType, Callable[[Path], Path]]] = {
    "voc2007": (voc, partial(voc.root, year=2007)),
    "voc2011": (voc, partial(voc.root, year=2011)),
    "voc2012": (voc, voc.root),
    "sbd": (sbd, sbd.root),
}


@dataclass(frozen=True)
class Split:
    """Which ids a split holds, and from which data set each takes image and label."""

    raw: Path
    sources: dict[str, str]  # id: name in DATASETS
    num_classes: int

    def load(self, key: str) -> Sample:
        """The sample of an id; DatasetError names the file that is missing or unusable."""
        module, root = DATASETS[self.sources[key]]
        return module.sample(root(self.raw), key, self.num_classes)

    def stamp(self, key: str) -> str:
        """Changes when a file of the id does: their sizes and times."""
        module, root = DATASETS[self.sources[key]]
        files = [path.stat() for path in module.files(root(self.raw), key) if path.exists()]
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
    checks_published: hold every list against its published length.
    allow_partial: keep the ids whose files are there, and say how many are not, instead of refusing the rest later
    or holding their number against `count`.
    """
    sources: dict[str, str] = {}
    for name in include:
        for key in _ids(raw, name, checks_published):
            sources.setdefault(key, name.partition("/")[0])
    for name in exclude:
        for key in _ids(raw, name, checks_published):
            sources.pop(key, None)
    what = " + ".join(include) + "".join(f" - {name}" for name in exclude)
    if allow_partial:
        listed = len(sources)
        sources = {key: source for key, source in sources.items() if _is_there(raw, source, key)}
        print(f"{what}: {len(sources)} of {listed} listed images are there (data.allow_partial)", flush=True)
    if not sources:
        raise DatasetError(
            f"{what}: no image left in {raw}; run `dvc repro -f download`, or check data.source.local"
        )
    if count is not None and not allow_partial and len(sources) != count:
        raise DatasetError(
            f"{what}: expected {count} images, found {len(sources)} in {raw}; "
            "run `dvc repro -f download`, mend data.splits in the profile, or set data.allow_partial"
        )
    return Split(raw, sources, num_classes)


def _ids(raw: Path, name: str, checks_published: bool) -> list[str]:
    dataset, _, split = name.partition("/")
    module, root = DATASETS[dataset]
    ids = module.ids(root(raw), split)
    expected = module.PUBLISHED_COUNTS.get(name, len(ids))
    if checks_published and len(ids) != expected:
        raise DatasetError(
            f"{name}: expected {expected} images as published, found {len(ids)} listed in {root(raw)}; "
            "run `dvc repro -f download` or set data.allow_partial"
        )
    return ids


def _is_there(raw: Path, dataset: str, key: str) -> bool:
    module, root = DATASETS[dataset]
    return all(path.is_file() for path in module.files(root(raw), key))


def listed(raw: Path, names: Sequence[str]) -> dict[str, list[str]]:
    """The ids of each list, whether their files are there or not."""
    return {name: _ids(raw, name, checks_published=False) for name in names}
