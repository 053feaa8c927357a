"""Shards that are there already, `data.source.shards`: no images are brought, and the profile's shards lead to them."""

import hashlib
from collections.abc import Mapping

from pipeline import paths
from pipeline.config.data import ShardSource
from pipeline.errors import ShardError
from pipeline.shards.manifest import MANIFEST
from pipeline.storage import Folder


def locations(source: ShardSource) -> dict[str, str]:
    """Return the absolute folder or the URL of each split."""
    return {
        split: where if "://" in where else str(paths.named(where).absolute())
        for split, where in source.model_dump().items()
    }


def fingerprint(source: ShardSource) -> Mapping[str, Mapping[str, str]]:
    """Return the location of each split and the sha256 of its manifest. ShardError if one cannot be read."""
    try:
        return {
            split: {"location": where, "manifest": hashlib.sha256(Folder(where).read(MANIFEST)).hexdigest()}
            for split, where in locations(source).items()
        }
    except ShardError as error:
        raise ShardError(
            f"{error}; check data.source.shards, or run `fcn shards index` for tars of others"
        ) from error
