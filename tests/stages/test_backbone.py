"""stages/backbone.py: published ImageNet weights, from a real HTTP server on loopback into the backbone."""

import hashlib
import io
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torchvision import models

from fcn.model import FCN
from pipeline.models import checkpoint
from tests.faulty_server import FaultyServer
from tests.stage_runs import NAME, run_stage, sample_profile, write_profile

MOBILENET = "mobilenetV1X0.25_pretrain.tar"
ALEXNET = {"backbone": "alexnet"}
MOBILENET_V1 = {"backbone": "mobilenet_v1", "width": 0.25}


@pytest.fixture
def server() -> Iterator[FaultyServer]:
    """Serves its body under every path."""
    with FaultyServer() as server:
        yield server


def publish(server: FaultyServer, state: dict[str, torch.Tensor]) -> tuple[str, str]:
    """Serve weights; return their name, which holds their sha256's first 8 digits as torchvision's do, and those."""
    file = io.BytesIO()
    torch.save(state, file)
    server.body = file.getvalue()
    digits = hashlib.sha256(server.body).hexdigest()[:8]
    return f"alexnet-owt-{digits}.pth", digits


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def backbone(
    root: Path, model: dict[str, Any], server: FaultyServer, name: str, checksum: str
) -> subprocess.CompletedProcess[str]:
    weights = {"urls": [server.url.replace("file.tar", name)], "checksum": checksum}
    write_profile(root, sample_profile() | {"model": model, "backbone": {"weights": weights}})
    return run_stage(root, "stages.backbone")


def trunk(root: Path, model: dict[str, Any]) -> tuple[torch.nn.Module, str]:
    """Return the net's backbone with the weights that the stage wrote, and the source in their file."""
    content, _ = checkpoint.load(root / "models" / NAME / "backbone.pt", "backbone")
    net = FCN(21, 32, **model).eval()
    net.backbone.load_state_dict(content["state_dict"])
    return net.backbone, content["source"]


def test_torchvisions_alexnet_is_fetched_verified_and_cast_into_the_backbone(tmp_path, server):
    torch.manual_seed(0)
    alexnet_state = models.alexnet(weights=None).state_dict()
    name, digits = publish(server, alexnet_state)
    done = backbone(tmp_path, ALEXNET, server, name, f"sha256:{digits}")
    assert done.returncode == 0, done.stderr
    assert name in done.stderr  # the progress bar's line
    assert (tmp_path / "downloads" / name).read_bytes() == server.body

    net, source = trunk(tmp_path, ALEXNET)
    assert source == name
    assert torch.equal(net.conv1.weight, alexnet_state["features.0.weight"])
    assert torch.equal(net.fc6.weight, alexnet_state["classifier.1.weight"].view(4096, 256, 6, 6))
    assert torch.equal(net.fc7.bias, alexnet_state["classifier.4.bias"])


def test_mobilenets_published_weights_become_the_backbone_and_a_second_run_requests_nothing(
    tmp_path, server, real_data
):
    source = real_data / "weights" / "mobilenet_v1_0.25" / MOBILENET
    server.body = source.read_bytes()
    done = backbone(tmp_path, MOBILENET_V1, server, MOBILENET, f"sha256:{digest(source)[:8]}")
    assert done.returncode == 0, done.stderr
    net, name = trunk(tmp_path, MOBILENET_V1)
    assert name == MOBILENET
    published = torch.load(source, map_location="cpu", weights_only=True)["state_dict"]
    ours = {f"module.{key}": tensor for key, tensor in net.state_dict().items()}
    assert {key for key in published if not key.startswith("module.fc.")} <= ours.keys()
    assert all(torch.equal(ours[key], tensor) for key, tensor in published.items() if key in ours)

    before = digest(tmp_path / "models" / NAME / "backbone.pt")
    again = backbone(tmp_path, MOBILENET_V1, server, MOBILENET, f"sha256:{digest(source)}")
    assert again.returncode == 0
    assert digest(tmp_path / "models" / NAME / "backbone.pt") == before
    assert len(server.requests) == 1


def test_weights_whose_hash_is_wrong_are_refused_and_no_model_is_written(tmp_path, server):
    server.body = b"these are not the weights of AlexNet"
    done = backbone(tmp_path, ALEXNET, server, "alexnet-owt-7be5be79.pth", "sha256:7be5be79")
    assert done.returncode == 2
    for fact in ("alexnet-owt-7be5be79.pth", "sha256 7be5be79", hashlib.sha256(server.body).hexdigest()):
        assert fact in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "models").exists()
    assert not (tmp_path / "downloads" / "alexnet-owt-7be5be79.pth").exists()


@pytest.mark.parametrize(
    ("model", "facts"),
    [
        ({"backbone": "vgg16", "width": 1 / 64, "pixels": "torchvision"}, ["'vgg16'", "model"]),
        (ALEXNET | {"width": 1 / 64}, ["'alexnet'", "model"]),
        (ALEXNET | {"width": 1 / 64, "pixels": "caffe"}, ["'torchvision'", "model.pixels", "'caffe'"]),
        ({"backbone": "caffenet"}, ["'caffenet'"]),
    ],
)
def test_weights_of_another_net_are_refused_and_no_model_is_written(tmp_path, server, model, facts):
    with torch.device("meta"):
        names = models.alexnet().state_dict().keys()
    name, digits = publish(server, dict.fromkeys(names, torch.zeros(2, 36)))
    done = backbone(tmp_path, model, server, name, f"sha256:{digits}")
    assert done.returncode == 2, done.stderr
    for fact in facts:
        assert fact in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "models").exists()
