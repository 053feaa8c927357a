"""stages/shard.py as a user runs it: killed, stopped with Ctrl-C, run again, sent to a bucket."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.datasets import synthetic
from pipeline.shards.manifest import MANIFEST
from pipeline.shards.read import open_shards
from tests import s3_server
from tests.conftest import run_fcn
from tests.small_shards import files_in
from tests.stage_runs import edit_profile, run_stage

NUM_TRAIN = 160


@pytest.fixture(scope="module")
def big(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Raw data that take seconds to shard."""
    folder = tmp_path_factory.mktemp("big") / "raw"
    synthetic.draw(folder, num_train=NUM_TRAIN, num_val=2, image_size=96, seed=1)
    return folder


@pytest.fixture
def project(workplace: Path, big: Path) -> Path:
    shutil.rmtree(workplace / "data" / "small" / "raw")
    shutil.copytree(big, workplace / "data" / "small" / "raw")  # with the files' times
    edit_profile(workplace, "shards", "samples_per_shard", value=10)
    return workplace


def stage(root: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "stages.shard"],
        cwd=root,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finish(root: Path) -> None:
    done = run_stage(root, "stages.shard")
    assert done.returncode == 0, done.stderr


def shards_of(root: Path) -> dict[str, dict[str, bytes]]:
    return {split: files_in(root / "data" / "small" / "shards" / split) for split in ("train", "val")}


def finished(root: Path) -> set[Path]:
    return set((root / "data" / "small" / ".sharding" / "train" / "records").glob("*.parquet"))


def wait_for(root: Path, process: subprocess.Popen[str], number: int) -> set[Path]:
    while len(records := finished(root)) < number:
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.002)
    return records


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT])
def test_a_stage_that_was_ended_goes_on_to_the_same_bytes(project: Path, end: signal.Signals):
    process = stage(project)
    kept = wait_for(project, process, 3)
    os.killpg(process.pid, end)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == (-end if end == signal.SIGKILL else 130), output
    assert "Traceback" not in output
    assert not (project / "data" / "small" / "shards").exists()
    times = {path: path.stat().st_mtime_ns for path in kept}
    process = stage(project)
    wait_for(project, process, len(kept) + 1)
    assert {path: path.stat().st_mtime_ns for path in kept} == times
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    resumed = shards_of(project)
    assert len(open_shards(project / "data" / "small" / "shards" / "train", split="train")) == NUM_TRAIN
    assert {path.name for path in (project / "data" / "small" / ".sharding").iterdir()} == {
        "train.lock",
        "val.lock",
    }
    shutil.rmtree(project / "data" / "small" / "shards")
    finish(project)
    assert shards_of(project) == resumed


@pytest.mark.slow
def test_ray_workers_end_with_a_killed_stage_and_the_next_goes_on(project: Path):
    edit_profile(project, "run", "shard_workers", value=2)
    process = stage(project)
    kept = wait_for(project, process, 3)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)
    finish(project)
    resumed = shards_of(project)
    assert len(kept) >= 3
    shutil.rmtree(project / "data" / "small" / "shards")
    edit_profile(project, "run", "shard_workers", value=1)
    finish(project)
    assert shards_of(project) == resumed


def test_a_destination_leaves_the_manifest_here_and_the_shards_there(workplace: Path, monkeypatch, capsys):
    finish(workplace)
    here = shards_of(workplace)
    elsewhere = workplace / "elsewhere"
    edit_profile(workplace, "shards", "destination", value=str(elsewhere))
    finish(workplace)
    for split, files in here.items():
        folder = workplace / "data" / "small" / "shards" / split
        assert files_in(elsewhere / "small" / split) == files
        assert sorted(path.name for path in folder.iterdir()) == ["location", "manifest.parquet"]
        assert open_shards(folder, split=split).folder == elsewhere / "small" / split
    with s3_server.s3_server() as bucket:
        edit_profile(workplace, "shards", "destination", value=f"{bucket}/fcn/")
        finish(workplace)
        opened = open_shards(workplace / "data" / "small" / "shards" / "train", split="train")
        assert opened.folder == f"{bucket}/fcn/small/train"
        local = open_shards(elsewhere / "small" / "train")
        assert [opened.read(i) for i in range(2)] == [local.read(i) for i in range(2)]
        code, _, error = run_fcn(monkeypatch, capsys, "shards", "verify", f"{bucket}/fcn/small/val")
        assert code == 0, error


def test_shards_that_are_there_already_are_linked_and_inspected(workplace: Path, tmp_path: Path):
    finish(workplace)
    there = shutil.move(workplace / "data" / "small" / "shards", tmp_path / "there")
    where = {"train": f"{there}/train/shard-{{000000..000000}}.tar", "val": f"{there}/val"}
    edit_profile(workplace, "data", "source", value={"shards": where})
    edit_profile(workplace, "data", "splits", value=None)
    for name in ("download", "shard", "inspect"):
        done = run_stage(workplace, f"stages.{name}")
        assert done.returncode == 0, done.stderr
    for split in ("train", "val"):
        opened = open_shards(workplace / "data" / "small" / "shards" / split, split=split)
        assert opened.folder == tmp_path / "there" / split
        assert len(opened) == 2

    # The same shards elsewhere, and other shards in the same place, are another source
    record = workplace / "data" / "small" / "raw.json"
    records = [record.read_bytes()]
    elsewhere = shutil.copytree(there, tmp_path / "elsewhere")
    edit_profile(
        workplace,
        "data",
        "source",
        value={"shards": {split: f"{elsewhere}/{split}" for split in ("train", "val")}},
    )
    fingerprints = []
    for change in (None, lambda: (Path(elsewhere) / "val" / MANIFEST).write_bytes(b"another")):
        if change:
            change()
        for name in ("source", "download"):
            done = run_stage(workplace, f"stages.{name}")
            assert done.returncode == 0, done.stderr
        records.append(record.read_bytes())
        fingerprints.append((workplace / "data" / "small" / "source.json").read_bytes())
    assert len(set(records)) == 3
    assert len(set(fingerprints)) == 2
    # In a clone that cannot reach them, what was made from them is used
    shutil.rmtree(elsewhere)
    assert run_stage(workplace, "stages.source").returncode == 0
    assert (workplace / "data" / "small" / "source.json").read_bytes() == fingerprints[-1]
