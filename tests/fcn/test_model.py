import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.interpolate import RegularGridInterpolator

from fcn.backbones.imagenet import CONVERTERS
from fcn.backbones.vgg import VGG16
from fcn.loss import mean_pixel_cross_entropy
from fcn.model import BACKBONES, FCN, aligned, bilinear_kernel, upsampling
from fcn.optim import parameter_groups
from fcn.pixels import PixelNormalization

SMALL = {"width": 1 / 64}
HAS_TIGHT = ("alexnet", "caffenet", "vgg16")
TRUNKS = [(name, "reference") for name in sorted(BACKBONES)] + [(name, "tight") for name in HAS_TIGHT]
# Every height to 40, where the grids are small, and one in 19 up to 600: nearly all remainders of 32
SIZES = [(height, 1 + 37 * height % 100) for height in (*range(1, 41), *range(41, 600, 19), 600)]


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """The nets are so thin that threads would only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def randomised(model: FCN) -> FCN:
    """The same net with random score layers, which begin at zero."""
    for name, parameter in model.named_parameters():
        if name.startswith("score"):
            torch.nn.init.normal_(parameter)
    return model.eval()


@pytest.fixture(scope="module")
def nets() -> dict[tuple[str, str, int], FCN]:
    return {
        (name, padding, stride): FCN(2, stride, name, padding, width=1 / 64).eval()
        for name, padding in TRUNKS
        for stride in (32, 16, 8)
    }


def check_size(model: FCN, height: int, width: int) -> None:
    """The score has the image's size, and the upsampled map reaches to every pixel of it."""
    reached = []
    last = model.get_submodule(model.last)
    handle = last.register_forward_hook(lambda *args: reached.append(args[2].shape[-2:]))
    with torch.inference_mode():
        score = model(torch.zeros(1, 3, height, width))
    handle.remove()
    assert score.shape == (1, model.num_classes, height, width)
    assert score.dtype == torch.float32
    assert model.offset_score >= 0
    assert reached[0][0] - model.offset_score >= height
    assert reached[0][1] - model.offset_score >= width


@pytest.mark.parametrize(("name", "padding"), TRUNKS)
def test_the_score_has_the_size_of_the_image_for_every_net(nets, name, padding):
    for height, width in SIZES:
        check_size(nets[name, padding, 8], height, width)


@settings(max_examples=60, deadline=None)
@given(
    trunk=st.sampled_from(TRUNKS),
    stride=st.sampled_from([32, 16]),
    height=st.integers(1, 600),
    width=st.integers(1, 600),
)
def test_the_score_has_the_size_of_the_image_at_every_stride(nets, trunk, stride, height, width):
    check_size(nets[*trunk, stride], height, width)


@settings(max_examples=30, deadline=None)
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
    height=st.integers(1, 300),
    width=st.integers(1, 300),
)
def test_no_variant_changes_the_size_or_leaves_a_number_that_is_none(trunk, variant, height, width):
    model = FCN(2, backbone=trunk[0], padding=trunk[1], width=1 / 64, **variant).eval()
    check_size(model, height, width)
    with torch.inference_mode():
        assert model(torch.randint(0, 256, (1, 3, height, width), dtype=torch.uint8)).isfinite().all()


@settings(max_examples=20, deadline=None)
@given(
    padding=st.sampled_from(["reference", "tight"]),
    stride=st.sampled_from([32, 16, 8]),
    size=st.tuples(st.integers(1, 200), st.integers(1, 200)),
)
def test_a_smaller_fc6_keeps_the_size_too(padding, stride, size):
    check_size(FCN(2, stride, padding=padding, fc6_kernel=3, **SMALL).eval(), *size)


@pytest.mark.parametrize(("name", "padding"), TRUNKS)
@pytest.mark.parametrize("stride", [32, 16, 8])
def test_a_trunk_says_how_wide_its_features_are_and_where_they_lie(nets, name, padding, stride):
    """The layers' own strides, and the number of cells that a large image leaves on each map, as the map says."""
    backbone = nets[name, padding, stride].backbone
    with torch.inference_mode():
        small, large = (backbone(torch.zeros(1, 3, size, size)) for size in (320, 320 + 64))
    assert tuple(map.scale for map in backbone.geometry) == (8, 16, 32)
    for a, b, channels, map in zip(small, large, backbone.channels, backbone.geometry, strict=True):
        assert a.shape[1] == channels
        assert b.shape[2] - a.shape[2] == 64 / map.scale


@pytest.mark.parametrize("name", sorted(BACKBONES))
def test_a_trunk_starts_with_the_pixels_its_published_weights_expect(name):
    found = FCN(2, 32, name, width=1 / 64).backbone.pixels
    expected = PixelNormalization(CONVERTERS[name][1] if name not in ("vgg16", "caffenet") else "caffe")
    assert (found.is_bgr, found.mean.tolist(), found.std.tolist()) == (
        expected.is_bgr,
        expected.mean.tolist(),
        expected.std.tolist(),
    )


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


@pytest.mark.parametrize("pixels", ["caffe", "torchvision", "inception"])
def test_pixels_are_normalised_as_the_weights_expect(pixels):
    image = torch.randint(0, 256, (1, 3, 5, 6), dtype=torch.uint8)
    rgb = image[0].numpy().transpose(1, 2, 0).astype(np.float64)
    if pixels == "caffe":  # voc_layers.py: in_[:, :, ::-1]; in_ -= mean
        expected = rgb[:, :, ::-1] - np.array((104.00699, 116.66877, 122.67892))
    elif (
        pixels == "inception"
    ):  # torchvision's GoogLeNet with transform_input: ((x - mean) / std) * std / .5 + ...
        expected = (rgb / 255 - 0.5) / 0.5
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
    coarse = FCN(2, 16, padding=padding, **SMALL).eval()
    coarse.load_state_dict(model.state_dict())
    for net, value in ((model, bias), (coarse, 0.0)):
        torch.nn.init.zeros_(net.score_pool4.weight)
        torch.nn.init.constant_(net.score_pool4.bias, value)
        for parameter in (net.score_fr.weight, net.score_fr.bias):
            torch.nn.init.uniform_(parameter, -1e-3, 1e-3)
    coarse.score_fr.load_state_dict(model.score_fr.state_dict())
    image = torch.randint(0, 256, (1, 3, 200, 200), dtype=torch.uint8)
    with torch.inference_mode():
        found, without_skip = model(image), coarse(image)
    middle = slice(60, 140)
    expected = torch.full_like(found, bias) if bias > 0 else without_skip
    torch.testing.assert_close(found[..., middle, middle], expected[..., middle, middle])
    if bias < 0:
        torch.testing.assert_close(found, without_skip)


def test_random_score_layers_are_drawn_with_variance_2_over_their_inputs():
    torch.manual_seed(0)
    with torch.device("cpu"):
        model = FCN(21, 8, score_init="random", width=1 / 4)
    for layer in (model.score_fr, model.score_pool4, model.score_pool3):
        assert layer.weight.var().item() == pytest.approx(2 / layer.in_channels, rel=0.1)
        assert not layer.bias.any()


@pytest.mark.parametrize(("name", "padding"), TRUNKS)
def test_with_a_fixed_trunk_a_step_of_training_changes_the_score_layers_alone(name, padding):
    model = FCN(3, 8, name, padding, fixed_trunk=True, score_init="random", width=1 / 64).train()
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    optimizer = torch.optim.SGD(parameter_groups(model, lr=1.0, weight_decay=0.1))
    image = torch.randint(0, 256, (2, 3, 40, 50), dtype=torch.uint8)
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
    dead = [
        key
        for key, p in model.named_parameters()
        if p.requires_grad and not (p.grad is not None and p.grad.any())
    ]
    assert dead == []


def test_aligning_crops_what_sticks_out_and_pads_what_is_missing():
    source, like = torch.arange(9.0).view(1, 1, 3, 3), torch.zeros(1, 1, 2, 2)
    assert aligned(source, 1, like).tolist() == [[[[4, 5], [7, 8]]]]
    assert aligned(source, -1, like).tolist() == [[[[0, 0], [0, 0]]]]
    assert aligned(source, -1, torch.zeros(1, 1, 5, 5)).equal(F.pad(source, (1, 1, 1, 1)))
    assert aligned(source, -1, like, outside=-torch.inf)[0, 0, 0].tolist() == [-torch.inf, -torch.inf]


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
        (
            {"backbone": "vgg61"},
            "unknown backbone 'vgg61'; known: alexnet, caffenet, googlenet, mobilenet_v1, resnet50, vgg16",
        ),
        ({"backbone": "resnet50", "padding": "tight"}, "resnet50 has only the padding of its own layers"),
        ({"backbone": "googlenet", "padding": "tight"}, "googlenet has only the padding of its own layers"),
        ({"backbone": "mobilenet_v1", "padding": "tight"}, "mobilenet_v1 has only the padding of its own"),
        ({"backbone": "resnet50", "padding": "same"}, "unknown padding 'same'; known: reference, tight"),
        ({"backbone": "googlenet", "windows": "5x5"}, "unknown windows '5x5'; known: torchvision, paper"),
        ({"fusion": "mean"}, "unknown fusion 'mean'; known: sum, max"),
        ({"score_init": "ones"}, "unknown score_init 'ones'; known: zero, random"),
        ({"learn_upscore": "last"}, "unknown learn_upscore 'last'; known: False, intermediate, True"),
        ({"num_classes": 0}, "num_classes"),
        ({"padding": "same"}, "unknown padding 'same'"),
        ({"fc6_kernel": 4}, "odd"),
        ({"pixels": "bgr"}, "unknown pixel convention 'bgr'"),
    ],
)
def test_an_unknown_variant_is_refused_with_what_is_known(arguments, words):
    with pytest.raises(ValueError, match=words):
        FCN(**{"width": 1 / 64} | arguments)
