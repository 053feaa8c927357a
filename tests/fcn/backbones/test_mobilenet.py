import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from fcn.backbones.imagenet import mobilenet_v1_from_published
from fcn.backbones.mobilenet import MobileNetV1

WEIGHTS = "weights/mobilenet_v1_0.25/mobilenetV1X0.25_pretrain.tar"
CAT, CAT_BREEDS = 8, range(281, 286)  # in VOC; in ImageNet: tabby, tiger, Persian, Siamese, Egyptian


@pytest.fixture(scope="module")
def content(real_data) -> dict:
    return torch.load(real_data / WEIGHTS, weights_only=True, map_location="cpu")


def test_with_1000_classes_it_has_the_papers_number_of_parameters():
    """4.2 million (Howard et al., table 8); exactly 4,231,976 as Keras counts the ones that learn."""
    with torch.device("meta"):
        net = MobileNetV1()
    assert sum(p.numel() for p in net.parameters()) + 1024 * 1000 + 1000 == 4_231_976


def test_a_quarter_of_the_width_has_a_fifth_of_a_million():
    assert 0.2e6 < sum(p.numel() for p in MobileNetV1(width=0.25).parameters()) < 0.25e6


def test_the_published_weights_fit_without_a_layer_more_or_less(content):
    net = MobileNetV1(width=0.25)
    state = mobilenet_v1_from_published(content)
    net.load_state_dict(state)
    assert len(content["state_dict"]) - len(state) == 2  # the 1000 classes: weight and bias


@torch.inference_mode()
def test_the_trunk_computes_what_its_weights_say_layer_by_layer(content):
    """Another route: the layers in the file's order, strides from its README; no module of ours."""
    state = {name.removeprefix("module."): t for name, t in content["state_dict"].items()}
    strides = {"stage1.0.0": 2, "stage1.2.0": 2, "stage1.4.0": 2, "stage2.0.0": 2, "stage3.0.0": 2}
    image = torch.randint(0, 256, (1, 3, 96, 130), dtype=torch.uint8)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    x, expected = (image / 255 - mean) / std, {}
    convs = [name.removesuffix(".weight") for name, t in state.items() if t.ndim == 4]
    for name in convs:
        weight = state[f"{name}.weight"]
        groups = x.shape[1] // weight.shape[1]
        x = F.conv2d(x, weight, None, strides.get(name, 1), padding=weight.shape[2] // 2, groups=groups)
        block, _, index = name.rpartition(".")
        norm = [
            state[f"{block}.{int(index) + 1}.{kind}"]
            for kind in ("running_mean", "running_var", "weight", "bias")
        ]
        x = F.leaky_relu(F.batch_norm(x, *norm), 0.1)
        expected[block.partition(".")[0]] = x
    net = MobileNetV1(width=0.25).eval()
    net.load_state_dict(mobilenet_v1_from_published(content))
    torch.testing.assert_close(tuple(net(image)), tuple(expected.values()), atol=1e-4, rtol=1e-4)


@torch.inference_mode()
def test_with_the_published_weights_it_tells_cats_from_the_999_others(real_data, content):
    """Pixels, layout and weights together: chance would be 5 in 1000; 46.6% is the stated top-1."""
    net = MobileNetV1(width=0.25).eval()
    net.load_state_dict(mobilenet_v1_from_published(content))
    weight, bias = (content["state_dict"][f"module.fc.{kind}"] for kind in ("weight", "bias"))
    names = (real_data / "here" / "voc12_val.txt").read_text(encoding="utf-8").split()
    is_cat = []
    for name in names:
        label = np.asarray(Image.open(real_data / "voc" / "SegmentationClass" / f"{name}.png"))
        if (label == CAT).mean() > 0.3:
            photo = Image.open(real_data / "voc" / "JPEGImages" / f"{name}.jpg").convert("RGB")
            image = torch.from_numpy(np.array(photo)).permute(2, 0, 1)[None]
            top = int(F.linear(net(image).fc7.mean((2, 3)), weight, bias).argmax())
            is_cat.append(top in CAT_BREEDS)
    assert len(is_cat) >= 5
    assert np.mean(is_cat) > 0.4
