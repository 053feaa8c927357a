import pytest
import torch
from torch import nn
from torchvision import models

from fcn.backbones.alexnet import CaffeNetClassifier
from fcn.model import FCN
from fcn.surgery import as_kernel, convolutionalize, take_classes, transplant
from tests.classifiers import thin_alexnet, thin_vgg16

SMALL = {"width": 1 / 64, "batch_norm": True, "dropout": 0.0}


def trained(stride: int) -> FCN:
    """A net whose every tensor differs from how it began."""
    model = FCN(3, stride, **SMALL).eval()
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point() and not name.startswith("upscore"):
                tensor.normal_().abs_()
    return model


@pytest.mark.parametrize("stride", [16, 8])
def test_the_finer_net_begins_as_the_coarser_one_with_a_skip_that_adds_nothing(stride):
    coarse, fine = trained(2 * stride), FCN(3, stride, **SMALL).eval()
    transplant(fine, coarse.state_dict())
    shared = set(coarse.state_dict()) & set(fine.state_dict())
    assert {"score_fr.weight", "backbone.fc7.bias", "backbone.bn5_3.running_var"} <= shared
    assert all(torch.equal(coarse.state_dict()[name], fine.state_dict()[name]) for name in shared)
    scores = []
    skip = fine.score_pool4 if stride == 16 else fine.score_pool3
    skip.register_forward_hook(lambda *args: scores.append(args[2]))
    fine(torch.randint(0, 256, (1, 3, 70, 90), dtype=torch.uint8))
    assert not scores[0].any()


@pytest.mark.parametrize("backbone", ["vgg16", "mobilenet_v1", "resnet50", "googlenet", "caffenet"])
def test_the_chain_runs_from_32_to_8_on_every_backbone(backbone):
    nets = {
        stride: FCN(3, stride, backbone, width=1 / 32, learn_upscore="intermediate") for stride in (32, 16, 8)
    }
    nn.init.normal_(nets[32].score_fr.weight)
    transplant(nets[16], nets[32].state_dict())
    transplant(nets[8], nets[16].state_dict())
    first, last = (nets[stride].state_dict() for stride in (32, 8))
    shared = first.keys() & last.keys()
    assert "score_fr.weight" in shared
    assert all(torch.equal(first[name], last[name]) for name in shared)


def renamed(state: dict) -> dict:
    return {"backbone.conv9_9.weight": state.pop("backbone.conv1_1.weight"), **state}


@pytest.mark.parametrize(
    ("finer", "state", "words"),
    [
        (8, lambda: FCN(3, 32, **SMALL).state_dict(), r"FCN-16s.*FCN-8s.*missing: score_pool4"),
        (16, lambda: FCN(3, 8, **SMALL).state_dict(), "unexpected: .*score_pool3"),
        (32, lambda: FCN(3, 32, **SMALL).state_dict(), "stride-32"),
        (
            16,
            lambda: renamed(FCN(3, 32, **SMALL).state_dict()),
            "missing: backbone.conv1_1.weight; unexpected: backbone.conv9_9.weight",
        ),
        (16, lambda: FCN(5, 32, **SMALL).state_dict(), r"score_fr.weight .*\(5, 64, 1, 1\).*\(3, 64, 1, 1\)"),
    ],
)
def test_weights_that_do_not_fit_are_refused_by_name_and_nothing_is_copied(finer, state, words):
    fine = FCN(3, finer, **SMALL)
    before = {name: tensor.clone() for name, tensor in fine.state_dict().items()}
    with pytest.raises(ValueError, match=words):
        transplant(fine, state())
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


def test_a_layer_without_a_whole_number_of_windows_cannot_be_cast():
    with pytest.raises(ValueError, match=r"100 inputs .* 7 x 7"):
        as_kernel(torch.zeros(2, 100), 7)


def thin_caffenet() -> CaffeNetClassifier:
    return CaffeNetClassifier(10, width=1 / 8)


@torch.inference_mode()
@pytest.mark.parametrize(("make", "crop"), [(thin_vgg16, 224), (thin_alexnet, 224), (thin_caffenet, 227)])
def test_on_its_crop_the_cast_classifier_gives_the_classifiers_scores(make, crop):
    torch.manual_seed(0)
    classifier = make().eval()
    image = torch.randn(2, 3, crop, crop)
    dense, expected = convolutionalize(classifier)(image), classifier(image)
    assert dense.shape == (2, 10, 1, 1)
    assert expected.std() > 0.01
    torch.testing.assert_close(dense.flatten(1), expected, atol=1e-5, rtol=1e-4)


@torch.inference_mode()
@pytest.mark.parametrize(
    ("make", "height", "width", "grid"),
    [
        (thin_caffenet, 500, 500, (10, 10)),  # the paper's efficiency claim, section 3.1
        (thin_alexnet, 224 + 64, 224 + 96, (3, 4)),
        (thin_vgg16, 224 + 64, 224 + 96, (3, 4)),
    ],
)
def test_a_larger_image_gives_a_grid_of_scores(make, height, width, grid):
    assert convolutionalize(make().eval())(torch.randn(1, 3, height, width)).shape == (1, 10, *grid)


class Unpadded(nn.Module):
    """A small classifier of 19x19 crops: without padding, a crop is all that a cell can see."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 4, 4), nn.ReLU(), nn.MaxPool2d(4))
        self.classifier = nn.Sequential(nn.Linear(4 * 4 * 4, 9), nn.ReLU(), nn.Linear(9, 5, bias=False))

    def forward(self, image):
        return self.classifier(self.features(image).flatten(1))


def test_each_cell_of_the_grid_has_the_classifiers_scores_of_the_crop_below_it():
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
    for ours, theirs in zip(dense.state_dict().values(), classifier.state_dict().values(), strict=True):
        assert ours.data_ptr() == theirs.data_ptr()
    assert dense.training
    assert all(parameter.requires_grad for parameter in dense.parameters())


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("resnet18", "ResNet .*features, then classifier"),
        ("densenet121", "DenseNet .*features, then classifier"),
        ("mobilenet_v2", "MobileNetV2 .*averages its features"),
    ],
)
def test_a_classifier_without_fully_connected_layers_over_a_window_is_refused(name, words):
    with torch.device("meta"):
        classifier = getattr(models, name)()
    with pytest.raises(ValueError, match=words):
        convolutionalize(classifier)


CLASSES = ("sky", "cat", "dog", "grass", "car")


def layers(net: FCN) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in net.state_dict().items() if not name.startswith("backbone")}


def learned(num_classes: int, stride: int, learn_upscore: bool | str) -> FCN:
    """A net whose layers, those that learn, are all random."""
    net = FCN(num_classes, stride, learn_upscore=learn_upscore, **SMALL).eval()
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.1)
    return net


@torch.inference_mode()
@pytest.mark.parametrize("learn_upscore", [False, "intermediate", True])
def test_a_net_of_the_same_classes_in_another_order_gives_their_scores_in_that_order(learn_upscore):
    image, order = torch.randint(0, 256, (1, 3, 70, 90), dtype=torch.uint8), [3, 0, 4, 2, 1]
    before, after = learned(5, 8, learn_upscore), FCN(5, 8, learn_upscore=learn_upscore, **SMALL).eval()
    after.backbone.load_state_dict(before.backbone.state_dict())
    take_classes(after, [CLASSES[c] for c in order], layers(before), CLASSES)
    assert before(image).std() > 0
    torch.testing.assert_close(after(image), before(image)[:, order])


@torch.inference_mode()
def test_known_classes_keep_their_scores_and_new_ones_score_zero():
    image = torch.randint(0, 256, (1, 3, 70, 90), dtype=torch.uint8)
    before, after = learned(5, 8, False), FCN(3, 8, **SMALL).eval()
    after.backbone.load_state_dict(before.backbone.state_dict())
    take_classes(after, ["dog", "boat", "cat"], layers(before), CLASSES)
    score = after(image)
    torch.testing.assert_close(score[:, [0, 2]], before(image)[:, [2, 1]])
    assert not score[:, 1].any()


@pytest.mark.parametrize("stride", [32, 16])
def test_a_coarser_net_takes_the_layers_that_it_has(stride):
    before, after = learned(5, 8, True), FCN(5, stride, learn_upscore=True, **SMALL)
    start = {name: tensor.clone() for name, tensor in after.state_dict().items()}
    take_classes(after, CLASSES, layers(before), CLASSES)
    state = after.state_dict()
    assert torch.equal(state["score_fr.weight"], before.score_fr.weight)
    last = f"{after.last}.weight"
    assert torch.equal(state[last], start[last])
    if stride == 16:
        assert torch.equal(state["upscore2.weight"], before.upscore2.weight)
        assert torch.equal(state["score_pool4.bias"], before.score_pool4.bias)


def test_without_a_common_class_nothing_is_taken():
    after = FCN(2, 16, learn_upscore=True, **SMALL)
    start = {name: tensor.clone() for name, tensor in after.state_dict().items()}
    take_classes(after, ["boat", "lake"], layers(learned(5, 8, True)), CLASSES)
    assert all(torch.equal(tensor, start[name]) for name, tensor in after.state_dict().items())
