"""Trains a profile's chain with several seeds, side by side, and scores them as one group.

Seeds decide the order of images, their transforms, dropout, new layers, and random backbones; the data stay the same.
runs/<profile>/seeds-<hash>/ holds `seed 1337/`, `seed 1338/` ..., the group's scores and its page.
"""

import hashlib
import json
import traceback
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from pipeline import paths
from pipeline.config import CHAIN, Profile
from pipeline.config.variant import Variant
from pipeline.errors import ConfigError, DatasetError, UserError
from pipeline.files import code_digest
from pipeline.progress import bar
from pipeline.shards.read import open_shards
from pipeline.surroundings import enter_project, mlflow_settings
from pipeline.training.prepare import CODE, SPLITS_WORK, code_that_decides, start_digest

MAX_SEED = 2**63 - 1  # see pipeline.config.section.Seed


class Outcome(NamedTuple):
    """What became of one seed. error: why it could not be trained or scored; "" if it was."""

    seed: int
    error: str


def first_seeds(profile: Profile, number: int) -> range:
    """Return `number` seeds; the first is the profile's own. Raises ConfigError beyond the greatest seed."""
    if profile.train.seed + number - 1 > MAX_SEED:
        raise ConfigError(
            f"train.seed {profile.train.seed} is too great for {number} seeds from there; lower it"
        )
    return range(profile.train.seed, profile.train.seed + number)


def with_seed(profile: Profile, seed: int) -> Profile:
    """Return the profile with another train.seed; a random backbone's seed moves by the same distance."""
    shift = seed - profile.train.seed
    sections: dict[str, Any] = {"train": profile.train.model_copy(update={"seed": seed})}
    if profile.backbone.weights is None:
        moved = (profile.backbone.seed + shift) % (MAX_SEED + 1)
        sections["backbone"] = profile.backbone.model_copy(update={"seed": moved})
    return profile.model_copy(update=sections)


def name_of(seed: int) -> str:
    return f"seed {seed}"


def group_name(profile_name: str, profile: Profile, root: Path) -> str:
    """Return the name of the profile's group: another recipe, other images or other code make another group.

    The number of seeds and of nets is not part of it, so that a group can grow.
    """
    verdict = root / paths.inspection(profile_name) / "verdict.json"
    if not verdict.exists():
        raise DatasetError(
            f"{verdict} is missing: the data of profile {profile_name!r} are not prepared, or were refused; run "
            f"`dvc repro inspect` with `profile: {profile_name}` in params.yaml"
        )
    digests = [
        open_shards(root / paths.shards(profile_name, split), split=split, cache=root / paths.VERIFIED).digest
        for split in (["train", "val"] if profile.train.chooses else ["train"])
    ]
    digests.append(start_digest(profile.train, root))
    recipe = profile.model_dump(
        mode="json", include={"model", "backbone", "train", "nets"}, exclude={"train": SPLITS_WORK}
    )
    decisive = [profile_name, recipe, digests, code_digest(CODE, code_that_decides())]
    return paths.SEEDS + hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()[:8]


def variant_of(profile_name: str, group: str, seed: int, root: Path) -> Variant:
    return Variant(name_of(seed), group, root / paths.group(profile_name, group) / name_of(seed))


def train_seeds(
    profile_name: str, profile: Profile, root: Path, group: str, seeds: range, last_net: str = CHAIN[-1]
) -> Iterator[Outcome]:
    """Train and score the chain with each seed; yield what became of each, in the order in which they end.

    As many chains are trained at once as the machine or the cluster has room for, in one session of Ray. It can be
    killed and called again: finished nets are not trained again.
    """
    from pipeline.cluster import connection, ray_workers  # takes seconds to import

    workers, cpus, evaluation = profile.train.num_workers, profile.run.cpus_per_worker, profile.evaluate
    run = partial(_run_seed, profile_name, profile, root, group, last_net, mlflow_settings())
    with connection.session(max(workers, evaluation.num_workers) * cpus):
        num_at_once = ray_workers.capacity(workers, cpus, use_gpu=profile.train.use_gpu)
        ray_workers.capacity(evaluation.num_workers, cpus, use_gpu=evaluation.use_gpu)  # refuses missing GPUs
        with (
            ray_workers.tasks(num_at_once, cpus_per_call=0, on_error=_failed) as side_by_side,
            bar(len(seeds), group, "seed") as progress,
        ):
            for outcome in side_by_side(run, seeds):
                progress.update()
                yield outcome


def _run_seed(
    profile_name: str,
    profile: Profile,
    root: Path,
    group: str,
    last_net: str,
    settings: Mapping[str, str],
    seed: int,
) -> Outcome:
    """Train and score one seed's chain in this process and its workers. Raises UserError if it fails."""
    enter_project(root, settings)
    from pipeline.experiments.variant import run_variant  # imports MLflow, which reads its environment then

    variant = variant_of(profile_name, group, seed, root)
    try:
        run_variant(profile_name, with_seed(profile, seed), root, variant, last_net)
    except UserError:
        raise
    except Exception as error:  # it must not end the other seeds
        traceback.print_exc()
        raise UserError(f"{type(error).__name__}: {error}") from error
    return Outcome(seed, "")


def _failed(seed: int, error: UserError) -> Outcome:
    return Outcome(seed, str(error))
