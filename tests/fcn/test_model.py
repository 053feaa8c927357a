import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.interpolate import RegularGridInterpolator

from fcn.backbones.imagenet import CONVERTERS
from fcn.loss import mean_pixel_cross_entropy
from fcn.model import BACKBONES, FCN, aligned, bilinear_kernel, upsampling
from fcn.optim import parameter_groups
from fcn.pixels import PixelNormalization

SMALL = {"width": 1 / 64}
HAS_TIGHT = ("alexnet", "caffenet", "vgg16")
TRUNKS = [(name, "reference") for name in sorted(BACKBONES)] + [(name, "tight") for name in HAS_TIGHT]
# Every height to 40, where the grids are small, and one in 19 up to 600: nearly all remainders of 32
SIZES = [(height, 1 + 37 * height % 100) for height in (*range(1, 41), *range(41, 600, 19), 600)]


def noise(*size: int) -> torch.Tensor:
    return torch.randint(0, 256, (1, 3, *size), dtype=torch.uint8)


def randomised(model: FCN) -> FCN:
    """The same net with random score layers, which begin at zero."""
    for name, parameter in model.named_parameters():
        if name.startswith("score"):
            torch.nn.init.normal_(parameter)
    return model.eval()


def check_size(model: FCN, height: int, width: int) -> None:
    """The score has the image's size, is finite, and the upsampled map reaches every pixel of it."""
    upsampled = []
    handle = model.get_submodule(model.last).register_forward_hook(lambda *args: upsampled.append(args[2]))
    with torch.inference_mode():
        score = model(noise(height, width))
    handle.remove()
    assert score.shape == (1, model.num_classes, height, width)
    assert score.dtype == torch.float32
    assert score.isfinite().all()
    assert model.offset_score >= 0
    assert upsampled[0].shape[2] - model.offset_score >= height
    assert upsampled[0].shape[3] - model.offset_score >= width


@pytest.mark.parametrize(("name", "padding"), TRUNKS)
def test_the_score_has_the_size_of_the_image_for_every_net(name, padding):
    model = FCN(2, 8, name, padding, **SMALL).eval()
    for height, width in SIZES:
        check_size(model, height, width)


@settings(max_examples=60, deadline=None)
@given(
    trunk=st.sampled_from(TRUNKS),
    variant=st.fixed_dictionaries(
        {
            "stride": st.sampled_from([32, 16, 8]),
            "learn_upscore": st.sampled_from([False, "intermediate", True]),
            "at_once": st.booleans(),
            "fusion": st.sampled_from(["sum", "max"]),
            "score_init": st.sampled_from(["zero", "random"]),
            "fixed_trunk": st.booleans(),
        }
    ),
    fc6_kernel=st.sampled_from([3, 7]),
    height=st.integers(1, 600),
    width=st.integers(1, 600),
)
def test_no_variant_changes_the_size_or_gives_nan(trunk, variant, fc6_kernel, height, width):
    options = {"fc6_kernel": fc6_kernel} if trunk[0] == "vgg16" else {}
    check_size(
        FCN(2, backbone=trunk[0], padding=trunk[1], **variant, **options, **SMALL).eval(), height, width
    )


@pytest.mark.parametrize(("name", "padding"), TRUNKS)
def test_a_trunks_channels_and_strides_are_those_of_its_features(name, padding):
    """The number of cells that 64 more pixels leave on each map shows its stride."""
    backbone = FCN(2, 8, name, padding, **SMALL).eval().backbone
    with torch.inference_mode():
        small, large = (backbone(torch.zeros(1, 3, size, size)) for size in (320, 320 + 64))
    for a, b, channels, stride in zip(small, large, backbone.channels, (8, 16, 32), strict=True):
        assert (a.shape[1], b.shape[2] - a.shape[2]) == (channels, 64 / stride)
    assert tuple(coord_map.scale for coord_map in backbone.geometry) == (8, 16, 32)


@pytest.mark.parametrize("name", sorted(BACKBONES))
def test_a_trunk_starts_with_the_pixels_its_published_weights_expect(name):
    convention = FCN(2, 32, name, **SMALL).backbone.pixels.convention
    assert convention == ("caffe" if name in ("vgg16", "caffenet") else CONVERTERS[name][1])


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
    layers |= {"backbone.conv1_1": (64, 3, 3, 3), "backbone.fc6": (4096, 512, 7, 7)}
    assert {name: tuple(state[f"{name}.weight"].shape) for name in layers} == layers


def test_the_first_score_is_zero_for_every_class():
    """So the first loss is ln C: score layers begin at zero (reference release)."""
    assert not FCN(21, 8, **SMALL)(noise(40, 50)).any()


def test_uint8_and_float_images_give_the_same_score():
    model, image = randomised(FCN(3, 8, **SMALL)), noise(33, 47)
    assert torch.equal(model(image), model(image.float()))


@pytest.mark.parametrize(
    ("convention", "expected"),
    [
        # voc_layers.py: in_[:, :, ::-1]; in_ -= mean
        ("caffe", lambda rgb: rgb[:, :, ::-1] - np.array((104.00699, 116.66877, 122.67892))),
        # torchvision's ImageNet presets
        ("torchvision", lambda rgb: (rgb / 255 - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225)),
        # torchvision's GoogLeNet with transform_input: ((x - mean) / std) * std / .5 + ...
        ("inception", lambda rgb: (rgb / 255 - 0.5) / 0.5),
    ],
)
def test_pixels_are_normalised_as_the_weights_expect(convention, expected):
    image = noise(5, 6)
    normalised = PixelNormalization(convention)(image)[0].numpy().transpose(1, 2, 0)
    rgb = image[0].numpy().transpose(1, 2, 0).astype(np.float64)
    np.testing.assert_allclose(normalised, expected(rgb), atol=2e-5, rtol=1e-6)


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
    features = model.backbone(torch.zeros(1, 3, 160, 200))
    features = features._replace(fc7=torch.zeros_like(features.fc7), pool4=torch.zeros_like(features.pool4))
    hot = torch.zeros_like(getattr(features, name))
    cell = int((100 - geometry.shift) / geometry.scale)
    hot[0, 0, cell, cell] = 1
    torch.nn.init.ones_(getattr(model, f"score_{name}").weight)
    model.backbone.forward = lambda _: features._replace(**{name: hot})
    lit = model(torch.zeros(1, 3, 160, 200))[0, 0]
    weights = lit / lit.sum()
    centre = torch.stack((weights.sum(1) @ torch.arange(160.0), weights.sum(0) @ torch.arange(200.0)))
    expected = torch.full((2,), float(geometry.scale * cell + geometry.shift))
    torch.testing.assert_close(centre, expected, atol=1e-3, rtol=0)


def test_tight_padding_changes_scores_near_the_border_only():
    """A constant trunk has no borders: both paddings score the middle of a large image alike."""
    torch.manual_seed(0)
    wide = randomised(FCN(3, 8, **SMALL))
    tight = FCN(3, 8, padding="tight", **SMALL).eval()
    tight.load_state_dict(wide.state_dict())
    image = noise(700, 700)
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
    image = noise(64, 64)
    torch.testing.assert_close(at_once(image), staged(image), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("learn_upscore", [False, "intermediate", True])
def test_upsampling_is_learned_nowhere_everywhere_or_in_all_but_the_last_layer(learn_upscore):
    model = FCN(3, 8, learn_upscore=learn_upscore, **SMALL)
    learned = {name for name, p in model.named_parameters() if name.startswith("upscore") and p.requires_grad}
    intermediate = {"upscore2.weight", "upscore_pool4.weight"}
    expected = {False: set(), "intermediate": intermediate, True: intermediate | {"upscore8.weight"}}
    assert learned == expected[learn_upscore]


@pytest.mark.parametrize("padding", ["reference", "tight"])
@pytest.mark.parametrize("bias", [-7.0, 7.0])
def test_max_fusion_takes_the_greater_score_of_each_cell(padding, bias):
    """A skip that scores everything `bias` wins everywhere or nowhere, also where tight padding gives it no cell."""
    model = randomised(FCN(2, 16, padding=padding, fusion="max", **SMALL))
    for parameter in (model.score_fr.weight, model.score_fr.bias):
        torch.nn.init.uniform_(parameter, -1e-3, 1e-3)
    without_skip = FCN(2, 16, padding=padding, **SMALL).eval()
    without_skip.load_state_dict(model.state_dict())
    for net, value in ((model, bias), (without_skip, 0.0)):
        torch.nn.init.zeros_(net.score_pool4.weight)
        torch.nn.init.constant_(net.score_pool4.bias, value)
    image = noise(200, 200)
    with torch.inference_mode():
        score, coarse = model(image), without_skip(image)
    middle = (..., slice(60, 140), slice(60, 140))
    if bias > 0:
        assert (score[middle] == bias).all()
    else:
        torch.testing.assert_close(score, coarse)


def test_random_score_layers_are_drawn_with_variance_2_over_their_inputs():
    torch.manual_seed(0)
    model = FCN(21, 8, score_init="random", width=1 / 4)
    for layer in (model.score_fr, model.score_pool4, model.score_pool3):
        assert layer.weight.var().item() == pytest.approx(2 / layer.in_channels, rel=0.1)
        assert not layer.bias.any()


@pytest.mark.parametrize(("name", "padding"), TRUNKS)
def test_with_a_fixed_trunk_a_step_of_training_changes_the_score_layers_alone(name, padding):
    model = FCN(3, 8, name, padding, fixed_trunk=True, score_init="random", **SMALL).train()
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    optimizer = torch.optim.SGD(parameter_groups(model, lr=1.0, weight_decay=0.1))
    image = noise(40, 50).repeat(2, 1, 1, 1)
    mean_pixel_cross_entropy(model(image), torch.randint(0, 3, (2, 40, 50))).backward()
    optimizer.step()
    changed = {
        key.rpartition(".")[0] for key, tensor in model.state_dict().items() if not tensor.equal(before[key])
    }
    assert changed == {"score_fr", "score_pool4", "score_pool3"}


@pytest.mark.parametrize(("name", "padding"), TRUNKS)
def test_a_step_of_training_reaches_every_layer_of_the_trunk(name, padding):
    torch.manual_seed(0)
    model = FCN(3, 8, name, padding, score_init="random", width=1 / 16).train()
    image = torch.randint(0, 256, (2, 3, 70, 90), dtype=torch.uint8)
    mean_pixel_cross_entropy(model(image), torch.randint(0, 3, (2, 70, 90))).backward()
    learned = [(key, p.grad) for key, p in model.named_parameters() if p.requires_grad]
    assert [key for key, gradient in learned if gradient is None or not gradient.any()] == []


def test_aligning_crops_what_sticks_out_and_pads_what_is_missing():
    source, like = torch.arange(9.0).view(1, 1, 3, 3), torch.zeros(1, 1, 2, 2)
    assert aligned(source, 1, like).tolist() == [[[[4, 5], [7, 8]]]]
    assert aligned(source, -1, like).tolist() == [[[[0, 0], [0, 0]]]]
    assert aligned(source, -1, torch.zeros(1, 1, 5, 5)).equal(F.pad(source, (1, 1, 1, 1)))
    assert aligned(source, -1, like, outside=-torch.inf)[0, 0, 0].tolist() == [-torch.inf, -torch.inf]


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (torch.zeros(3, 8, 8), r"\(3, 8, 8\)"),
        (torch.zeros(1, 4, 8, 8), r"\(1, 4, 8, 8\)"),
        (torch.zeros(0, 3, 8, 8), r"\(0, 3, 8, 8\)"),
        (torch.zeros(1, 3, 0, 8), r"\(1, 3, 0, 8\)"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.int64), "int64"),
    ],
)
def test_an_image_of_another_shape_or_type_is_refused(image, words):
    with pytest.raises(ValueError, match=words):
        FCN(2, 32, **SMALL)(image)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"stride": 4}, "stride .*32, 16 or 8, got 4"),
        (
            {"backbone": "vgg61"},
            "backbone 'vgg61'; known: alexnet, .*efficientnet_lite0, .*vgg16",
        ),
        ({"backbone": "resnet50", "padding": "tight"}, "resnet50 .*'reference'; got 'tight'"),
        ({"backbone": "googlenet", "padding": "tight"}, "googlenet .*'reference'; got 'tight'"),
        ({"backbone": "mobilenet_v1", "padding": "tight"}, "mobilenet_v1 .*'reference'; got 'tight'"),
        ({"backbone": "resnet50", "padding": "same"}, "padding 'same'; known: reference, tight"),
        ({"backbone": "resnet50", "fc6_kernel": 3}, "resnet50 'fc6_kernel'; known: .*width"),
        ({"backbone": "googlenet", "windows": "5x5"}, "windows '5x5'; known: torchvision, paper"),
        ({"fusion": "mean"}, "fusion 'mean'; known: sum, max"),
        ({"score_init": "ones"}, "score_init 'ones'; known: zero, random"),
        ({"learn_upscore": "last"}, "learn_upscore 'last'; known: False, intermediate, True"),
        ({"num_classes": 0}, "num_classes .* 0"),
        ({"padding": "same"}, "padding 'same'"),
        ({"fc6_kernel": 4}, "fc6_kernel .* 4"),
        ({"pixels": "bgr"}, "'bgr'"),
    ],
)
def test_an_unknown_variant_is_refused_with_those_known(arguments, words):
    with pytest.raises(ValueError, match=words):
        FCN(**SMALL | arguments)
