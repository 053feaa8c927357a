"""Provenance: which images a model was trained or tuned on, as its own file records it.

A record is a plain dict, so that a checkpoint and JSON can hold it:
split: name of the shards' split; "tuning" for images that settings were chosen on.
digest: of the shards.
keys: sorted ids; None if they are not known.
pixel_sha256: the images' pixel digests in the order of `keys`, 64 hex digits each, joined; None with unknown keys.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.shards.read import Shards

Record = dict[str, Any]


def records(shards: Shards, inherited: Sequence[Record]) -> list[Record]:
    """Return the records of a model that was trained on the shards, one per data set.

    inherited: records of the model's parent, without these shards.
    """
    rows = sorted(zip(shards.keys, shards.table["pixel_sha256"].to_pylist(), strict=True))
    own = {
        "split": shards.header["split"],
        "digest": shards.digest,
        "keys": [key for key, _ in rows],
        "pixel_sha256": b"".join(digest for _, digest in rows).hex(),
    }
    return [own, *inherited]


def inherited(kind: str, content: Mapping[str, Any], sha256: str, shards: Shards) -> list[Record]:
    """Return the records in a parent's file, without those of these shards.

    A backbone without records was trained on no image of a segmentation data set. A model without records, such as an
    imported one, gets a record of unknown images; so does a backbone whose records are None, from such a model.

    kind, content, sha256: as `checkpoint.load` takes and returns them.
    """
    parent_records = content.get("trained_on", [] if kind == "backbone" else None)
    if parent_records is None:
        parent_records = [{"split": "unknown", "digest": sha256, "keys": None, "pixel_sha256": None}]
    return [record for record in parent_records if record["digest"] != shards.digest]


def with_tuning(tuning: Shards, inherited: Sequence[Record]) -> list[Record]:
    """Return a parent's records and one of the images that settings are chosen on.

    A score on these is as biased as one on training images, so the leak guard refuses both.
    """
    others = [record for record in inherited if record["digest"] != tuning.digest]
    return records(tuning, others)
