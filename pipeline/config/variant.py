"""A variant of a profile: the same profile with other values, trained and scored beside the profile's own results."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline import paths


@dataclass(frozen=True)
class Variant:
    """A variant's names and folders; its values are in the profile that is trained. One variant, one folder.

    name: in the lines on the terminal and in MLflow, such as "seed 1338"; unique in its group, without "/".
    group: the tag fcn.group of the run in MLflow that has the variant's runs as its children.
    folder: of its nets, curves and scores, in the layout of the project's root; absolute.
    data: the folder of its shards, `train` and `val`, absolute; None: the profile's own.
    values: what differs from the profile, by dotted key; MLflow has them as params `variant.<key>`.
    """

    name: str
    group: str
    folder: Path
    data: Path | None = None
    values: Mapping[str, Any] = field(default_factory=dict)

    def run_name(self, net: str) -> str:
        """Return the name of the run of one of its nets: "fcn8s seed 1338"."""
        return f"{net} {self.name}"

    def member(self, identity: str) -> str:
        """Return the tag fcn.member, which identifies the run of one of its nets in MLflow.

        identity: of the net's training run.
        """
        return f"{self.group}/{self.name}/{identity}"


def results_folder(root: Path, variant: Variant | None) -> Path:
    """Return the folder below which the functions of `paths` put nets, curves and scores."""
    return variant.folder if variant else root


def shards_folder(root: Path, variant: Variant | None, profile_name: str, split: str) -> Path:
    """Return the folder of a split's shards."""
    return variant.data / split if variant and variant.data else root / paths.shards(profile_name, split)
