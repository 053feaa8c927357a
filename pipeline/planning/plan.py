"""The plan: each value of a profile with the reason for it, from a fingerprint and a machine alone."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from pipeline.config import CHAIN, Profile, Transforms
from pipeline.files import counted
from pipeline.planning.fingerprint import Fingerprint
from pipeline.planning.machine import Machine

BATCH = 16  # of random weights
PER_WORKER = {
    "local": 8,
    "frozen": 4,
}  # photos; local batch norm learns markedly worse from 4 (docs/training.md)
SMALL = 256  # pixels; photos up to this side are trained whole if all have one size, else nearly so
CROP_SHARE = 0.85  # of the median photo's shorter side, as the profile laptop has it on VOC
CROP_STEP, LEAST_CROP = 32, 64
MAX_CROP = {"cpu": 384, "cuda": 640}
PASSES = {
    "voc": (30, 8, 8),
    "laptop": (10, 3, 3),
    "own": (60, 15, 15),
}  # over the photos, by template and net
LEAST, MOST = (300, 100, 100), (20_000, 10_000, 10_000)  # iterations, by net
RARE = 0.01  # of the pixels
MANY_PHOTOS = 2000
CHECKPOINT_S = 120


class Choice(NamedTuple):
    """A value of the plan, and the reason for it."""

    value: Any
    reason: str = ""


class Start(NamedTuple):
    """The trunk that a chain starts from, and the recipe that was tuned with it.

    template: the name of the project's profile that has both.
    profile: its values.
    reason: why this one.
    cost: what the lack of weights costs; "" with weights.
    """

    template: str
    profile: Profile
    reason: str
    cost: str = ""

    @property
    def is_pretrained(self) -> bool:
        return self.profile.backbone.weights is not None

    @property
    def batch_size(self) -> int:
        """The batch size that the recipe was tuned with."""
        return self.profile.train.batch_size if self.is_pretrained else BATCH

    @property
    def has_batch_norm(self) -> bool:
        model = self.profile.model
        return bool(model.batch_norm) or model.backbone.startswith(("efficientnet", "mobilenet"))


Plan = Mapping[str, Any]  # sections of a profile, nested; its leaves are Choices


def first_batch(data: Fingerprint, start: Start) -> int:
    """Return the batch size to try first: the recipe's, or the largest power of two that there are photos for."""
    return min(start.batch_size, 2 ** int(math.log2(data.num_photos["train"])))


def make(
    data: Fingerprint,
    machine: Machine,
    start: Start,
    *,
    batch_size: int,
    batch_reason: str = "",
    precision: Choice | None = None,
) -> Plan:
    """Return the plan for a batch size.

    batch_reason: what was measured.
    precision: None: float32 on a CPU, "auto" on a GPU.
    """
    use_gpu = machine.num_gpus > 0
    recipe = start.profile
    num_workers, workers_reason = _workers(machine, batch_size, recipe.train.batch_norm)
    cores = max(1, machine.num_cores // num_workers)
    num_train = data.num_photos["train"]
    file = f"profiles/{start.template}.yaml" + ("" if start.is_pretrained else " as the project ships it")
    tuned = f"from {file}, where it was tried with this trunk"
    plan = {
        "data": {
            "source": {
                "own": Choice(str(data.folder), "your folder stays the source of truth: mend it there")
            },
            "allow_partial": Choice(
                False, "a photo without its mask stops the chain instead of being left out"
            ),
            "allow_leak": Choice(
                [], "or sentences that say why an image may be both trained and evaluated on"
            ),
            "near_duplicates": Choice(
                "warn",
                "of photos turned, mirrored, rescaled or recompressed on both sides; or refuse, or ignore",
            ),
            "tuning": Choice(0, "or a share of train, such as 0.1, to choose settings on: docs/sweeps.md"),
            "map": Choice({}, "or {truck: vehicle, other: void}, to merge, rename or leave out classes"),
            "classes": Choice(
                data.classes,
                f"the lines of classes.txt; {data.void_share:.1%} of all pixels are 255 (void), which does not count",
            ),
            "splits": {
                split: {"include": Choice([f"own/{split}"], counted(number, "photo"))}
                for split, number in data.num_photos.items()
            },
        },
        "shards": {
            "samples_per_shard": Choice(
                100 if num_train < 5000 else 500, "few files, and still several for the workers to share"
            ),
            "seed": Choice(0, "any number; the order in which photos are written"),
        },
        "model": _reasoned(recipe.model.model_dump(exclude_defaults=True), start.reason),
        "backbone": _backbone(start),
        "train": {
            "num_workers": Choice(num_workers, workers_reason),
            "use_gpu": Choice(use_gpu, f"{machine.num_gpus} found" if use_gpu else "no GPU found"),
            "batch_size": Choice(batch_size, batch_reason),
            "loss": Choice("mean", "over the valid pixels of a step, so that rates fit any size of photo"),
            "terms": Choice(recipe.train.terms.model_dump(exclude_defaults=True), tuned),
            "optimizer": Choice(recipe.train.optimizer.model_dump(exclude_defaults=True), tuned),
            "schedule": Choice(recipe.train.schedule, tuned),
            "warmup": Choice(recipe.train.warmup, "steps over which the rate grows from 0"),
            "ema": Choice(recipe.train.ema, "decay of the averaged weights that are scored; 0: none"),
            "transforms": _transforms(data, recipe.train.transforms, use_gpu),
            "precision": precision
            or Choice(
                *(
                    ("auto", "bfloat16 where the GPU has it")
                    if use_gpu
                    else ("float32", _no_bfloat16(machine))
                )
            ),
            "batch_norm": _batch_norm(start, batch_size // num_workers),
            "class_weights": _class_weights(data),
            "seed": Choice(1337, "any number; another one shows how far scores depend on chance"),
        },
        "run": {
            "cpus_per_worker": Choice(cores, f"{machine.num_cores} cores for {num_workers} workers"),
            "loader_workers": _loaders(use_gpu, cores),
            "shard_workers": Choice(
                min(machine.num_cores, 8) if num_train >= MANY_PHOTOS else 1,
                f"below {MANY_PHOTOS} photos, starting more processes takes longer than writing the shards",
            ),
        },
        "nets": {
            net: {
                "lr": Choice(recipe.net(net).lr, tuned),
                "iterations": _iterations(number, num_train, batch_size, start),
            }
            for number, net in enumerate(CHAIN)
        },
        "evaluate": {
            "num_figures": Choice(min(6, data.num_photos["val"]), "photos drawn beside label and prediction"),
            "use_gpu": Choice(use_gpu, "as in training"),
        },
    }
    return with_step_time(plan, step_s=1.0)


def with_step_time(plan: Plan, step_s: float) -> Plan:
    """Return the plan with the intervals of curves and checkpoints.

    step_s: measured seconds of a step.
    """
    every = min(1000, max(10, round(CHECKPOINT_S / step_s)))
    intervals = {
        "log_every": Choice(min(20, every), "steps between two points of the curves"),
        "checkpoint_every": Choice(
            every, f"about {CHECKPOINT_S // 60} minutes, the most that a stopped run loses"
        ),
    }
    return {**plan, "run": {**plan["run"], **intervals}}


def _workers(machine: Machine, batch_size: int, batch_norm: str) -> tuple[int, str]:
    if machine.num_gpus:
        number = 2 ** int(math.log2(min(machine.num_gpus, batch_size)))
        return number, f"one for each of {machine.num_gpus} GPUs, as far as the batch divides evenly"
    number, least = 1, PER_WORKER["frozen" if batch_norm == "frozen" else "local"]  # sync is for GPUs
    while 2 * number <= machine.num_cores and batch_size >= 2 * number * least:
        number *= 2
    return number, f"of {machine.num_cores} cores as many as leave each worker {least} photos"


def _no_bfloat16(machine: Machine) -> str:
    return (
        "bfloat16 was not faster here" if machine.has_bfloat16 else "the CPU has neither AVX512-BF16 nor AMX"
    )


def _reasoned(values: Mapping[str, Any], reason: str) -> dict[str, Choice]:
    """Return the values as choices; the reason stands before the first."""
    return {key: Choice(value, reason if i == 0 else "") for i, (key, value) in enumerate(values.items())}


def _backbone(start: Start) -> Mapping[str, Any]:
    weights = start.profile.backbone.weights
    if weights is None:
        return {
            "seed": Choice(
                start.profile.backbone.seed,
                "of random weights; the first lines of this file state what that costs",
            )
        }
    values = weights.model_dump(exclude_defaults=True)
    return {"weights": _reasoned(values, "ImageNet's weights, kept in downloads/; the checksum is verified")}


def _transforms(data: Fingerprint, tuned: Transforms, use_gpu: bool) -> dict[str, Choice]:
    height, width = data.median_size
    crop = crop_side(data, use_gpu)
    if crop is None:
        choices = {
            "crop": Choice(None, f"none: all photos have {height}x{width} pixels, a size that fits whole"),
            "scale": Choice([1.0, 1.0], "none, so that all stay of one size and none is padded"),
        }
    else:
        shorter = min(height, width)
        sizes = f"{data.num_sizes} sizes become one; " if data.num_sizes > 1 else ""
        why = "enough to show objects whole at a bearable cost"
        if crop > shorter:
            why = "the least side; photos are padded to it"
        elif shorter >= 3 * crop:
            why = (
                "the most at a bearable cost. Large objects are seen in parts: photos and masks scaled down before "
                "may score better"
            )
        choices = {
            "crop": Choice(
                [crop, crop],
                f"{sizes}the median photo has {height}x{width} pixels, and this is {crop / shorter:.0%} of its shorter "
                f"side, in steps of {CROP_STEP}: {why}",
            ),
            "scale": Choice([0.5, 1.5], "objects nearer and farther than in the photos"),
        }
    mirror = "set it to false if left and right matter, as for text or sides of a road"
    colours = "light and colour of other days; 0 if colour tells the classes apart"
    return {
        "mirror": Choice(True, mirror),
        **choices,
        "brightness": Choice(tuned.brightness, colours),
        "contrast": Choice(tuned.contrast),
        "saturation": Choice(tuned.saturation),
    }


def crop_side(data: Fingerprint, use_gpu: bool) -> int | None:
    """Return the side of the square that training photos are cut to, or None if they stay whole."""
    shorter = min(data.median_size)
    if data.num_sizes == 1 and max(data.max_size) <= SMALL:
        return None
    if shorter <= SMALL:  # the largest square that the median photo holds
        return max(LEAST_CROP, shorter // CROP_STEP * CROP_STEP)
    side = CROP_STEP * math.ceil(max(SMALL, CROP_SHARE * shorter) / CROP_STEP - 0.5)
    return min(MAX_CROP["cuda" if use_gpu else "cpu"], side)


def _batch_norm(start: Start, per_worker: int) -> Choice:
    if not start.has_batch_norm:
        return Choice("local", "without effect: this trunk has no batch norm")
    if start.profile.train.batch_norm == "frozen":
        return Choice("frozen", f"the weights' own statistics, as in profiles/{start.template}.yaml")
    return Choice("local", f"statistics of the {per_worker} photos of each worker, which suit random weights")


def _class_weights(data: Fingerprint) -> Choice | Mapping[str, Choice]:
    """Return weights inverse to the root of each class's share, where a class is rare; 1 on average over the pixels."""
    rarest = int(data.shares.argmin())
    which = f"the rarest class, {data.classes[rarest]}, has {data.shares[rarest]:.2%} of the pixels"
    if data.shares[rarest] >= RARE:
        return Choice("none", f"{which}, not under {RARE:.0%}")
    roots = np.sqrt(data.shares)
    weights = 1 / (roots * roots.sum())
    reason = (
        f"{which}, under {RARE:.0%}: without weights a net may never predict it. These are inverse to the root of each "
        f"class's share, so that they differ by a factor of {weights.max() / weights.min():.0f}; `inverse` would by "
        f"{(weights.max() / weights.min()) ** 2:.0f}. Frequent classes pay for it: on VOC's photos the pixel accuracy "
        "was 0.816 with them and 0.851 without, at the same mean IU (docs/benchmarks.md). Compare with none"
    )
    by_class = {name: float(f"{weight:.3g}") for name, weight in zip(data.classes, weights, strict=True)}
    return _reasoned(by_class, reason)


def _loaders(use_gpu: bool, cores: int) -> Choice:
    if use_gpu:
        return Choice(max(1, min(8, cores - 1)), "a GPU computes faster than one process decodes photos")
    if cores >= 3:
        return Choice(1, f"one of {cores} cores decodes photos while the others compute")
    return Choice(0, "a core that decodes for others would be missing where they compute")


def _iterations(number: int, num_train: int, batch_size: int, start: Start) -> Choice:
    passes = PASSES[start.template][number]
    wanted = 10 * math.ceil(passes * num_train / batch_size / 10)
    value = min(MOST[number], max(LEAST[number], wanted))
    bounds = "" if value == wanted else f", kept within {LEAST[number]} and {MOST[number]}"
    weights = "" if start.is_pretrained else "; random weights need more than published ones"
    return Choice(
        value,
        f"{passes} passes over {num_train} photos in steps of {batch_size} are {wanted}{bounds}{weights}",
    )


def values(plan: Plan) -> dict[str, Any]:
    """Return the plan as a profile's values, without the reasons."""
    return {key: part.value if isinstance(part, Choice) else values(part) for key, part in plan.items()}
