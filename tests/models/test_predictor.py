"""Predictor: label maps are the net's own argmax, for every backend, size and tiling."""

import numpy as np
import pytest
import torch

from fcn.averaging import Averaging
from fcn.model import FCN
from pipeline.errors import CheckpointError
from pipeline.models.predictor import Predictor
from pipeline.models.pyfunc import _load_pyfunc
from pipeline.models.tiles import SIDE
from tests.photo_net import CLASSES, OPTIONS, label_of, noise, save_model, scores_of

CPU = torch.device("cpu")


@pytest.fixture(params=["model", "onnx"])
def predictor(request) -> Predictor:
    """Of the .pt and of the .onnx file."""
    return Predictor.load(request.getfixturevalue(request.param))


@pytest.mark.parametrize("size", [(1, 1), (1, 200), (33, 1), (7, 5), (97, 64)])
def test_the_label_map_of_a_photo_of_any_size_is_the_nets_argmax(predictor, net, size):
    label = predictor.label_map(noise(*size))
    assert label.dtype == np.uint8
    np.testing.assert_array_equal(label, label_of(net, noise(*size)))


def test_a_photo_in_tiles_gets_the_label_map_and_scores_of_the_whole_photo(predictor, net):
    photo = noise(500, 830)
    label, score = np.full((500, 830), 99), np.full((3, 500, 830), np.nan)
    parts = list(predictor.parts(photo, 480, with_score=True))
    assert len(parts) > 1
    for part in parts:
        assert max(part.label.shape) <= 480
        label[part.region], score[:, *part.region] = part.label, part.score
    np.testing.assert_allclose(score, scores_of(net, photo), rtol=1e-4, atol=1e-3)
    assert (
        label == label_of(net, photo)
    ).mean() > 0.9999  # where two scores are nearly equal, the last bit decides
    np.testing.assert_array_equal(predictor.label_map(photo, 480), label)


def test_a_batch_in_memory_gets_the_argmax_and_the_softmax_of_its_scores(net):
    image = torch.from_numpy(np.stack([noise(40, 60, 0), noise(40, 60, 1)])).permute(0, 3, 1, 2)
    score = net(image).detach()
    predictor = Predictor(net, CLASSES, CPU)
    assert torch.equal(predictor.predict(image), score.argmax(1))
    torch.testing.assert_close(predictor.probability(image), score.softmax(1))


def test_averaging_takes_the_argmax_of_the_mean_probability(net):
    image = torch.from_numpy(noise(40, 60)).permute(2, 0, 1)[None]
    with torch.inference_mode():
        mean = (net(image).softmax(1) + net(image.flip(3)).softmax(1).flip(3)) / 2
    predictor = Predictor(net, CLASSES, CPU, Averaging(flip=True))
    torch.testing.assert_close(predictor.probability(image), mean)
    assert torch.equal(predictor.predict(image), mean.argmax(1))
    assert not torch.equal(predictor.predict(image), net(image).argmax(1))  # or the test would show little


def test_a_net_that_sees_far_gets_larger_tiles():
    """EfficientNet-Lite0's overlap is 512 pixels: 1024 of 1536 would be computed for their neighbours."""
    net = FCN(num_classes=3, stride=8, backbone="efficientnet_lite0").eval()
    net.forward = lambda image: torch.zeros(
        len(image), 3, *image.shape[-2:]
    )  # how large the parts are says enough
    predictor = Predictor(net, CLASSES, CPU)
    (part,) = predictor.parts(noise(1600, 1500))
    assert part.label.shape == (1600, 1500)
    assert len(list(predictor.parts(noise(1600, 1500), SIDE))) > 1


@pytest.mark.parametrize("averaging", [None, Averaging(flip=True)])
def test_a_large_image_in_memory_is_run_in_tiles_as_well(net, averaging):
    image = torch.from_numpy(noise(1600, 1500)).permute(2, 0, 1)[None]
    sides = []
    hook = net.register_forward_pre_hook(lambda _, inputs: sides.append(max(inputs[0].shape[-2:])))
    predictor = Predictor(net, CLASSES, CPU, averaging)
    label = predictor.predict(image)
    confidence, same_label = predictor.confidence(image)
    hook.remove()
    assert max(sides) <= SIDE
    assert torch.equal(label, same_label)
    with torch.inference_mode():
        expected = net(image).softmax(1)
        if averaging:
            expected = (expected + net(image.flip(3)).softmax(1).flip(3)) / 2
    assert (label == expected.argmax(1)).float().mean() > 0.9999  # nearly equal scores: the last bit decides
    torch.testing.assert_close(confidence, expected.amax(1), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(predictor.probability(image), expected, rtol=1e-4, atol=1e-4)


def test_mlflow_gets_the_same_label_map(model, net):
    np.testing.assert_array_equal(
        _load_pyfunc(str(model)).predict(noise(97, 64)), label_of(net, noise(97, 64))
    )


def test_scores_that_are_nan_are_refused_naming_the_model(nan_model):
    with pytest.raises(CheckpointError, match=r"nan\.pt: .* NaN"):
        Predictor.load(nan_model).label_map(noise(40, 60))


def test_a_model_of_more_classes_than_a_label_map_holds_is_refused(tmp_path):
    options = OPTIONS | {"num_classes": 256, "width": 0.03}
    path = save_model(tmp_path / "many.pt", FCN(**options), options, ["x"] * 256)
    with pytest.raises(CheckpointError, match=r"many\.pt has 256 classes; .* 255"):
        Predictor.load(path)
