"""A small net with a prediction of each class somewhere in a photo, its model files, and photos for it."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fcn.model import FCN
from pipeline.export.export import export_model
from pipeline.models import checkpoint
from pipeline.shards.labels import voc_palette

CLASSES = ["background", "chat", "été"]
OPTIONS = {"num_classes": 3, "backbone": "mobilenet_v1", "width": 0.1, "score_init": "random"}


def save_model(path: Path, model: FCN, options: dict, classes: list[str] = CLASSES) -> Path:
    content = {
        "model": options,
        "classes": classes,
        "lineage": {"net": "fcn8s"},
        "state_dict": dict(model.state_dict()),
    }
    checkpoint.save(path, "model", content)
    return path


@pytest.fixture(scope="session")
def net() -> FCN:
    torch.manual_seed(0)
    model = FCN(**OPTIONS).eval()
    with torch.no_grad():  # scores far apart, each class somewhere: those of fresh weights hardly differ
        for layer in (model.score_fr, model.score_pool4, model.score_pool3):
            layer.weight *= 1e4
        model.score_fr.bias.copy_(torch.tensor([0.6, 0.4, -1.1]))
    return model


@pytest.fixture(scope="session")
def model(net, tmp_path_factory) -> Path:
    """The net's file."""
    return save_model(tmp_path_factory.mktemp("model") / "fcn8s.pt", net, OPTIONS)


@pytest.fixture(scope="session")
def onnx(model) -> Path:
    export_model(model, model.with_suffix(".onnx"))
    return model.with_suffix(".onnx")


@pytest.fixture(scope="session")
def nan_model(net, tmp_path_factory) -> Path:
    """The file of a net with a NaN weight."""
    damaged = FCN(**OPTIONS)
    damaged.load_state_dict(net.state_dict())
    with torch.no_grad():
        damaged.score_fr.bias[1] = torch.nan
    return save_model(tmp_path_factory.mktemp("model") / "nan.pt", damaged, OPTIONS)


def noise(height: int, width: int, seed: int = 0, cell: int = 16) -> np.ndarray:
    """(H, W, 3) uint8 in cells of one colour, so that a net's scores differ over the photo."""
    shape = (height // cell + 1, width // cell + 1, 3)
    coarse = np.random.default_rng(seed).integers(0, 256, shape, np.uint8)
    return np.ascontiguousarray(coarse.repeat(cell, 0).repeat(cell, 1)[:height, :width])


def encoded(image: np.ndarray | Image.Image, kind: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(file, kind, **options)
    return file.getvalue()


def write_photo(path: Path, height: int = 40, width: int = 60, **options) -> Path:
    path.parent.mkdir(exist_ok=True, parents=True)
    Image.fromarray(noise(height, width)).save(path, **options)
    return path


def scores_of(net: FCN, image: np.ndarray) -> torch.Tensor:
    """(C, H, W), straight from the net."""
    with torch.inference_mode():
        # In the layout that the predictor has: another one changes the order of float32 sums
        return net(torch.from_numpy(image.transpose(2, 0, 1)[None].copy()))[0]


def label_of(net: FCN, image: np.ndarray) -> np.ndarray:
    return scores_of(net, image).numpy().argmax(0)


def indices_of(png: Path | bytes) -> np.ndarray:
    """The palette indices of a PNG in VOC's colours."""
    with Image.open(png if isinstance(png, Path) else io.BytesIO(png)) as image:
        assert (image.format, image.mode) == ("PNG", "P")
        assert image.getpalette("RGB") == voc_palette().flatten().tolist()
        return np.array(image)
