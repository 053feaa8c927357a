"""Training that dies goes on where it was, with real processes, and comes out as if nothing had happened."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from ray.cluster_utils import Cluster

from pipeline.models import checkpoint
from tests.project_copy import Project
from tests.stages.test_chain import tiny

pytestmark = pytest.mark.slow

ITERATIONS = (
    1500  # long enough that the workers, which live on for seconds without their driver, cannot finish
)
LOG_EVERY, CHECKPOINT_EVERY = 1, 50
EARLY = rf"fcn32s  2\d\d/{ITERATIONS}  loss"  # at least 200 steps done
PATIENCE_S = 240  # for a step to be reached on a busy machine


class Run:
    """`python -m stages.train fcn32s` as a process of its own, whose output is followed."""

    def __init__(self, project: Project, **environment: str):
        self.log = project.folder / "train.log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "stages.train", "fcn32s"],
                cwd=project.folder,
                env=os.environ | environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def wait_for(self, words: str) -> str:
        """The output, once it contains the words (a regular expression)."""
        return wait_for_words(self.log, words, self.process)

    def finish(self) -> str:
        assert self.process.wait(timeout=PATIENCE_S) == 0, self.log.read_text()[-4000:]
        return self.log.read_text()


def wait_for_words(log: Path, words: str, process: subprocess.Popen | None = None) -> str:
    for _ in range(PATIENCE_S * 10):
        text = log.read_text()
        if re.search(words, text) or (process and process.poll() is not None):
            break
        time.sleep(0.1)
    assert re.search(words, text), text[-4000:]
    return text


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Project:
    """A project whose data and backbone are there, and whose first net takes some steps."""
    project = Project(tmp_path_factory.mktemp("project"))
    profile = tiny(project.profile("sample"))
    profile["nets"]["fcn32s"]["iterations"] = ITERATIONS
    profile["train"] |= {"ema": 0.99, "keep": "best", "best_by": "loss", "validate_every": 50}
    profile["run"] = {"log_every": LOG_EVERY, "log_every_s": 0.0, "checkpoint_every": CHECKPOINT_EVERY}
    project.use_profile("tiny", profile)
    project.run("dvc", "repro", "inspect", "backbone")
    return project


@pytest.fixture(scope="module")
def undisturbed(project) -> dict[str, torch.Tensor]:
    Run(project).finish()
    return weights(project)


def weights(project: Project) -> dict[str, torch.Tensor]:
    content, _ = checkpoint.load(project.folder / "models" / "tiny" / "fcn32s.pt", "model")
    return content["state_dict"]


def assert_equal(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def steps_shown(text: str) -> list[int]:
    return [int(step) for step in re.findall(rf"fcn32s  (\d+)/{ITERATIONS}  loss", text)]


def test_a_killed_driver_goes_on_from_its_last_checkpoint(project, undisturbed):
    run = Run(project)
    run.wait_for(EARLY)
    os.kill(run.process.pid, signal.SIGKILL)
    run.process.wait()
    text = Run(project).finish()  # its workers live on for seconds: a lock keeps them off each other's files
    resumed_from = int(re.search(r"resumed from step (\d+)", text).group(1))
    assert resumed_from >= 200 - CHECKPOINT_EVERY  # at most one interval is lost
    assert steps_shown(text) == list(range(resumed_from + LOG_EVERY, ITERATIONS + 1, LOG_EVERY))
    assert_equal(weights(project), undisturbed)


def test_a_killed_worker_is_replaced_and_the_group_goes_on(project, undisturbed):
    run = Run(project)
    run.wait_for(EARLY)
    children = psutil.Process(run.process.pid).children(recursive=True)
    worker = next(child for child in children if any("RayTrainWorker" in word for word in child.cmdline()))
    worker.kill()
    text = run.finish()
    assert "resumed from step" in text
    # Ray may lose a killed worker's last lines, the disk does not
    (curves,) = project.folder.glob("runs/tiny/*/curves.jsonl")
    steps = [json.loads(line)[0] for line in curves.read_text(encoding="utf-8").splitlines()]
    assert set(steps) == set(range(LOG_EVERY, ITERATIONS + 1, LOG_EVERY))
    assert len(steps) - len(set(steps)) <= CHECKPOINT_EVERY // LOG_EVERY  # one interval
    assert_equal(weights(project), undisturbed)


def test_a_driver_told_to_end_has_a_checkpoint_written_and_the_next_run_goes_on(project, undisturbed):
    run = Run(project)
    run.wait_for(EARLY)
    os.kill(run.process.pid, signal.SIGTERM)
    assert run.process.wait(timeout=60) == 130
    text = run.log.read_text()
    assert "stopped; run the same command again" in text
    text, last = Run(project).finish(), max(steps_shown(text))
    assert int(re.search(r"resumed from step (\d+)", text).group(1)) >= last  # no step is lost
    assert_equal(weights(project), undisturbed)


def test_a_stage_whose_dvc_was_killed_ends_and_the_next_repro_goes_on(project, undisturbed):
    log = project.folder / "repro.log"
    command = ["dvc", "repro", "-s", "--force", "train@fcn32s"]
    with (
        log.open("w") as file,
        subprocess.Popen(command, cwd=project.folder, stdout=file, stderr=file) as dvc,
    ):
        wait_for_words(log, EARLY)
        dvc.kill()
    text = project.run("dvc", "repro", "-s", "--no-run-cache", "train@fcn32s")
    # By now the orphan has ended, or the new stage has waited for it
    assert "stopped; run the same command again" in log.read_text()
    assert "resumed from step" in text
    assert_equal(weights(project), undisturbed)


def test_a_second_run_waits_for_the_first_and_takes_its_result(project, undisturbed):
    first = Run(project)
    first.wait_for(EARLY)
    text = project.run(sys.executable, "-m", "stages.train", "fcn32s")
    assert "trains fcn32s already; waiting until it ends" in text
    assert "loss" not in text  # it trained nothing
    assert first.process.wait(timeout=PATIENCE_S) == 0
    assert_equal(weights(project), undisturbed)


def test_ctrl_c_ends_in_a_sentence_and_the_next_run_goes_on(project, undisturbed):
    run = Run(project)
    run.wait_for(EARLY)
    os.kill(run.process.pid, signal.SIGINT)
    assert run.process.wait(timeout=60) == 130
    text = run.log.read_text()
    assert "stopped; run the same command again" in text
    assert "resumed from step" in Run(project).finish()
    assert_equal(weights(project), undisturbed)


def test_a_lost_second_node_is_waited_for_and_the_run_goes_on_when_another_joins(project, undisturbed):
    """Two raylets on this machine with a worker each; the second is killed, and a third takes its place."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        second = cluster.add_node(num_cpus=1)
        run = Run(project, RAY_ADDRESS=cluster.address)
        run.wait_for(EARLY)
        cluster.remove_node(second, allow_graceful=False)
        cluster.add_node(num_cpus=1)
        text = run.finish()
    finally:
        cluster.shutdown()
    steps = steps_shown(text)
    assert "resumed from step" in text
    assert set(steps) == set(range(LOG_EVERY, ITERATIONS + 1, LOG_EVERY))
    assert len(steps) - len(set(steps)) <= CHECKPOINT_EVERY
    assert_equal(weights(project), undisturbed)
