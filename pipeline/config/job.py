"""What one net's run is: all that its workers have to know."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pipeline.config.training import Transforms

Record = dict[str, Any]


@dataclass(frozen=True)
class Job:
    """Plain values and absolute paths, so that it can run anywhere.

    identity: the run's name, which changes with anything that changes its result.   model: FCN's arguments.
    parent: the file it starts from, a backbone for the first net of a chain, else the coarser net.
    shards, validation: of the training split, and of the one that is looked at meanwhile; a folder or s3://...
    cache: of open_shards.   inherited: records (trained_on.py) of what the parent was trained on besides these shards.
    folder: of working checkpoints, curves and the final model, shared by all workers.
    lineage: what the final model says of where it comes from.   git: the code's commit, {} outside a checkout; it has
    no say in the identity.   The rest: see profiles, config.training.
    """

    identity: str
    net: str
    model: dict[str, Any]
    classes: tuple[str, ...]
    parent: Path
    shards: Path | str
    validation: Path | str
    folder: Path
    lineage: dict[str, Any]
    iterations: int
    lr: float
    batch_size: int
    accumulation: int
    loss: str
    optimizer: str
    momentum: float
    weight_decay: float
    trunk_lr_factor: float
    schedule: str
    sampling: str
    size_buckets: bool
    transforms: Transforms
    precision: str
    batch_norm: str
    class_balancing: bool
    sample_pixels: float
    exchange: dict[str, Any]
    seed: int
    loader_workers: int
    log_every: int
    log_every_s: float
    checkpoint_every: int
    validate_every: int
    validate_images: int
    cache: Path | None = None
    git: dict[str, str] = field(default_factory=dict)
    inherited: list[Record] = field(default_factory=list)

    @property
    def inner_batch_size(self) -> int:
        """Images that all workers together hold at a time: those of one of a step's inner steps."""
        return self.batch_size // self.accumulation

    def as_plain(self) -> dict[str, Any]:
        """Its values as a checkpoint can hold them."""
        values = asdict(self) | {"classes": list(self.classes)}
        del values["inherited"]  # it goes into the model, at the end
        return {key: str(value) if isinstance(value, Path) else value for key, value in values.items()}
