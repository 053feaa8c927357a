"""The chain FCN-32s, 16s, 8s on the packed photos by the packed profile's recipe, scored on its validation photos."""

import os
import shutil
import time
from collections.abc import Iterator

from bench.gpu_result import Row
from bench.gpu_setup import Bench, Project, project
from pipeline import paths
from pipeline.config import CHAIN
from pipeline.config.job import Job
from pipeline.evaluation.scoring import score_split
from pipeline.models.model_file import load_model
from pipeline.models.predictor import Predictor
from pipeline.shards.read import open_shards
from pipeline.training.loop import FINAL, train_worker

TRIAL_STEPS = 40  # measure the rate, before the iterations are chosen
MARGIN = 0.7  # of the time that is left; the rest is for starts, files and scoring


def learning(bench: Bench) -> Iterator[Row]:
    """Train and score each net. All iterations are cut by one factor if the time is too short for them."""
    own = project(bench, "learning")
    root, name, profile = own
    iterations = {net: profile.net(net).iterations for net in CHAIN}
    trial_steps = 2 if bench.is_small else TRIAL_STEPS
    start_s, step_s = timed(bench, own, trial_steps)
    needed_s = step_s * sum(iterations.values()) + len(CHAIN) * start_s
    factor = min(1.0, MARGIN * bench.left_s / needed_s)
    if bench.is_small:
        factor = 2 / max(iterations.values())
    backbone = profile.model.backbone
    note = f"{backbone}, batch {profile.train.batch_size}, {factor:.2f} of the profile's iterations"
    yield Row("the chain's recipe", None, note=f"profile {name}: {note}")
    val = open_shards(root / paths.shards(name, "val"), split="val")
    for net in CHAIN:
        made = trainable(bench, own, net, max(1, round(factor * iterations[net])))
        before = time.monotonic()
        train_worker(made, bench.rank)
        seconds = time.monotonic() - before
        shutil.copyfile(made.folder / FINAL, root / paths.model(name, net))
        model, about, _ = load_model(made.folder / FINAL, bench.device)
        predictor = Predictor(model, about["classes"], bench.device)
        scores = score_split(predictor, val, bench.rank, profile.evaluate.border_width).confusion.scores()
        note = (
            f"pixel accuracy {scores.pixel_acc:.3f} on {len(val)} photos, after {made.recipe.iterations} steps "
            f"in {seconds:.0f} s"
        )
        yield Row(f"{net}: mean IU", scores.mean_iu, note=note)


def trainable(bench: Bench, own: Project, net: str, iterations: int) -> Job:
    num_loaders = 0 if bench.is_small else max(1, len(os.sched_getaffinity(0)) - 2)
    return own.job(
        net,
        train={"precision": "auto"},
        run={"loader_workers": num_loaders, "log_every": 20, "checkpoint_every": 10**6},
        recipe={"iterations": iterations},
    )


def timed(bench: Bench, own: Project, num_steps: int) -> tuple[float, float]:
    """Return the seconds that a run's start takes, and those of a step, from runs of the first net."""
    seconds = []
    for steps in (1, 2, num_steps + 2):  # the first also starts CUDA
        made = trainable(bench, own, CHAIN[0], steps)
        before = time.monotonic()
        train_worker(made, bench.rank)
        seconds.append(time.monotonic() - before)
    return seconds[1], max(1e-4, (seconds[2] - seconds[1]) / num_steps)
