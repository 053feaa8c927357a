import pytest
import torch
import torch.nn.functional as F
from torchvision.models import vgg16

from fcn.model import FCN
from pipeline.errors import CheckpointError, ConfigError
from pipeline.models import backbone, checkpoint

MODEL = {
    "backbone": "vgg16",
    "padding": "reference",
    "width": 1 / 64,
    "fc6_kernel": 7,
    "pixels": "torchvision",
    "batch_norm": False,
}


def state_dict(path) -> dict[str, torch.Tensor]:
    return checkpoint.load(path, "backbone")[0]["state_dict"]


def test_random_weights_are_the_same_for_the_same_seed_only(tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        torch.rand(3)  # the random state before must not matter
        backbone.write_random(tmp_path / name, MODEL, seed)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    a, c = state_dict(tmp_path / "a"), state_dict(tmp_path / "c")
    assert a.keys() == c.keys()
    assert not torch.equal(a["conv1_1.weight"], c["conv1_1.weight"])


@pytest.mark.parametrize("stride", [32, 16, 8])
def test_the_trunk_fits_every_net_of_its_kind_and_says_what_it_is(tmp_path, stride):
    backbone.write_random(tmp_path / "backbone.pt", MODEL, 1)
    content, _ = checkpoint.load(tmp_path / "backbone.pt", "backbone")
    FCN(4, stride, **MODEL).backbone.load_state_dict(content["state_dict"])
    assert content["source"] == "random, seed 1"


def published(width: float = 1 / 64) -> dict[str, torch.Tensor]:
    """A state_dict as torchvision's vgg16 has it, random and thin."""
    trunk, torchvision_state = FCN(2, 32, **MODEL | {"width": width}).backbone.state_dict(), {}
    convs = [name for name in trunk if name.startswith("conv") and name.endswith("weight")]
    # Where vgg16().features has its convolutions: the others are ReLUs and poolings
    for index, name in zip((0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28), convs, strict=True):
        torchvision_state[f"features.{index}.weight"] = trunk[name]
        torchvision_state[f"features.{index}.bias"] = trunk[name.replace("weight", "bias")]
    for index, name in ((0, "fc6"), (3, "fc7")):
        torchvision_state[f"classifier.{index}.weight"] = trunk[f"{name}.weight"].flatten(1)
        torchvision_state[f"classifier.{index}.bias"] = trunk[f"{name}.bias"]
    torchvision_state["classifier.6.weight"] = torch.zeros(1000, 64)
    torchvision_state["classifier.6.bias"] = torch.zeros(1000)
    return torchvision_state


def test_published_weights_become_the_trunk(tmp_path):
    state = published()
    torch.save(state, tmp_path / "vgg16-397923af.pth")
    backbone.write_pretrained(tmp_path / "backbone.pt", MODEL, tmp_path / "vgg16-397923af.pth")
    content, _ = checkpoint.load(tmp_path / "backbone.pt", "backbone")
    assert content["source"] == "vgg16-397923af.pth"
    assert torch.equal(content["state_dict"]["conv5_3.weight"], state["features.28.weight"])
    assert torch.equal(content["state_dict"]["fc6.weight"], state["classifier.0.weight"].view(64, 8, 7, 7))
    assert torch.equal(content["state_dict"]["fc7.bias"], state["classifier.3.bias"])


@pytest.mark.parametrize(
    ("contents", "complaint"),
    [
        ({}, "missing: classifier.0.weight"),
        ([1, 2], "missing: classifier.0.weight"),
        (3, "not iterable"),
        (published() | {"features.0.weight": torch.zeros(1)}, "conv1_1.weight"),
        (published() | {"classifier.0.weight": 7}, "'int'"),
        ({name: t for name, t in published().items() if name != "features.0.bias"}, "features.0.bias"),
        (published(1 / 32), "conv1_1.weight"),
    ],
)
def test_weights_that_do_not_fit_are_refused_by_name_and_nothing_is_written(tmp_path, contents, complaint):
    weights, dest = tmp_path / "weights.pth", tmp_path / "backbone.pt"
    torch.save(contents, weights)
    with pytest.raises(CheckpointError) as caught:
        backbone.write_pretrained(dest, MODEL, weights)
    message = str(caught.value)
    assert str(weights) in message
    assert "'vgg16'" in message
    assert complaint in message
    assert "\n" not in message
    assert not dest.exists()


def test_a_file_that_holds_no_weights_is_refused_by_name(tmp_path):
    weights = tmp_path / "weights.pth"
    for damage in (b"", b"<html>not found</html>", b"\x80\x02"):
        weights.write_bytes(damage)
        with pytest.raises(CheckpointError, match=r"weights\.pth"):
            backbone.write_pretrained(tmp_path / "backbone.pt", MODEL, weights)


def test_pixels_that_the_weights_were_not_trained_on_are_refused(tmp_path):
    torch.save(published(), tmp_path / "weights.pth")
    with pytest.raises(CheckpointError, match=r"'torchvision'.*'caffe'"):
        backbone.write_pretrained(tmp_path / "b.pt", MODEL | {"pixels": "caffe"}, tmp_path / "weights.pth")


def test_a_backbone_without_published_weights_is_refused_naming_those_that_have_some(tmp_path):
    with pytest.raises(CheckpointError, match=r"'vgg61'.*alexnet, googlenet"):
        backbone.write_pretrained(tmp_path / "b.pt", MODEL | {"backbone": "vgg61"}, tmp_path / "weights.pth")


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"backbone": "vgg61"}, "unknown backbone 'vgg61'; known: .*, vgg16"),
        ({"colour": "red"}, "unknown option of vgg16 'colour'; known: .*pixels"),
        ({"fc6_kernel": 4}, "fc6_kernel must be odd to be centred on its cell, got 4"),
    ],
)
def test_a_model_section_that_describes_no_net_is_the_users_mistake(tmp_path, changes, complaint):
    with pytest.raises(ConfigError, match=complaint):
        backbone.write_random(tmp_path / "b.pt", MODEL | changes, 1)


@pytest.mark.slow
def test_torchvisions_own_vgg16_goes_through_the_file_and_computes_the_same_fc7(tmp_path):
    torch.manual_seed(0)
    theirs = vgg16(weights=None).eval()
    torch.save(theirs.state_dict(), tmp_path / "vgg16.pth")
    model = {"backbone": "vgg16", "padding": "tight", "pixels": "torchvision"}
    backbone.write_pretrained(tmp_path / "backbone.pt", model, tmp_path / "vgg16.pth")
    (tmp_path / "vgg16.pth").unlink()
    ours = FCN(21, 32, **model).eval().backbone
    ours.load_state_dict(state_dict(tmp_path / "backbone.pt"))
    (tmp_path / "backbone.pt").unlink()
    image = torch.randint(0, 256, (1, 3, 224, 224), dtype=torch.uint8)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    with torch.no_grad():
        pool5 = theirs.features((image / 255 - mean) / std)
        expected = theirs.classifier[:5](pool5.flatten(1))
        fc6 = F.relu(F.conv2d(pool5, ours.fc6.weight, ours.fc6.bias))  # without the padding, one cell
        found = F.relu(ours.fc7(fc6))
    assert found.shape == (1, 4096, 1, 1)
    torch.testing.assert_close(found.flatten(1), expected, rtol=1e-4, atol=1e-5)


def write_net(path, **changes) -> FCN:
    torch.manual_seed(0)
    options = MODEL | {"num_classes": 3, "stride": 8} | changes
    net = FCN(**options)
    torch.nn.init.normal_(net.score_fr.weight)
    content = {
        "model": options,
        "classes": ["sky", "cat", "dog"],
        "lineage": {},
        "state_dict": net.state_dict(),
    }
    checkpoint.save(path, "model", content)
    return net


@pytest.mark.parametrize("name", ["fcn8s.pt", "fcn8s.safetensors"])
def test_another_net_becomes_trunk_layers_and_names_of_classes(tmp_path, name):
    net = write_net(tmp_path / name)
    _, digest = checkpoint.load(tmp_path / name, "model")
    backbone.write_from_net(tmp_path / "backbone.pt", MODEL, str(tmp_path / name))
    content, _ = checkpoint.load(tmp_path / "backbone.pt", "backbone")
    state = {f"backbone.{key}": tensor for key, tensor in content["state_dict"].items()} | content["layers"]
    assert state.keys() == net.state_dict().keys()
    assert all(torch.equal(tensor, net.state_dict()[key]) for key, tensor in state.items())
    assert content["classes"] == ["sky", "cat", "dog"]
    assert content["lineage"] == {"start": str(tmp_path / name), "start_sha256": digest}
    assert content["trained_on"] is None  # the file does not tell


@pytest.mark.parametrize(
    "model",
    [
        MODEL | {"dropout": 0.1, "fixed_trunk": True, "score_init": "random"},
        {key: value for key, value in MODEL.items() if key != "padding"},  # which is the default
    ],
)
def test_options_that_do_not_change_what_layers_mean_may_differ(tmp_path, model):
    write_net(tmp_path / "net.pt")
    backbone.write_from_net(tmp_path / "backbone.pt", model, str(tmp_path / "net.pt"))
    content, _ = checkpoint.load(tmp_path / "backbone.pt", "backbone")
    FCN(5, 32, **model).backbone.load_state_dict(content["state_dict"])


@pytest.mark.parametrize(
    ("changes", "facts"),
    [
        ({"backbone": "mobilenet_v1"}, ["backbone is 'vgg16' there and 'mobilenet_v1' in the profile"]),
        ({"padding": "tight", "learn_upscore": True}, ["padding is 'reference'", "learn_upscore is False"]),
        ({"width": 1 / 32}, ["width is 0.015625 there and 0.03125"]),
        ({"at_once": True}, ["at_once"]),
    ],
)
def test_a_net_of_another_kind_is_refused_naming_the_differences(tmp_path, changes, facts):
    write_net(tmp_path / "net.pt")
    model = MODEL | changes
    if "backbone" in changes:
        model = changes
    with pytest.raises(CheckpointError) as caught:
        backbone.write_from_net(tmp_path / "backbone.pt", model, str(tmp_path / "net.pt"))
    for fact in ("net.pt", *facts):
        assert fact in str(caught.value)
    assert not (tmp_path / "backbone.pt").exists()


def test_a_start_that_is_no_model_file_is_refused(tmp_path):
    backbone.write_random(tmp_path / "trunk.pt", MODEL, 1)
    with pytest.raises(CheckpointError, match=r"trunk\.pt is a backbone file, expected a model file"):
        backbone.write_from_net(tmp_path / "backbone.pt", MODEL, str(tmp_path / "trunk.pt"))
