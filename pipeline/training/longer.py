"""Training longer: a run takes over the steps that it shares with an earlier run of another end.

Runs with the schedules fixed and cooldown that differ in iterations or cooldown alone have one folder. Its file END
names the end that the folder was trained to.
"""

import json
import shutil

from pipeline import curves
from pipeline.config.job import Job
from pipeline.models import checkpoint
from pipeline.monitoring.meter import CURVES
from pipeline.training.loop import FINAL

END = "end.json"


def end_of(job: Job) -> dict[str, int]:
    return {"iterations": job.recipe.iterations, "shared_steps": job.shared_steps}


def is_of_another_end(job: Job) -> bool:
    """Return whether the run's folder is of a run with another number of iterations or another cooldown."""
    path = job.folder / END
    return path.exists() and json.loads(path.read_text(encoding="utf-8")) != end_of(job)


def keep_shared_steps(job: Job) -> None:
    """Leave of the run's folder what a run of the new end, stopped at the last shared checkpoint, would have left.

    Without such a checkpoint the folder is removed, and the run starts from the beginning.
    """
    before = json.loads((job.folder / END).read_text(encoding="utf-8"))
    step = checkpoint.remove_steps(job.folder, after=min(before["shared_steps"], job.shared_steps))
    # First: a kill must not leave it without END, or it would count as the new end's
    (job.folder / FINAL).unlink(missing_ok=True)
    if step == 0:
        shutil.rmtree(job.folder)
        return
    curves.remove_points(job.folder / CURVES, after_step=step)
    print(f"{job.title}  goes on from step {step} of a run of {before['iterations']} steps", flush=True)
