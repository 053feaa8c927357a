import pytest
import torch
from torch import nn
from torchvision.models import vgg16

from fcn.imagenet import vgg16_from_torchvision
from fcn.model import FCN
from fcn.surgery import convolutionalize, transplant
from fcn.vgg import VGG16

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
    dense = nn.functional.conv2d(features, convolutionalize(linear.weight, kernel), linear.bias)
    for y in range(dense.shape[2]):
        for x in range(dense.shape[3]):
            crop = features[:, :, y : y + kernel, x : x + kernel]
            torch.testing.assert_close(dense[0, :, y, x], linear(crop.flatten(1))[0], atol=1e-5, rtol=1e-4)


def test_a_layer_that_is_no_whole_number_of_windows_cannot_be_cast():
    with pytest.raises(ValueError, match="no whole number of 7 x 7 windows"):
        convolutionalize(torch.zeros(2, 100), 7)


def test_torchvisions_vgg16_and_ours_compute_the_same_fc7():
    torch.manual_seed(0)
    theirs = vgg16(weights=None).eval()
    ours = VGG16(padding="tight", pixels="torchvision").eval()
    ours.load_state_dict(vgg16_from_torchvision(theirs.state_dict()))
    image = torch.randint(0, 256, (1, 3, 224, 224), dtype=torch.uint8)
    normalised = (image / 255 - torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)) / torch.tensor(
        [0.229, 0.224, 0.225]
    ).view(3, 1, 1)
    with torch.inference_mode():
        expected = theirs.classifier[:5](theirs.features(normalised).flatten(1))
        ours.conv1_1.padding, ours.fc6.padding = (1, 1), (0, 0)  # the classifier's own
        found = ours(image).fc7
    torch.testing.assert_close(found.flatten(1), expected, atol=1e-4, rtol=1e-4)


def test_weights_of_another_classifier_are_refused():
    with pytest.raises(ValueError, match="no weights of torchvision's vgg16; lacking classifier"):
        vgg16_from_torchvision({"features.0.weight": torch.zeros(64, 3, 3, 3)})
