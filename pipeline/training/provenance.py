"""What a model was trained on, for its own file to say: the images' ids, and what their pixels are.

A record is a plain dict, so that a checkpoint and JSON can hold it:
split: the shards' name.   digest: of the shards.   keys: sorted ids, or None if nobody knows.
pixel_sha256: the images' digests (datasets.files.examine) in the keys' order, 64 hex digits each, joined.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.shards.read import Shards

Record = dict[str, Any]


def records(shards: Shards, inherited: Sequence[Record]) -> list[Record]:
    """What a model trained on the shards says, one record a data set.

    inherited: the records of what it was started from, besides these shards.
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
    """What a file to start from says that it was trained on, besides these shards.

    kind, content, sha256: as checkpoint.load takes and gives them. A backbone that says nothing has seen none of a
    segmentation data set's splits; a model that says nothing, such as an imported one, has seen nobody knows what.
    """
    nothing_said = [{"split": "unknown", "digest": sha256, "keys": None, "pixel_sha256": None}]
    said = content.get("trained_on", [] if kind == "backbone" else nothing_said)
    return [record for record in said if record["digest"] != shards.digest]
