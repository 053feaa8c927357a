"""The lists of an import: the export's own splits, or shares of the photos, and folds."""

from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import DatasetError
from pipeline.files import counted
from pipeline.importing import splits
from pipeline.importing.export import SHARES, Item, Settings
from pipeline.inspection import same_picture


def divides(items: Sequence[Item], settings: Settings) -> bool:
    """Return whether photos are divided here, because the export does not tell train from val or folds are asked for.

    With one of both lists, the photos in no list are the other one, unless --split is given.
    """
    given = {split for item in items for split in item.splits}
    if settings.shares is None and not all(item.splits for item in items):
        given |= {"train", "val"} if given & {"train", "val"} else set()
    return bool(settings.folds) or not {"train", "val"} <= given


def make_lists(
    items: Sequence[Item],
    members: Sequence[splits.Member],
    settings: Settings,
    thumbnails: Mapping[str, NDArray[np.uint8]],
) -> tuple[dict[str, list[str]], str]:
    """Return the keys of each list in splits/, and a sentence that states the rule.

    thumbnails: of the photos by key, if `divides`; near duplicates stay in one list.
    """
    by_source = {member.source: member for member in members}
    given: dict[str, list[str]] = defaultdict(list)
    for item in items:
        for split in item.splits:
            given[split].append(by_source[item.photo].key)
    lists = {name: sorted(keys) for name, keys in given.items()}
    _refuse_shared(lists, members)
    unlisted = sorted(by_source[item.photo].key for item in items if not item.splits)
    if len(one := {"train", "val"} & lists.keys()) == 1 and unlisted and settings.shares is None:
        (other,) = {"train", "val"} - one
        lists[other] = unlisted
        sentence = f"splits: the export's own {', '.join(sorted(given))}; {other}: the other photos"
    else:
        sentence = "splits: the export's own" + ("; --split is not used" if settings.shares else "")
        sentence += f"; in no list: {counted(len(unlisted), 'photo')}" if unlisted else ""
    if not {"train", "val"} <= lists.keys():
        taken = {key for name, keys in lists.items() if name not in ("train", "val") for key in keys}
        pool = [member for member in members if member.key not in taken]
        stated = settings.shares or SHARES
        shares = splits.ratios(stated)
        if not pool:
            raise DatasetError(
                "every photo is in the test split: a folder, list or JSON file is named so. Rename it, so that the "
                "photos are divided, or add photos for training"
            )
        groups, rule = _groups(pool, settings, thumbnails)
        parts = splits.assign(pool, shares, groups, settings.seed)
        named = dict(zip(splits.NAMES, parts, strict=False))
        if "test" in named and "test" in lists:
            raise DatasetError("--split: the export has a test split; give shares of train/val alone")
        kept = f"{', '.join(sorted(set(lists) - {'train', 'val'}))} kept, the rest " if taken else ""
        lists = {name: keys for name, keys in lists.items() if name not in ("train", "val")} | named
        sentence = f"splits: {kept}divided {stated} by seed {settings.seed}, stratified by class; {rule}"
    if settings.folds:
        held_back = set(lists.get("test", ()))
        pool = [member for member in members if member.key not in held_back]
        groups, rule = _groups(pool, settings, thumbnails)
        parts = splits.assign(pool, [1 / settings.folds] * settings.folds, groups, settings.seed)
        everything = {member.key for member in pool}
        for number, part in enumerate(parts, start=1):
            lists[f"fold{number}-train"] = sorted(everything - set(part))
            lists[f"fold{number}-val"] = part
        sentence += f"; {settings.folds} folds; {rule}"
    return dict(sorted(lists.items())), sentence


def _refuse_shared(lists: Mapping[str, Sequence[str]], members: Sequence[splits.Member]) -> None:
    """Refuse photos that are in train and in a list to score on."""
    name_of = {member.key: member.source for member in members}
    for other in sorted(lists.keys() - {"train"}):
        shared = sorted(set(lists.get("train", ())) & set(lists[other]))
        if shared:
            raise DatasetError(
                f"{counted(len(shared), 'photo')} in train and in {other}, such as {name_of[shared[0]]}; "
                "keep each in one list"
            )


def _groups(
    pool: Sequence[splits.Member], settings: Settings, thumbnails: Mapping[str, NDArray[np.uint8]]
) -> tuple[dict[str, str], str]:
    """Return each photo's group by key, near duplicates in one group, and a sentence that states the rule."""
    groups, rule = splits.group_of(pool, settings.group)
    keys = [member.key for member in pool]
    duplicates = [
        [keys[index] for index in indices]
        for indices in same_picture.groups(np.stack([thumbnails[key] for key in keys]))
        if len(indices) > 1
    ]
    if duplicates:
        num_photos = sum(map(len, duplicates))
        rule += f"; {num_photos} near duplicates in {len(duplicates)} groups stay together"
    return splits.joined(groups, duplicates), rule
