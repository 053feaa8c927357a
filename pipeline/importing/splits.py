"""Splits: stratified by the classes present, and no group of photos on both sides."""

import hashlib
import posixpath
import re
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

from pipeline.errors import DatasetError
from pipeline.files import counted
from pipeline.inspection import same_picture

NAMES = ("train", "val", "test")


class Member(NamedTuple):
    """A photo to assign.

    key: of the photo.
    source: its path, from which its group follows.
    classes: those with a pixel in its label.
    """

    key: str
    source: str
    classes: frozenset[int]


def ratios(text: str) -> list[float]:
    """Read "0.8/0.2" or "70/15/15": the shares of train, val and, if there are three, test; their sum is 1."""
    try:
        shares = [float(part) for part in text.split("/")]
    except ValueError:
        shares = []
    if len(shares) not in (2, 3) or not all(0 < share < float("inf") for share in shares):
        raise DatasetError(
            f"--split: {text!r}; expected shares of train/val or train/val/test, such as 0.8/0.2"
        )
    return [share / sum(shares) for share in shares]


def group_of(members: Sequence[Member], pattern: str | None) -> tuple[dict[str, str], str]:
    """Return each photo's group by key, and a sentence that states the rule.

    pattern: a regular expression, searched in the photo's path; its first group, or all it finds, is the photo's group.
        None: the photo's folder, or the photo itself if all lie in one folder.
    """
    if pattern is None:
        folders = {member.key: posixpath.dirname(member.source) for member in members}
        if len(set(folders.values())) > 1:
            return folders, f"photos of one of the {len(set(folders.values()))} folders stay together"
        return {member.key: member.source for member in members}, "each photo stands alone"
    try:
        rule = re.compile(pattern)
    except re.error as error:
        raise DatasetError(f"--group: {pattern!r} is not a regular expression: {error}") from error
    groups: dict[str, str] = {}
    num_alone = 0
    for member in members:
        match = rule.search(member.source)
        num_alone += match is None
        found = match and (match[1] if rule.groups else match[0])
        groups[member.key] = f"/{member.source}" if found is None else found
    if num_alone == len(members):
        raise DatasetError(f"--group: {pattern!r} is found in no photo's path, such as {members[0].source!r}")
    alone = f"; {counted(num_alone, 'photo')} without a match, each a group of its own" if num_alone else ""
    return groups, f"photos with the same {pattern!r} stay together{alone}"


def joined(groups: dict[str, str], duplicates: Sequence[Sequence[str]]) -> dict[str, str]:
    """Return the groups after joining those that share near duplicates.

    groups: each photo's group by key.
    duplicates: keys of photos that show the same picture.
    """
    names = sorted(set(groups.values()))
    number = {name: index for index, name in enumerate(names)}
    pairs = ((number[groups[keys[0]]], number[groups[key]]) for keys in duplicates for key in keys)
    first = same_picture.first_connected(len(names), pairs)
    return {key: names[first[number[name]]] for key, name in groups.items()}


def assign(
    members: Sequence[Member], shares: Sequence[float], groups: dict[str, str], seed: int
) -> list[list[str]]:
    """Divide photos into parts, whole groups at a time; return the keys of each part.

    Iterative stratification (Sechidis et al., 2011): the groups of the rarest class first, each to the part that lacks
    that class most. The same photos, shares and seed give the same parts on every machine.
    """
    by_group: dict[str, list[Member]] = defaultdict(list)
    for member in members:
        by_group[groups[member.key]].append(member)
    if len(by_group) < len(shares):
        raise DatasetError(
            f"{len(members)} photos in {len(by_group)} groups cannot be divided into {len(shares)} parts: photos of a "
            "group and near duplicates stay together; add other photos, or give --group with a finer regular "
            "expression: '(.*)' makes each photo a group"
        )
    order = sorted(by_group, key=lambda group: hashlib.sha256(f"{seed} {group}".encode()).digest())
    counts: dict[str, dict[int, int]] = {}
    totals: dict[int, int] = defaultdict(int)
    for group in order:
        counts[group] = defaultdict(int)
        for member in by_group[group]:
            for value in member.classes:
                counts[group][value] += 1
                totals[value] += 1
    lacks = [{value: share * total for value, total in totals.items()} for share in shares]
    room = [share * len(members) for share in shares]
    parts: list[list[str]] = [[] for _ in shares]
    left = dict.fromkeys(order)
    remaining = {value: sum(1 for group in order if value in counts[group]) for value in totals}

    def place(group: str, value: int | None) -> None:
        def need(part: int) -> tuple[float, float, int]:
            return (lacks[part][value] if value is not None else 0.0, room[part], -part)

        part = max(range(len(shares)), key=need)
        parts[part].append(group)
        room[part] -= len(by_group[group])
        for other, count in counts[group].items():
            lacks[part][other] -= count
            remaining[other] -= 1
        del left[group]

    while left:
        rare = min(
            (value for value in remaining if remaining[value] > 0),
            key=lambda v: (remaining[v], v),
            default=None,
        )
        for group in [group for group in left if rare is None or rare in counts[group]]:
            place(group, rare)
    for part in parts:
        if not part:
            largest = max(parts, key=len)
            part.append(largest.pop())
    return [sorted(member.key for group in part for member in by_group[group]) for part in parts]
