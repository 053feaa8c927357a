"""Trains one net of the chain: prepares its run, puts it on Ray workers, and hands its model over."""

import hashlib
import os
import secrets
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline import paths, tracking
from pipeline.cluster import ray_workers
from pipeline.config import Profile
from pipeline.config.job import Job
from pipeline.config.variant import Variant, results_folder
from pipeline.curves import read_points, write_curve
from pipeline.errors import CheckpointError
from pipeline.files import lock, whole, write_json, write_text
from pipeline.models import checkpoint
from pipeline.monitoring.meter import CURVES, STOP
from pipeline.training.longer import END, end_of, is_of_another_end, keep_shared_steps
from pipeline.training.loop import FINAL, train_worker
from pipeline.training.prepare import make_job

PARENT_POLL_S = 1.0
ATTEMPT = "attempt"  # file with a random name, kept when a run resumes; it identifies the run in MLflow
# Marks a run whose model was handed over, by whose md5 DVC knows it. Training it to the same end again starts at step 0
FINISHED = "finished"
DVC_LOCK = "dvc.lock"


def train_net(
    profile_name: str, profile: Profile, net: str, root: Path, variant: Variant | None = None
) -> Path:
    """Train one net of the chain, or resume it; write models/<profile>/<net>.pt and its curve. Return the model's path.

    On SIGTERM, or when the `dvc repro` that started this process dies, the workers write a checkpoint and stop; this
    function then raises KeyboardInterrupt.

    root: the project's folder, absolute.
    variant: trains the net in a folder of its own; None: for the profile's own results.
    """
    job = make_job(profile_name, profile, net, root, variant)
    results = results_folder(root, variant)
    if job.start:
        matched, new, dropped = (job.lineage[f"start_{key}"] for key in ("matched", "new", "dropped"))
        print(
            f"{job.title}  starts from {profile.train.start}: classes {matched}; new: {new}; dropped: {dropped}",
            flush=True,
        )
    with lock(job.folder.with_suffix(".driver.lock"), f"trains {net} already") as has_waited:
        tracker = tracking.Tracker(profile_name, root)
        if is_of_another_end(job):
            tracker.records.keep_curves(job.folder)
            keep_shared_steps(job)
            for name in (FINISHED, ATTEMPT):
                (job.folder / name).unlink(missing_ok=True)
        # The process that held the lock may have finished this run.
        elif not has_waited and _is_committed(job.folder, root):
            tracker.records.keep_curves(job.folder)
            shutil.rmtree(job.folder)
        job.folder.mkdir(parents=True, exist_ok=True)
        write_json(job.folder / END, end_of(job))
        params = (
            {"net": net} | profile.model_dump(mode="json", exclude={"nets"}) | profile.net(net).model_dump()
        )
        if variant:
            params["variant"] = variant.values
        record = tracker.record(
            "training",
            variant.run_name(net) if variant else net,
            tracking.MEMBER if variant else "fcn.attempt",
            variant.member(job.identity) if variant else _attempt(job.folder),
            params=params,
            datasets={"train": job.lineage["data_digest"]},
            curves=job.folder / CURVES,
            group=variant.group if variant else None,
        )
        follower = tracking.Follower(tracker, record)
        if not _is_trained(job.folder / FINAL):
            with follower:
                _run_on_workers(job)
        model = results / paths.model(profile_name, net)
        lineage, model_digest = _hand_over(job.folder / FINAL, model)
        kept = lineage["kept"]
        points = read_points(job.folder / CURVES)
        write_curve(results / paths.curve(profile_name, net), net, lineage["parent"], points, kept)
        tags = {"model_sha256": model_digest, **{key: str(value) for key, value in job.lineage.items()}}
        tags |= {f"kept.{key}": str(value) for key, value in kept.items()}
        if profile.data.allow_leak:
            tags["allow_leak"] = "; ".join(profile.data.allow_leak)
        if variant:  # its model stays out of MLflow, and its checkpoints go: there may be dozens of variants
            tracker.log(follower.record, {}, tags)
            tracker.records.keep_curves(job.folder)
            shutil.rmtree(job.folder)
        else:
            tracker.log(follower.record, {}, tags, model=job.folder / FINAL)
            with (job.folder / FINAL).open("rb") as file:
                write_text(job.folder / FINISHED, hashlib.file_digest(file, "md5").hexdigest())
    return model


def _is_committed(folder: Path, root: Path) -> bool:
    """Return whether dvc.lock names the run's model. If so, the user asks for a new training.

    A kill or a full disk can prevent DVC's copy after this stage has ended. The next call then hands over the same
    model. Without a lock file, the stage was run without DVC, and a finished run counts as committed.
    """
    finished, lock_file = folder / FINISHED, root / DVC_LOCK
    if not finished.exists() or not lock_file.exists():
        return finished.exists()
    md5 = finished.read_text(encoding="utf-8")
    return bool(md5) and md5 in lock_file.read_text(encoding="utf-8")


def _run_on_workers(job: Job) -> None:
    """Run the job on workers until the final model exists. Raise KeyboardInterrupt if the workers were stopped."""
    stop = job.folder / STOP
    stop.unlink(missing_ok=True)
    with _stop_when_orphaned(stop):
        ray_workers.run_workers(
            train_worker,
            job,
            name=job.identity,
            storage=job.folder.parent,
            num_workers=job.train.num_workers,
            min_workers=job.run.min_workers,
            batch_size=job.inner_batch_size,
            use_gpu=job.train.use_gpu,
            cpus_per_worker=job.run.cpus_per_worker,
            max_failures=job.run.max_failures,
            on_sigterm=stop.touch,
        )
    if not (job.folder / FINAL).exists() and stop.exists():
        raise KeyboardInterrupt


@contextmanager
def _stop_when_orphaned(stop: Path) -> Iterator[None]:
    """Stop the workers if the `dvc repro` that runs this stage dies.

    Otherwise the next `dvc repro` waits for these workers.
    """
    done = threading.Event()
    parent = os.getppid()

    def watch() -> None:
        while not done.wait(PARENT_POLL_S):
            if os.getppid() != parent:
                stop.touch()
                return

    if "DVC_STAGE" in os.environ:  # a shell may exit and leave this process running on purpose
        threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        done.set()


def _attempt(folder: Path) -> str:
    path = folder / ATTEMPT
    if not path.exists() or not path.read_text(encoding="utf-8"):  # empty: killed before the name was written
        path.write_text(secrets.token_hex(8), encoding="utf-8")
    return path.read_text(encoding="utf-8")


def _is_trained(final: Path) -> bool:
    """Return whether a driver that was killed after training left a whole final model."""
    if not final.exists():
        return False
    try:
        checkpoint.load(final, "model")
    except CheckpointError:
        final.unlink()
        return False
    return True


def _hand_over(final: Path, model: Path) -> tuple[dict[str, Any], str]:
    """Copy the run's final model to DVC's path; return its lineage and the sha256 of its content."""
    content, digest = checkpoint.load(final, "model")
    with final.open("rb") as source, whole(model) as dest:
        shutil.copyfileobj(source, dest)
    return content["lineage"], digest
