"""The chain FCN-32s, 16s, 8s on the packed photos by the packed profile's recipe, scored on its validation photos."""

import os
import shutil
import time
from collections.abc import Iterator

from bench.gpu_result import Row
from bench.gpu_setup import Bench, Project, project, stopped_after
from pipeline import paths
from pipeline.config import CHAIN
from pipeline.config.job import Job
from pipeline.curves import read_points
from pipeline.evaluation.scoring import score_split
from pipeline.models.model_file import load_model
from pipeline.models.predictor import Predictor
from pipeline.monitoring.meter import CURVES
from pipeline.shards.read import open_shards
from pipeline.training.loop import FINAL, train_worker

TRIAL_STEPS, TRIAL_SHARE = 100, 0.15  # to measure the rate: at most so many steps, and so much of the time
MARGIN = 0.7  # of the time that is left; the rest is for starts, files and scoring


def learning(bench: Bench) -> Iterator[Row]:
    """Train and score each net. All iterations are cut by one factor if the time is too short for them."""
    own = project(bench, "learning")
    root, name, profile = own
    iterations = {net: profile.net(net).iterations for net in CHAIN}
    start_s, step_s = trial(bench, own)
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


def trainable(bench: Bench, own: Project, net: str, iterations: int, log_every: int = 20) -> Job:
    num_loaders = 0 if bench.is_small else max(1, len(os.sched_getaffinity(0)) - 2)
    return own.job(
        net,
        train={"precision": "auto"},
        run={"loader_workers": num_loaders, "log_every": log_every, "checkpoint_every": 10**6},
        recipe={"iterations": iterations},
    )


def trial(bench: Bench, own: Project) -> tuple[float, float]:
    """Return the seconds that a run's start takes, and those of a step, from a short run of the first net.

    The steps of its second half count: the first ones take batches that were read ahead during the start.
    """
    made = trainable(bench, own, CHAIN[0], 4 if bench.is_small else TRIAL_STEPS, log_every=1)
    before = time.monotonic()
    with stopped_after(made, TRIAL_SHARE * bench.left_s):
        train_worker(made, bench.rank)
    seconds = time.monotonic() - before
    points = read_points(made.folder / CURVES)
    if len(points) < 3:
        raise RuntimeError(f"its time was too short: {len(points)} steps in {seconds:.0f} s")
    middle, last = points[len(points) // 2], points[-1]
    step_s = (last.time_ms - middle.time_ms) / 1e3 / (last.step - middle.step)
    return max(0.0, seconds - step_s * last.step), step_s
