import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.interpolate import RegularGridInterpolator

from fcn.model import FCN, aligned, bilinear_kernel, upsampling
from fcn.vgg import VGG16

SMALL = {"width": 1 / 64}
VARIANTS = [
    (padding, stride, fc6) for padding in ("reference", "tight") for stride in (32, 16, 8) for fc6 in (7, 3)
]


def randomised(model: FCN) -> FCN:
    """The same net with random score layers, which begin at zero."""
    for name, parameter in model.named_parameters():
        if name.startswith("score"):
            torch.nn.init.normal_(parameter)
    return model.eval()


@pytest.fixture(scope="module")
def nets() -> dict[tuple[str, int, int], FCN]:
    return {
        (padding, stride, fc6): FCN(3, stride, padding=padding, fc6_kernel=fc6, **SMALL).eval()
        for padding, stride, fc6 in VARIANTS
    }


@settings(max_examples=40, deadline=None)
@given(variant=st.sampled_from(VARIANTS), height=st.integers(1, 300), width=st.integers(1, 300))
def test_the_score_has_the_size_of_the_image(nets, variant, height, width):
    with torch.inference_mode():
        score = nets[variant](torch.zeros(1, 3, height, width))
    assert score.shape == (1, 3, height, width)
    assert score.dtype == torch.float32


def test_fcn32s_has_the_papers_number_of_trainable_parameters():
    with torch.device("meta"):
        model = FCN(21, 32)
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == 134_346_581


@pytest.mark.parametrize(
    ("stride", "layers"),
    [
        (32, {"score_fr": (21, 4096, 1, 1), "upscore": (21, 1, 64, 64)}),
        (16, {"score_pool4": (21, 512, 1, 1), "upscore2": (21, 1, 4, 4), "upscore16": (21, 1, 32, 32)}),
        (8, {"score_pool3": (21, 256, 1, 1), "upscore_pool4": (21, 1, 4, 4), "upscore8": (21, 1, 16, 16)}),
    ],
)
def test_layers_have_the_references_names_and_shapes(stride, layers):
    with torch.device("meta"):
        state = FCN(21, stride).state_dict()
    assert {name: tuple(state[f"{name}.weight"].shape) for name in layers} == layers
    assert tuple(state["backbone.conv1_1.weight"].shape) == (64, 3, 3, 3)
    assert tuple(state["backbone.fc6.weight"].shape) == (4096, 512, 7, 7)


def test_the_first_score_is_zero_for_every_class():
    """So the first loss is ln C: score layers begin at zero (reference release)."""
    score = FCN(21, 8, **SMALL)(torch.randint(0, 256, (1, 3, 40, 50), dtype=torch.uint8))
    assert not score.any()


def test_uint8_and_float_images_give_the_same_score():
    image = torch.randint(0, 256, (2, 3, 33, 47), dtype=torch.uint8)
    model = randomised(FCN(3, 8, **SMALL))
    assert torch.equal(model(image), model(image.float()))


@pytest.mark.parametrize("pixels", ["caffe", "torchvision"])
def test_pixels_are_normalised_as_the_weights_expect(pixels):
    image = torch.randint(0, 256, (1, 3, 5, 6), dtype=torch.uint8)
    rgb = image[0].numpy().transpose(1, 2, 0).astype(np.float64)
    if pixels == "caffe":  # voc_layers.py: in_[:, :, ::-1]; in_ -= mean
        expected = rgb[:, :, ::-1] - np.array((104.00699, 116.66877, 122.67892))
    else:  # torchvision's ImageNet presets
        expected = (rgb / 255 - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225)
    found = VGG16(width=1 / 64, pixels=pixels).pixels(image)[0].numpy().transpose(1, 2, 0)
    np.testing.assert_allclose(found, expected, atol=2e-5, rtol=1e-6)


@pytest.mark.parametrize(("kernel", "stride"), [(4, 2), (16, 8), (32, 16), (64, 32)])
def test_fixed_upsampling_is_bilinear_interpolation(kernel, stride):
    """Recomputed with scipy: cell i is centred on i * stride + (kernel - 1) / 2, and beyond the map is zero."""
    score = torch.randn(1, 2, 3, 4)
    up = upsampling(2, kernel, stride, is_learned=False)(score)[0].detach().numpy()
    padded = np.pad(score[0].numpy(), ((0, 0), (1, 1), (1, 1)))
    rows, columns = (np.arange(-1, n + 1) * stride + (kernel - 1) / 2 for n in (3, 4))
    points = np.stack(np.meshgrid(*(np.arange(n) for n in up.shape[1:]), indexing="ij"), axis=-1)
    for c in range(2):
        expected = RegularGridInterpolator((rows, columns), padded[c])(points)
        np.testing.assert_allclose(up[c], expected, atol=1e-5)


@pytest.mark.parametrize("size", [4, 16, 63, 64])
def test_the_bilinear_kernel_follows_the_references_formula(size):
    factor = (size + 1) // 2
    centre = factor - 1 if size % 2 == 1 else factor - 0.5
    og = np.ogrid[:size, :size]
    expected = (1 - abs(og[0] - centre) / factor) * (1 - abs(og[1] - centre) / factor)
    np.testing.assert_allclose(bilinear_kernel(size).numpy(), expected, atol=1e-6)


def test_learned_and_fixed_upsampling_begin_the_same_and_only_one_learns():
    score = torch.randn(1, 5, 4, 4)
    fixed, learned = (upsampling(5, 4, 2, is_learned=flag) for flag in (False, True))
    torch.testing.assert_close(fixed(score), learned(score))
    assert (fixed.weight.requires_grad, learned.weight.requires_grad) == (False, True)
    assert learned.weight.shape == (5, 5, 4, 4)


@pytest.mark.parametrize("stride", [16, 8])
def test_a_single_hot_cell_of_a_skip_lights_the_image_where_it_lies(stride):
    """The crop is right if a skip's cell, scored alone, comes out centred on the pixels below the cell."""
    model = FCN(2, stride, **SMALL).eval()
    name = "pool4" if stride == 16 else "pool3"
    geometry = getattr(model.backbone.geometry, name)
    layer = getattr(model, f"score_{name}")
    features = model.backbone(torch.zeros(1, 3, 160, 200))
    features = features._replace(fc7=torch.zeros_like(features.fc7), pool4=torch.zeros_like(features.pool4))
    hot = torch.zeros_like(getattr(features, name))
    row, column = (int((100 - geometry.shift) / geometry.scale) for _ in range(2))
    hot[0, 0, row, column] = 1
    torch.nn.init.ones_(layer.weight)
    model.backbone.forward = lambda _: features._replace(**{name: hot})
    lit = model(torch.zeros(1, 3, 160, 200))[0, 0]
    weights = lit / lit.sum()
    centre = (weights.sum(1) @ torch.arange(160.0), weights.sum(0) @ torch.arange(200.0))
    expected = [float(geometry.scale * cell + geometry.shift) for cell in (row, column)]
    torch.testing.assert_close(torch.stack(centre), torch.tensor(expected), atol=1e-3, rtol=0)


def test_tight_padding_changes_scores_near_the_border_only():
    """A constant trunk has no borders: both paddings score the middle of a large image alike."""
    torch.manual_seed(0)
    wide = randomised(FCN(3, 8, **SMALL))
    tight = FCN(3, 8, padding="tight", **SMALL).eval()
    tight.load_state_dict(wide.state_dict())
    image = torch.randint(0, 256, (1, 3, 700, 700), dtype=torch.uint8)
    with torch.inference_mode():
        a, b = wide(image), tight(image)
    # fc7 sees 404 pixels (PAMI), and bilinear upsampling reaches 32 further: 350 - 202 - 64 is a safe middle
    middle = slice(300, 400)
    torch.testing.assert_close(a[..., middle, middle], b[..., middle, middle], atol=1e-3, rtol=1e-4)
    assert not torch.allclose(a[..., :50, :50], b[..., :50, :50], atol=1e-3)


def test_at_once_scales_its_skips_by_the_references_factors():
    staged = randomised(FCN(2, 8, **SMALL))
    at_once = FCN(2, 8, at_once=True, **SMALL).eval()
    state = staged.state_dict()
    for name, factor in (("score_pool4", 0.01), ("score_pool3", 0.0001)):
        state[f"{name}.weight"] = state[f"{name}.weight"] / factor
    at_once.load_state_dict(state)
    image = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    torch.testing.assert_close(at_once(image), staged(image), atol=1e-4, rtol=1e-4)


def test_aligning_crops_what_sticks_out_and_pads_what_is_missing():
    source, like = torch.arange(9.0).view(1, 1, 3, 3), torch.zeros(1, 1, 2, 2)
    assert aligned(source, 1, like).tolist() == [[[[4, 5], [7, 8]]]]
    assert aligned(source, -1, like).tolist() == [[[[0, 0], [0, 0]]]]
    assert aligned(source, -1, torch.zeros(1, 1, 5, 5)).equal(F.pad(source, (1, 1, 1, 1)))


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (torch.zeros(3, 8, 8), r"\(N, 3, H, W\)"),
        (torch.zeros(1, 4, 8, 8), r"\(1, 4, 8, 8\)"),
        (torch.zeros(0, 3, 8, 8), r"N, H, W >= 1"),
        (torch.zeros(1, 3, 0, 8), r"N, H, W >= 1"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.int64), "int64"),
    ],
)
def test_an_image_of_another_shape_or_type_is_refused(image, words):
    with pytest.raises(ValueError, match=words):
        FCN(2, 32, **SMALL)(image)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"stride": 4}, "stride must be 32, 16 or 8, got 4"),
        ({"backbone": "vgg61"}, "unknown backbone 'vgg61'; known: vgg16"),
        ({"num_classes": 0}, "num_classes"),
        ({"padding": "same"}, "unknown padding 'same'"),
        ({"fc6_kernel": 4}, "odd"),
        ({"pixels": "bgr"}, "unknown pixel convention 'bgr'"),
    ],
)
def test_an_unknown_variant_is_refused_with_what_is_known(arguments, words):
    with pytest.raises(ValueError, match=words):
        FCN(**{"width": 1 / 64} | arguments)
