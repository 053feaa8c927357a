"""The configuration of one net's training run, handed whole to every worker."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fcn.optim import constant_steps
from pipeline.config.run import Run
from pipeline.config.training import Net, Train


@dataclass(frozen=True)
class Job:
    """The profile's sections and values that the driver computed. Paths are absolute, so any machine can run it.

    identity: the run's name, a hash of everything that affects its result; see training/prepare.py.
    net: fcn32s, fcn16s or fcn8s.
    model: FCN's keyword arguments.
    classes: names in label order.
    train, run: sections of the profile. `train.batch_rule` is already applied.
    recipe: learning rate and iterations of this net; `train.batch_rule` is already applied.
    parent: the file that the run starts from: a backbone for the first net of a chain, else the coarser net.
    shards: the training split, a folder or s3://...
    validation: the validation split, likewise.
    folder: for checkpoints, curves and the final model; shared by all workers.
    lineage: where the final model comes from; written to its file.
    cache: a folder that records which shards were verified; None to verify at every start.
    git: the commit of the code; {} outside a checkout. It is not part of the identity.
    inherited: records (training/provenance.py) of the images that the parent was trained on, and of those in
        data.tuning.
    validation_split: the split that `validation` holds: "val" or "tuning".
    start: the profile's backbone.pt if it holds layers of the net that train.start names; else None.
    variant: the name of the profile's variant that is trained; "": the profile itself.
    """

    identity: str
    net: str
    model: dict[str, Any]
    classes: tuple[str, ...]
    train: Train
    run: Run
    recipe: Net
    parent: Path
    shards: Path | str
    validation: Path | str
    folder: Path
    lineage: dict[str, Any]
    cache: Path | None = None
    git: dict[str, str] = field(default_factory=dict)
    inherited: list[dict[str, Any]] = field(default_factory=list)
    start: Path | None = None
    validation_split: str = "val"
    variant: str = ""

    @property
    def title(self) -> str:
        """The net's name on the terminal, where several may be trained at once: "seed 1338 fcn8s"."""
        return f"{self.variant} {self.net}".strip()

    @property
    def inner_batch_size(self) -> int:
        """Images of one inner step, over all workers."""
        return self.train.batch_size // self.train.accumulation

    @property
    def validate_every(self) -> int:
        """Iterations between two validations; 0: never."""
        return self.train.validate_every or self.run.validate_every

    @property
    def validate_images(self) -> int:
        """The number of images of a validation, the first of the split."""
        return (self.train if self.train.chooses else self.run).validate_images

    @property
    def shared_steps(self) -> int:
        """The number of first steps that a longer run has in common with this one; it goes on from there.

        The validation at the end of a run is one that a longer run lacks, so a choice is shared up to the one before.
        """
        steps = constant_steps(self.train.schedule, self.recipe.iterations, self.train.cooldown)
        return steps - steps % self.validate_every if self.train.chooses else steps
