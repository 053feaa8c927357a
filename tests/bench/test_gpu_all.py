"""bench/gpu_all.py: the whole command on a CPU, where only the packages of a machine with a GPU can be imported."""

import io
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from PIL import Image

from bench import gpu_pack
from bench.gpu_all import PARTS
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
    gpu_pack.write_backbone(root, weights=None)
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
