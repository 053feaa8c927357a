"""The trials of a sweep: its file read and checked, and shards for each trial's data."""

import hashlib
import json
import re
import secrets
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from ruamel.yaml import YAML

from pipeline import config, files, paths
from pipeline.config import CHAIN, Profile
from pipeline.config.sweep import Sweep, Values, describe, read
from pipeline.config.variant import Variant
from pipeline.errors import ConfigError, LeakError, UserError
from pipeline.experiments.trial import Trial
from pipeline.inspection import leaks
from pipeline.shards.read import Shards, open_shards
from pipeline.training.prepare import CODE, code_that_decides, start_digest

HEADER = "# The winner of the sweep "
SPLITS = ("train", "val", "tuning")
MAX_NAME = 120  # of a trial in MLflow, which allows 250 for a run


@dataclass(frozen=True)
class Plan:
    """A sweep that was read and found to be runnable.

    path: of its file.
    root: the project's folder, absolute.
    profiles: of each trial.
    values: of `space`, for each trial.
    """

    path: Path
    root: Path
    sweep: Sweep
    profiles: list[Profile]
    values: list[Values]

    @property
    def name(self) -> str:
        return self.path.stem

    @property
    def folder(self) -> Path:
        return self.root / paths.RUNS / self.sweep.profile / "sweeps" / self.name

    @property
    def winner(self) -> Path:
        """The file of the winner's profile."""
        return self.root / config.PROFILES / f"{self.name}-best.yaml"

    @property
    def nets(self) -> tuple[str, ...]:
        if self.profiles[0].model.at_once:  # such a net starts from the backbone
            return (self.sweep.net,)
        return CHAIN[: CHAIN.index(self.sweep.net) + 1]


def make_plan(path: Path, root: Path) -> Plan:
    """Read a sweep and check whatever can be checked before a trial runs."""
    settings, profiles = read(path, root)
    plan = Plan(path, root, settings, profiles, settings.trials())
    if not re.fullmatch(r"[A-Za-z0-9_-]+", plan.name):  # as in params.yaml
        raise ConfigError(
            f"{path}: the file's name becomes a profile's: use the letters A to Z, digits, - and _"
        )
    for profile in profiles:
        if not profile.data.tuning:
            raise ConfigError(
                f"{path}: data.tuning of profiles/{settings.profile}.yaml is {profile.data.tuning}; settings must not "
                "be chosen by the images of the final score, so a sweep needs some of train: add data.tuning: 0.1 to "
                "`fixed`, or set it in the profile"
            )
        _refuse_missing_scores(plan, profile)
    winner = plan.winner
    if winner.exists() and not winner.read_text(encoding="utf-8").startswith(f"{HEADER}{plan.name}:"):
        raise ConfigError(f"{winner} exists and is not of this sweep: rename it, or the sweep's file")
    return plan


def _refuse_missing_scores(plan: Plan, profile: Profile) -> None:
    """Refuse a profile in which no score comes, or none before ASHA first looks at it."""
    path, settings = plan.path, plan.sweep
    every = profile.train.validate_every or profile.run.validate_every
    if every == 0:
        raise ConfigError(
            f"{path}: run.validate_every is 0, so {settings.metric} would never come; set it in `fixed`"
        )
    if settings.asha and not profile.train.batch_rule:
        iterations = [profile.net(net).iterations for net in plan.nets]
        first = max(1, int(settings.asha.first * sum(iterations)))
        if min(every, iterations[0]) > first:  # a net is scored at its end as well
            raise ConfigError(
                f"{path}: asha.first is {settings.asha.first}, {first} iterations, but the first score comes after "
                f"{every}; set run.validate_every to at most {first} in `fixed`, or asha.first higher"
            )


def make_trials(plan: Plan) -> list[Trial]:
    """Return the trials, with shards for all of them."""
    own = config.read(plan.sweep.profile, plan.root)
    code = files.code_digest(CODE, code_that_decides())
    group = _group(plan.folder)
    asha = plan.sweep.asha and plan.sweep.asha.model_dump()
    opened: dict[str, dict[str, Shards]] = {}
    trials = []
    for profile, values in zip(plan.profiles, plan.values, strict=True):
        data = None
        if (profile.data, profile.shards) != (own.data, own.shards):
            data = _write_shards(plan, profile)
        if str(data) not in opened:
            opened[str(data)] = _open_shards(plan, profile, data)
        shards = opened[str(data)]
        if set(shards["tuning"].keys) != set(next(iter(opened.values()))["tuning"].keys):
            raise ConfigError(
                f"{plan.path}: {describe(values)} leaves out of train other images than {describe(plan.values[0])}, "
                "and trials are compared on the same images: name them as lists in `fixed`, such as data.tuning: "
                "[own/tune]"
            )
        if "run.validate_images" not in plan.sweep.fixed:  # all: a few say little about a setting
            run = profile.run.model_copy(update={"validate_images": len(shards["tuning"])})
            profile = profile.model_copy(update={"run": run})
        validates = profile.train if profile.train.chooses else profile.run
        decides = [
            plan.nets,
            min(validates.validate_images, len(shards["tuning"])),
            plan.sweep.metric,
            profile.model_dump(mode="json", exclude={"run", "evaluate"}),
            [shards[split].digest for split in ("train", "tuning")],
            start_digest(profile.train, plan.root),
            code,
        ]
        digest = hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()
        name = describe(values).replace("/", "_")
        if len(name) > MAX_NAME:
            name = f"{name[:MAX_NAME]} {digest[:8]}"
        variant = Variant(name, group, plan.folder / digest[:12], data, values)
        trials.append(
            Trial(plan.sweep.profile, profile, plan.root, variant, plan.nets, plan.sweep.metric, asha)
        )
    return trials


def _group(folder: Path) -> str:
    """Return the tag of the sweep's run in MLflow, which stays the same until the sweep's folder is removed."""
    path = folder / "group"
    if not path.exists():
        files.write_text(path, f"sweep {folder.name} {secrets.token_hex(4)}")
    return path.read_text(encoding="utf-8")


def _write_shards(plan: Plan, profile: Profile) -> Path:
    """Write shards for trials whose data are not those of the sweep's profile; return the folder of the splits."""
    name, raw = plan.sweep.profile, plan.root / paths.raw(plan.sweep.profile)
    if not raw.is_dir():
        raise UserError(
            f"{raw} is missing; write `profile: {name}` into {config.PARAMS} and run `dvc repro download`"
        )
    values = profile.model_dump(mode="json", exclude_unset=True)
    record = plan.root / paths.raw_record(name)
    inputs = [values["data"], values["shards"], record.read_text("utf-8") if record.exists() else ""]
    digest = hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()
    folder = plan.folder / f"data-{digest[:12]}"
    shards, written = folder / paths.shards(name, "train").parent, folder / "written"
    if written.exists():
        return shards
    (folder / config.PROFILES).mkdir(parents=True, exist_ok=True)
    (folder / config.PARAMS).write_text(f"profile: {name}\n", encoding="utf-8")
    with files.whole(folder / config.PROFILES / f"{name}.yaml") as file:
        values["shards"].pop("destination", None)
        YAML().dump(values, file)
    link = folder / paths.raw(name)
    link.parent.mkdir(parents=True, exist_ok=True)
    if not link.is_symlink():
        link.symlink_to(raw)
    if subprocess.run([sys.executable, "-m", "stages.shard"], cwd=folder, check=False).returncode:
        raise UserError(f"the shards of the sweep could not be written to {folder}; the message is above")
    written.touch()
    return shards


def _open_shards(plan: Plan, profile: Profile, data: Path | None) -> dict[str, Shards]:
    """Open a trial's shards; LeakError if images to choose settings on are also trained on or in the final score."""
    folder = data or plan.root / paths.shards(plan.sweep.profile, "train").parent
    cache = plan.root / paths.VERIFIED
    shards = {split: open_shards(folder / split, split=split, cache=cache) for split in SPLITS}
    if list(shards["train"].classes) != profile.data.classes:
        raise ConfigError(f"{folder} has other classes than data.classes; run `dvc repro shard`")
    images = {split: leaks.Images.of_shards(split, opened) for split, opened in shards.items()}
    if both := leaks.shared_images(images["val"], images["tuning"]):
        raise LeakError(
            f"{len(both)} images of val are in tuning: {leaks.named(both, 'tuning')}; settings must not be chosen by "
            "the images of the final score: leave them out of train, or run `dvc repro shard`"
        )
    trained = leaks.shared_images(images["tuning"], images["train"])
    if same := sorted(key for key, other in trained.items() if key == other):
        raise LeakError(
            f"{len(same)} images of tuning are trained on: {files.and_more(same)}; run `dvc repro shard`"
        )
    return shards
