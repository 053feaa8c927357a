"""bench/gpu_all.py: the whole command on a CPU, where only the packages of a machine with a GPU can be imported."""

import io
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image

from bench import gpu_pack
from bench.gpu_all import PARTS, measure
from bench.gpu_result import PartResult, Results, Row
from bench.gpu_setup import Bench, SkippedError
from pipeline.datasets.synthetic import picture
from pipeline.shards.sample import Sample

# Makes the packages named by the first argument unimportable, then runs the module of the second
RUN_WITHOUT = """
import runpy, sys
sys.modules.update(dict.fromkeys(sys.argv[1].split(",")))
sys.argv[:] = sys.argv[2:]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""
COMES_WITH_TORCH = {"fsspec"}
MODULES = {"ruamel-yaml": "ruamel", "pillow": "PIL", "python-multipart": "multipart"}


def refused_modules(root: Path) -> list[str]:
    """The modules of the project's dependencies that bench.gpu_pack neither expects there nor carries."""
    dependencies = tomllib.loads((root / "pyproject.toml").read_text("utf-8"))["project"]["dependencies"]
    names = {re.split(r"[\[<>=]", line)[0] for line in dependencies}
    refused = names - {*gpu_pack.THERE, *gpu_pack.CARRIED} - COMES_WITH_TORCH
    return sorted(MODULES.get(name, name) for name in refused)


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project folder as bench.gpu_pack writes it, of a few drawn images."""
    root = tmp_path_factory.mktemp("packed")
    gpu_pack.write_profile(root, "sample")
    profile = root / "profiles" / "sample.yaml"
    smaller = {"width: 0.25": "width: 0.03125", "batch_size: 8": "batch_size: 2"}
    text = profile.read_text("utf-8")
    for key, value in smaller.items():
        assert key in text
        text = text.replace(key, value)
    profile.write_text(text, "utf-8")
    gpu_pack.write_backbone(root)
    for split, source, num in (("train", "sbd_train", 12), ("val", "voc_val", 4)):

        def load(key: str, source: str = source) -> Sample:
            image, label = picture(source, int(key), 48, seed=0)
            file = io.BytesIO()
            Image.fromarray(image).save(file, "JPEG")
            return Sample.checked(key, file.getvalue(), label)

        gpu_pack.write_split(root, split, [str(number) for number in range(num)], load)
    return root


PEER = """
from torch import nn
class FCN8s(nn.Module):
    def __init__(self, n_class):
        super().__init__()
        self.score = nn.Conv2d(3, n_class, 1)
    def forward(self, x):
        return self.score(x)
"""


@pytest.fixture
def peer(tmp_path: Path) -> Path:
    """A checkout laid out as pytorch-fcn's, with a net that takes no time."""
    folder = tmp_path / "peer" / "torchfcn" / "models"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text(PEER, "utf-8")
    return tmp_path / "peer"


@pytest.mark.slow
def test_the_whole_command_runs_on_a_cpu_without_what_is_missing_on_the_machine(
    root: Path, packed: Path, peer: Path, tmp_path: Path
):
    refused = refused_modules(root)
    assert {"ray", "mlflow", "dvc", "webdataset", "matplotlib", "fastapi"} <= set(refused)
    command = [sys.executable, "-c", RUN_WITHOUT, ",".join(refused), "bench.gpu_all"]
    command += ["--out", str(tmp_path), "--minutes", "20", "--device", "cpu", "--small"]
    command += ["--photos", str(packed), "--peer", str(peer)]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr

    results = json.loads((tmp_path / "gpu.json").read_text("utf-8"))
    assert [(part["name"], part["status"]) for part in results["parts"]] == [(p.name, "done") for p in PARTS]
    assert {"date", "torch", "Python"} <= results["about"].keys()
    exact = [row for part in results["parts"] for row in part["rows"] if row["limit"] == 0]
    assert len(exact) >= 10
    assert {row["verdict"] for row in exact} == {"met"}
    table = (tmp_path / "gpu.md").read_text("utf-8")
    for part in results["parts"]:
        for row in part["rows"]:
            assert f"| {part['name']} | {row['name']} |" in table


# Parts that do not end well


def raises(_: Bench) -> Iterator[Row]:
    yield Row("before", 1.0)
    raise ValueError("out of order")


def cannot_run(_: Bench) -> Iterator[Row]:
    raise SkippedError("no peer")
    yield


def hangs(_: Bench) -> Iterator[Row]:
    yield Row("before", 1.0)
    time.sleep(600)


def dies(_: Bench) -> Iterator[Row]:
    yield Row("before", 1.0)
    time.sleep(0.5)  # the row is on its way
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize(
    ("work", "status", "reason", "num_rows"),
    [
        (raises, "failed", "ValueError: out of order", 1),
        (cannot_run, "skipped", "no peer", 0),
        (hangs, "stopped", "time", 1),
        (dies, "failed", "-9", 1),
    ],
)
def test_a_part_that_does_not_end_well_keeps_its_rows_and_its_reason(
    work: Callable[[Bench], Iterator[Row]], status: str, reason: str, num_rows: int, tmp_path: Path
):
    bench = Bench(torch.device("cpu"), True, tmp_path, None, None, deadline_s=time.monotonic() + 4)
    shown: list[Row] = []
    result = PartResult("part")
    measure(work, bench, result, shown.append)
    assert (result.status, len(result.rows)) == (status, num_rows)
    assert reason in result.reason
    assert shown == result.rows
    assert result.seconds < 60
    results = Results(tmp_path, {"torch": "2.11"}, [result])
    results.write()
    assert f"- part: {status}" in (tmp_path / "gpu.md").read_text("utf-8")


# Results


@pytest.mark.parametrize(
    ("row", "verdict"),
    [
        (Row("error", 0.5, limit=1), "met"),
        (Row("error", 1.5, limit=1), "missed"),
        (Row("error", math.nan, limit=1), "missed"),
        (Row("speed", 1.5, limit=1, at_most=False), "met"),
        (Row("speed", 0.5, limit=1, at_most=False), "missed"),
        (Row("speed", math.nan, limit=1, at_most=False), "missed"),
        (Row("speed", 0.5), ""),
        (Row("name", None, note="a word"), ""),
    ],
)
def test_a_row_meets_or_misses_its_limit(row: Row, verdict: str, tmp_path: Path):
    Results(tmp_path, {}, [PartResult("part", "done", rows=[row])]).write()
    text = (tmp_path / "gpu.json").read_text("utf-8")
    assert json.loads(text)["parts"][0]["rows"][0]["verdict"] == verdict
    assert "NaN" not in text


# Packing


@pytest.mark.parametrize("quality", [None, 30])
def test_packed_photos_keep_their_labels_and_recoded_ones_are_smaller(quality: int | None, tmp_path: Path):
    image, label = picture("voc_val", 0, 48, seed=0)
    for name in ("voc/JPEGImages", "voc/SegmentationClass"):
        (tmp_path / name).mkdir(parents=True)
    jpeg = tmp_path / "voc/JPEGImages/a.jpg"
    Image.fromarray(image).save(jpeg, quality=95)
    Image.fromarray(label).save(tmp_path / "voc/SegmentationClass/a.png")
    sample = gpu_pack.load(tmp_path, "a", quality)
    assert (sample.label == label).all()
    assert (sample.image == jpeg.read_bytes()) == (quality is None)
    assert len(sample.image) <= jpeg.stat().st_size
