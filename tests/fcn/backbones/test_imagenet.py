import pytest
import torch
from torchvision import models

from fcn.backbones.alexnet import AlexNet
from fcn.backbones.googlenet import GoogLeNet
from fcn.backbones.imagenet import (
    CONVERTERS,
    alexnet_from_torchvision,
    googlenet_from_torchvision,
    resnet50_from_torchvision,
    vgg16_from_torchvision,
)
from fcn.backbones.resnet import ResNet50
from fcn.backbones.vgg import VGG16
from fcn.model import BACKBONES
from tests.classifiers import thin_vgg16

# torchvision's presets for ImageNet
MEAN, STD = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))


def random_statistics(net: torch.nn.Module) -> None:
    """Batch norms that do something: fresh ones leave everything as it is."""
    for layer in net.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(layer.running_mean, std=0.1)
            for tensor in (layer.running_var, layer.weight):
                torch.nn.init.uniform_(tensor, 0.5, 1.5)


def crop(size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """An image, and what torchvision's preset makes of it."""
    torch.manual_seed(0)
    image = torch.randint(0, 256, (1, 3, size, size), dtype=torch.uint8)
    return image, (image / 255 - MEAN) / STD


@torch.inference_mode()
def test_torchvisions_vgg16_and_ours_compute_the_same_fc7():
    torch.manual_seed(0)
    theirs = thin_vgg16().eval()
    ours = VGG16(padding="tight", width=1 / 8, pixels="torchvision").eval()
    ours.load_state_dict(vgg16_from_torchvision(theirs.state_dict()))
    image, normalised = crop(224)
    expected = theirs.classifier[:5](theirs.features(normalised).flatten(1))
    ours.conv1_1.padding, ours.fc6.padding = (1, 1), (0, 0)  # the classifier's own
    torch.testing.assert_close(ours(image).fc7.flatten(1), expected, atol=1e-4, rtol=1e-4)


@torch.inference_mode()
def test_torchvisions_alexnet_and_ours_compute_the_same_fc7():
    torch.manual_seed(0)
    theirs = models.alexnet(weights=None).eval()
    ours = AlexNet(padding="tight").eval()
    ours.load_state_dict(alexnet_from_torchvision(theirs.state_dict()))
    image, normalised = crop(224)
    expected = theirs.classifier[:6](theirs.features(normalised).flatten(1))
    ours.conv1.padding, ours.fc6.padding = (2, 2), (0, 0)  # the classifier's own
    torch.testing.assert_close(ours(image).fc7.flatten(1), expected, atol=1e-4, rtol=1e-4)


def features_of(theirs: torch.nn.Module, names: tuple[str, ...], image: torch.Tensor) -> list[torch.Tensor]:
    """What the children of these names give."""
    seen = {}
    for name in names:
        theirs.get_submodule(name).register_forward_hook(
            lambda *args, name=name: seen.update({name: args[2].clone()})
        )
    theirs(image)
    return [seen[name] for name in names]


@torch.inference_mode()
def test_torchvisions_googlenet_and_ours_compute_the_same_features():
    torch.manual_seed(0)
    theirs = models.googlenet(weights=None, init_weights=False, transform_input=True).eval()
    random_statistics(theirs)
    ours = GoogLeNet().eval()
    ours.load_state_dict(googlenet_from_torchvision(theirs.state_dict()))
    image, normalised = crop(96)
    expected = features_of(theirs, ("inception3b", "inception4e", "inception5b"), normalised)
    for ours_feature, theirs_feature in zip(ours(image), expected, strict=True):
        assert theirs_feature.std() > 0.01
        torch.testing.assert_close(ours_feature, theirs_feature, atol=1e-4, rtol=1e-4)


@torch.inference_mode()
def test_torchvisions_resnet50_and_ours_compute_the_same_features():
    torch.manual_seed(0)
    theirs = models.resnet50(weights=None).eval()
    random_statistics(theirs)
    ours = ResNet50().eval()
    ours.load_state_dict(resnet50_from_torchvision(theirs.state_dict()))
    image, normalised = crop(96)
    expected = features_of(theirs, ("layer2", "layer3", "layer4"), normalised)
    for ours_feature, theirs_feature in zip(ours(image), expected, strict=True):
        scale = theirs_feature.std()
        torch.testing.assert_close(ours_feature / scale, theirs_feature / scale, atol=1e-4, rtol=1e-4)


def test_files_from_before_batch_norm_counted_its_batches_load_too():
    ours = ResNet50(width=1 / 32)
    old = {name: t for name, t in ours.state_dict().items() if not name.endswith("num_batches_tracked")}
    ours.load_state_dict(resnet50_from_torchvision(old))


@pytest.mark.parametrize(
    ("name", "missing"),
    [
        ("vgg16", "classifier.0.weight"),
        ("alexnet", "classifier.1.weight"),
        ("googlenet", "conv1.bn.bias"),
        ("resnet50", "bn1.bias"),
        ("mobilenet_v1", "stage1.0.0.weight"),
    ],
)
@pytest.mark.parametrize("content", [{}, {"features.0.weight": torch.zeros(64, 3, 3, 3)}])
def test_weights_of_another_classifier_are_refused_with_what_is_missing(name, missing, content):
    with pytest.raises(ValueError, match=f"{name}; missing: {missing}"):
        CONVERTERS[name][0](content)


def test_every_backbone_but_caffes_has_published_weights():
    assert BACKBONES.keys() - CONVERTERS.keys() == {"caffenet"}
    assert CONVERTERS.keys() <= BACKBONES.keys()
