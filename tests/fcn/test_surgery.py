import pytest
import torch
from torch import nn
from torchvision import models

from fcn.backbones.alexnet import CaffeNetClassifier
from fcn.model import FCN
from fcn.surgery import as_kernel, convolutionalize, transplant
from tests.classifiers import thin_alexnet, thin_vgg16

SMALL = {"width": 1 / 64, "batch_norm": True, "dropout": 0.0}


def trained(stride: int, **options) -> FCN:
    """A net whose every tensor differs from how it began."""
    model = FCN(3, stride, **SMALL, **options).eval()
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point() and not name.startswith("upscore"):
                tensor.normal_().abs_()
    return model


@pytest.mark.parametrize("stride", [16, 8])
def test_the_finer_net_begins_with_what_the_coarser_one_learned(stride):
    coarse, fine = trained(2 * stride), FCN(3, stride, **SMALL)
    transplant(fine, coarse.state_dict())
    shared = set(coarse.state_dict()) & set(fine.state_dict())
    assert {"score_fr.weight", "backbone.fc7.bias", "backbone.bn5_3.running_var"} <= shared
    assert all(torch.equal(coarse.state_dict()[name], fine.state_dict()[name]) for name in shared)


@pytest.mark.parametrize("stride", [16, 8])
def test_the_new_skip_contributes_exactly_nothing_at_first(stride):
    coarse, fine = trained(2 * stride), FCN(3, stride, **SMALL).eval()
    transplant(fine, coarse.state_dict())
    image = torch.randint(0, 256, (1, 3, 70, 90), dtype=torch.uint8)
    before = fine(image)
    skip = fine.score_pool4 if stride == 16 else fine.score_pool3
    seen = []
    skip.register_forward_hook(lambda *args: seen.append(args[2]))
    assert torch.equal(fine(image), before)
    assert not seen[0].any()


def test_the_chain_runs_from_32_to_8():
    fcn32s, fcn16s, fcn8s = (trained(stride) for stride in (32, 16, 8))
    transplant(fcn16s, fcn32s.state_dict())
    transplant(fcn8s, fcn16s.state_dict())
    assert torch.equal(fcn8s.score_fr.weight, fcn32s.score_fr.weight)


def test_a_step_of_the_chain_cannot_be_left_out():
    with pytest.raises(ValueError, match=r"no FCN-16s to start FCN-8s from.*score_pool4"):
        transplant(FCN(3, 8, **SMALL), FCN(3, 32, **SMALL).state_dict())


def test_a_finer_net_is_no_start_for_a_coarser_one():
    with pytest.raises(ValueError, match="lacks"):
        transplant(FCN(3, 16, **SMALL), FCN(3, 8, **SMALL).state_dict())


def test_fcn32s_starts_from_no_other_fcn():
    with pytest.raises(ValueError, match="starts from a backbone"):
        transplant(FCN(3, 32, **SMALL), FCN(3, 32, **SMALL).state_dict())


def test_a_layer_that_is_missing_or_too_much_is_named():
    state = FCN(3, 32, **SMALL).state_dict()
    state["backbone.conv9_9.weight"] = state.pop("backbone.conv1_1.weight")
    with pytest.raises(
        ValueError, match=r"lacks backbone.conv1_1.weight, and has backbone.conv9_9.weight too many"
    ):
        transplant(FCN(3, 16, **SMALL), state)


def test_another_number_of_classes_is_refused_with_both_shapes_and_nothing_is_copied():
    fine = FCN(3, 16, **SMALL)
    before = {name: tensor.clone() for name, tensor in fine.state_dict().items()}
    with pytest.raises(
        ValueError, match=r"score_fr.weight is \(5, 64, 1, 1\) in the source, \(3, 64, 1, 1\) here"
    ):
        transplant(fine, FCN(5, 32, **SMALL).state_dict())
    assert all(torch.equal(tensor, before[name]) for name, tensor in fine.state_dict().items())


@pytest.mark.parametrize(("channels", "kernel"), [(3, 7), (5, 6), (4, 1)])
def test_a_cast_layer_computes_the_same_as_the_fully_connected_one_at_every_position(channels, kernel):
    linear = nn.Linear(channels * kernel * kernel, 8)
    features = torch.randn(1, channels, kernel + 2, kernel + 1)
    dense = nn.functional.conv2d(features, as_kernel(linear.weight, kernel), linear.bias)
    for y in range(dense.shape[2]):
        for x in range(dense.shape[3]):
            crop = features[:, :, y : y + kernel, x : x + kernel]
            torch.testing.assert_close(dense[0, :, y, x], linear(crop.flatten(1))[0], atol=1e-5, rtol=1e-4)


def test_a_layer_that_is_no_whole_number_of_windows_cannot_be_cast():
    with pytest.raises(ValueError, match="no whole number of 7 x 7 windows"):
        as_kernel(torch.zeros(2, 100), 7)


def thin_caffenet() -> CaffeNetClassifier:
    return CaffeNetClassifier(10, width=1 / 8)


CLASSIFIERS = [(thin_vgg16, 224), (thin_alexnet, 224), (thin_caffenet, 227)]


@pytest.mark.parametrize(("make", "crop"), CLASSIFIERS)
def test_on_its_crop_the_cast_classifier_says_what_the_classifier_says(make, crop):
    torch.manual_seed(0)
    classifier = make().eval()
    image = torch.randn(2, 3, crop, crop)
    with torch.inference_mode():
        dense = convolutionalize(classifier)(image)
        expected = classifier(image)
    assert dense.shape == (2, 10, 1, 1)
    assert expected.std() > 0.01
    torch.testing.assert_close(dense.flatten(1), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("make", "height", "width", "grid"),
    [
        (thin_caffenet, 500, 500, (10, 10)),  # the paper's efficiency claim, section 3.1
        (thin_alexnet, 224 + 64, 224 + 96, (3, 4)),
        (thin_vgg16, 224 + 64, 224 + 96, (3, 4)),
    ],
)
def test_a_larger_image_gives_a_grid_of_scores(make, height, width, grid):
    with torch.inference_mode():
        dense = convolutionalize(make().eval())(torch.randn(1, 3, height, width))
    assert dense.shape == (1, 10, *grid)


class Unpadded(nn.Module):
    """A small classifier of 19x19 crops: without padding, a crop is all that a cell can see."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 4, 4), nn.ReLU(), nn.MaxPool2d(4))
        self.classifier = nn.Sequential(nn.Linear(4 * 4 * 4, 9), nn.ReLU(), nn.Linear(9, 5, bias=False))

    def forward(self, image):
        return self.classifier(self.features(image).flatten(1))


def test_each_cell_of_the_grid_says_what_the_classifier_says_of_the_crop_below_it():
    classifier, image = Unpadded().eval(), torch.randn(1, 3, 19 + 8, 19 + 4)
    dense = convolutionalize(classifier)(image)
    assert dense.shape == (1, 5, 3, 2)
    for y in range(3):
        for x in range(2):
            crop = image[:, :, 4 * y : 4 * y + 19, 4 * x : 4 * x + 19]
            torch.testing.assert_close(dense[:, :, y, x], classifier(crop), atol=1e-5, rtol=1e-4)


def test_the_cast_classifier_keeps_names_weights_and_mode():
    classifier = thin_caffenet().train()
    dense = convolutionalize(classifier)
    assert list(dense.state_dict()) == list(classifier.state_dict())
    assert all(
        a.data_ptr() == b.data_ptr()
        for a, b in zip(dense.state_dict().values(), classifier.state_dict().values(), strict=True)
    )
    assert dense.training
    assert all(parameter.requires_grad for parameter in dense.parameters())


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("resnet18", "ResNet cannot be cast: it is not made of features, then classifier"),
        ("densenet121", "DenseNet cannot be cast: it is not made of features, then classifier"),
        ("mobilenet_v2", "MobileNetV2 cannot be cast: it averages its features"),
    ],
)
def test_a_classifier_without_fully_connected_layers_over_a_window_is_refused(name, words):
    with torch.device("meta"):
        classifier = getattr(models, name)()
    with pytest.raises(ValueError, match=words):
        convolutionalize(classifier)


@pytest.mark.parametrize("backbone", ["mobilenet_v1", "resnet50", "googlenet", "caffenet"])
def test_the_chain_runs_on_every_backbone(backbone):
    nets = {
        stride: FCN(3, stride, backbone, width=1 / 32, learn_upscore="intermediate") for stride in (32, 16, 8)
    }
    transplant(nets[16], nets[32].state_dict())
    transplant(nets[8], nets[16].state_dict())
    first, last = (nets[stride].backbone.state_dict() for stride in (32, 8))
    assert all(torch.equal(first[name], last[name]) for name in first)
