"""Our networks as Caffe's: OpenCV's importer runs them and computes the same scores."""

import numpy as np
import pytest
import torch
from torch import Tensor

from fcn.caffe.caffemodel import CaffeError, read_caffemodel, write_caffemodel, write_prototxt
from fcn.caffe.write import MAX_BORDER, describe_pixels, to_layers
from fcn.model import FCN, aligned
from tests.caffe_nets import NETS, SMALL, caffemodel, random_net

# Odd and even, tiny and wide. OpenCV cannot pool a map of one cell, which tight padding makes of less than 33 pixels
SIZES = [(33, 47), (64, 64), (101, 57), (40, 200), (161, 90)]


def prototxt(model: FCN) -> str:
    return write_prototxt("net", to_layers(model), describe_pixels(model))


def check_against_opencv(model: FCN, sizes: list[tuple[int, int]]):
    cv2 = pytest.importorskip("cv2", reason="opencv-python-headless is not installed")
    text, data = prototxt(model).encode(), write_caffemodel("net", to_layers(model))
    net = cv2.dnn.readNetFromCaffe(np.frombuffer(text, np.uint8), np.frombuffer(data, np.uint8))
    for height, width in sizes:
        image = torch.randint(0, 256, (1, 3, height, width), dtype=torch.uint8)
        with torch.inference_mode():
            expected = model(image)
            net.setInput(model.backbone.pixels(image).numpy())
        score = torch.from_numpy(net.forward("score"))
        assert score.shape == expected.shape
        assert expected.std() > 0.05 * expected.abs().max()  # there is something to compare
        assert (score - expected).abs().max() <= 1e-3 * expected.abs().max(), (height, width)


@pytest.mark.parametrize("name", NETS)
def test_opencv_computes_the_same_scores_from_our_files(name: str):
    tiny = [] if NETS[name].get("padding") == "tight" else [(1, 1), (14, 23)]
    check_against_opencv(random_net(**NETS[name]), SIZES + tiny)


@pytest.mark.slow
def test_opencv_computes_the_same_scores_at_full_width():
    check_against_opencv(random_net(stride=8), [(48, 64)])


@pytest.mark.parametrize(
    ("name", "offsets"),
    [("fcn32s", [19]), ("fcn16s", [5, 27]), ("fcn8s", [5, 9, 31]), ("at-once", [5, 9, 31])],
)
def test_the_prototxt_crops_where_the_reference_release_does(name: str, offsets: list[int]):
    lines = [line.split() for line in prototxt(random_net(**NETS[name])).splitlines()]
    assert [int(words[1]) for words in lines if words[0] == "offset:"] == offsets


def test_the_prototxt_starts_with_the_pixel_normalisation():
    """The reference release's mean is (104.00699, 116.66877, 122.67892), B, G, R (voc_layers.py)."""
    first_line = prototxt(random_net(**NETS["fcn32s"])).splitlines()[0]
    assert first_line.startswith("# ")
    assert "B, G, R in 0..255, minus (104.00699, 116.66877, 122.67892)" in first_line


def test_fixed_upsampling_is_written_as_the_references_full_kernels():
    """(C, C, k, k) with the bilinear kernel on the diagonal (reference surgery.py, interp)."""
    (upscore,) = [layer for layer in read_caffemodel(caffemodel("fcn32s")) if layer.name == "upscore"]
    (weight,) = upscore.blobs
    assert weight.shape == (3, 3, 64, 64)
    assert torch.equal(weight.any(-1).any(-1), torch.eye(3, dtype=torch.bool))


def test_a_net_that_caffe_lacks_a_layer_for_is_refused():
    model = random_net(**NETS["fcn32s"])
    model.backbone.pool1.ceil_mode = False
    with pytest.raises(CaffeError, match="pool1"):
        to_layers(model)
    with pytest.raises(CaffeError, match="at_least"):
        to_layers(random_net(num_classes=3, stride=32, backbone="googlenet"))
    with pytest.raises(CaffeError, match="-inf"):
        to_layers(random_net(**SMALL, fusion="max", padding="tight"))


@pytest.mark.parametrize("backbone", ["vgg16", "caffenet", "alexnet"])
@pytest.mark.parametrize("padding", ["reference", "tight"])
def test_the_border_of_a_skip_is_wide_enough_for_every_image(
    backbone: str, padding: str, monkeypatch: pytest.MonkeyPatch
):
    """The cells that `aligned` has to fill in behind a map, for every width until all strides have come round."""
    lacking: dict[int, int] = {}

    def spy(source: Tensor, offset: int, like: Tensor, **options) -> Tensor:
        lacking[offset] = max(lacking.get(offset, -999), offset + like.shape[-1] - source.shape[-1])
        return aligned(source, offset, like, **options)

    monkeypatch.setattr("fcn.model.aligned", spy)
    with torch.device("meta"):
        model = FCN(3, 8, backbone, padding, width=1 / 64).eval()
        for width in range(1, 72):
            model(torch.zeros(1, 3, 1, width))
    for offset in (model.offset_pool4, model.offset_pool3):
        assert max(lacking[offset], -offset) <= max(0, MAX_BORDER - offset)
    assert lacking[model.offset_score] <= 0 < model.offset_score
