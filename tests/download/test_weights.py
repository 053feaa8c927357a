"""Published ImageNet weights, from a real HTTP server on loopback through the backbone stage into the trunk."""

import functools
import hashlib
import http.server
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torchvision import models

from fcn.model import FCN
from pipeline.models import checkpoint
from tests.stage_runs import NAME, run_stage, sample_profile, write_profile

MOBILENET = "mobilenetV1X0.25_pretrain.tar"


class CountingHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        super().do_GET()


class Host(http.server.ThreadingHTTPServer):
    """Serves a folder on loopback. asked: the paths of all requests."""

    def __init__(self, folder: Path):
        super().__init__(("127.0.0.1", 0), functools.partial(CountingHandler, directory=folder))
        self.folder, self.asked = folder, []

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.server_port}/models/{name}"


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    (tmp_path / "served" / "models").mkdir(parents=True)
    server = Host(tmp_path / "served")
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def publish(host: Host, state: dict[str, torch.Tensor]) -> tuple[str, str]:
    """(name, sha256's first 8 digits) of the file, named as torchvision names its own."""
    path = host.folder / "models" / "alexnet.pth"
    torch.save(state, path)
    digits = digest(path)[:8]
    path.rename(path.with_name(f"alexnet-owt-{digits}.pth"))
    return f"alexnet-owt-{digits}.pth", digits


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def backbone(root: Path, model: dict[str, Any], url: str, checksum: str) -> subprocess.CompletedProcess[str]:
    profile = sample_profile()
    profile["model"] = model
    profile["backbone"] = {"weights": {"urls": [url], "checksum": checksum}}
    write_profile(root, profile)
    return run_stage(root, "stages.backbone")


def trunk(root: Path, model: dict[str, Any]) -> tuple[torch.nn.Module, str]:
    """The net's trunk with what the stage wrote, and where that says it is from."""
    content, _ = checkpoint.load(root / "models" / NAME / "backbone.pt", "backbone")
    net = FCN(21, 32, **model).eval()
    net.backbone.load_state_dict(content["state_dict"])
    return net.backbone, content["source"]


ALEXNET = {"backbone": "alexnet"}
MOBILENET_V1 = {"backbone": "mobilenet_v1", "width": 0.25}


def test_torchvisions_alexnet_is_fetched_verified_and_cast_into_the_trunk(tmp_path, host):
    torch.manual_seed(0)
    alexnet_state = models.alexnet(weights=None).state_dict()
    name, digits = publish(host, alexnet_state)
    project = tmp_path / "project"
    done = backbone(project, ALEXNET, host.url(name), f"sha256:{digits}")
    assert done.returncode == 0, done.stderr
    assert host.asked == [f"/models/{name}"]
    assert name in done.stderr  # the progress bar's line
    fetched = project / "downloads" / name
    assert digest(fetched) == digest(host.folder / "models" / name)

    found, source = trunk(project, ALEXNET)
    assert source == name
    assert torch.equal(found.conv1.weight, alexnet_state["features.0.weight"])
    assert torch.equal(found.fc6.weight, alexnet_state["classifier.1.weight"].view(4096, 256, 6, 6))
    assert torch.equal(found.fc7.bias, alexnet_state["classifier.4.bias"])


def test_mobilenets_published_weights_become_the_trunk_and_a_second_run_asks_for_nothing(
    tmp_path, host, real_data
):
    source = real_data / "weights" / "mobilenet_v1_0.25" / MOBILENET
    (host.folder / "models" / MOBILENET).write_bytes(source.read_bytes())
    project = tmp_path / "project"
    done = backbone(project, MOBILENET_V1, host.url(MOBILENET), f"sha256:{digest(source)[:8]}")
    assert done.returncode == 0, done.stderr
    found, name = trunk(project, MOBILENET_V1)
    assert name == MOBILENET
    published = torch.load(source, map_location="cpu", weights_only=True)["state_dict"]
    ours = {f"module.{key}": tensor for key, tensor in found.state_dict().items()}
    assert {key for key in published if not key.startswith("module.fc.")} <= ours.keys()
    assert all(torch.equal(ours[key], tensor) for key, tensor in published.items() if key in ours)

    before = digest(project / "models" / NAME / "backbone.pt")
    assert backbone(project, MOBILENET_V1, host.url(MOBILENET), f"sha256:{digest(source)}").returncode == 0
    assert digest(project / "models" / NAME / "backbone.pt") == before
    assert host.asked == [f"/models/{MOBILENET}"]


def test_weights_whose_hash_is_wrong_are_refused_and_no_model_is_written(tmp_path, host):
    (host.folder / "models" / "alexnet-owt-7be5be79.pth").write_bytes(b"these are no weights of AlexNet")
    project = tmp_path / "project"
    done = backbone(project, ALEXNET, host.url("alexnet-owt-7be5be79.pth"), "sha256:7be5be79")
    assert done.returncode == 2
    assert "expected sha256 7be5be79, found " in done.stderr
    assert "Traceback" not in done.stderr
    assert not (project / "models").exists()
    assert not (project / "downloads" / "alexnet-owt-7be5be79.pth").exists()


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (
            {"backbone": "vgg16", "width": 1 / 64, "pixels": "torchvision"},
            "does not fit backbone 'vgg16' as the profile's model section describes it: these are no weights",
        ),
        (ALEXNET | {"width": 1 / 64}, "does not fit backbone 'alexnet' as the profile's model section"),
        (
            ALEXNET | {"width": 1 / 64, "pixels": "caffe"},
            "was trained on 'torchvision' pixels, model.pixels is 'caffe'",
        ),
        ({"backbone": "caffenet"}, "no published weights can be cast into backbone 'caffenet'"),
    ],
)
def test_weights_of_another_net_are_refused_and_no_model_is_written(tmp_path, host, model, words):
    with torch.device("meta"):
        kinds = models.alexnet().state_dict().keys()
    name, digits = publish(host, dict.fromkeys(kinds, torch.zeros(2, 36)))
    done = backbone(tmp_path / "project", model, host.url(name), f"sha256:{digits}")
    assert done.returncode == 2, done.stderr
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "project" / "models").exists()
