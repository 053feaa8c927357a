"""The classification heat map, on torchvision's own networks with random weights."""

import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from torchvision import models
from torchvision.transforms.functional import normalize, to_tensor

from pipeline.errors import CheckpointError, UserError
from pipeline.prediction import heatmap as module
from pipeline.prediction.heatmap import (
    cells,
    classes_named,
    dense_classifier,
    enlarged,
    heatmap,
    overlaid,
    probability_map,
)

CATEGORIES = models.AlexNet_Weights.IMAGENET1K_V1.meta["categories"]
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # torchvision's preset for ImageNet


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def alexnet() -> models.AlexNet:
    """torchvision's, random, and of decided opinions: scores of fresh weights hardly differ."""
    torch.manual_seed(0)
    net = models.alexnet(weights=None).eval()
    with torch.no_grad():
        net.classifier[6].weight *= 300
    return net


@pytest.fixture(scope="module")
def weights(alexnet, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "alexnet.pth"
    torch.save(alexnet.state_dict(), path)
    return path


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Coarse, so that the crops of an image differ."""
    coarse = np.random.default_rng(seed).integers(0, 256, (height // 28 + 1, width // 28 + 1, 3), np.uint8)
    return np.ascontiguousarray(coarse.repeat(28, 0).repeat(28, 1)[:height, :width])


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "photo.png"
    Image.fromarray(noise(224 + 64, 224 + 96)).save(path)
    return path


def pixels_of(path) -> np.ndarray:
    with Image.open(path) as image:
        return np.array(image.convert("RGB"))


def as_tensor(pixels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(pixels).permute(2, 0, 1)


def said_by(classifier: nn.Module, pixels: np.ndarray) -> torch.Tensor:
    """What the classifier itself says, with torchvision's own preprocessing."""
    with torch.inference_mode():
        return classifier(normalize(to_tensor(pixels), MEAN, STD)[None]).softmax(1)[0]


# --- the numbers


def test_on_a_crop_the_map_is_the_classifiers_own_softmax(alexnet, weights):
    pixels = noise(224, 224)
    net, expected = dense_classifier("alexnet", weights), said_by(alexnet, pixels)
    assert expected.max() > 0.02
    for indices in ([int(expected.argmax())], [207], list(range(1000))):
        found = probability_map(net, as_tensor(pixels), indices)
        assert found.shape == (1, 1)
        torch.testing.assert_close(found[0, 0], expected[indices].sum(), atol=1e-5, rtol=1e-3)


def test_on_a_photo_each_cell_is_what_the_classifier_says_of_the_features_below_it(
    alexnet, weights, real_data
):
    path = sorted((real_data / "voc" / "JPEGImages").glob("*.jpg"))[0]
    pixels = pixels_of(path)
    grid = probability_map(dense_classifier("alexnet", weights), as_tensor(pixels), range(151, 269))
    height, width = pixels.shape[:2]
    assert grid.shape == ((height - 224) // 32 + 1, (width - 224) // 32 + 1)
    with torch.inference_mode():
        features = alexnet.features(normalize(to_tensor(pixels), MEAN, STD)[None])
        for y in range(grid.shape[0]):
            for x in range(grid.shape[1]):
                said = alexnet.classifier(features[:, :, y : y + 6, x : x + 6].flatten(1)).softmax(1)
                torch.testing.assert_close(grid[y, x], said[0, 151:269].sum(), atol=1e-5, rtol=1e-3)


@pytest.mark.slow
def test_vgg16_on_a_crop_says_what_it_says_itself(tmp_path):
    torch.manual_seed(0)
    net = models.vgg16(weights=None).eval()
    torch.save(net.state_dict(), tmp_path / "vgg16.pth")
    pixels = noise(224, 224)
    dense = dense_classifier("vgg16", tmp_path / "vgg16.pth")
    (tmp_path / "vgg16.pth").unlink()  # 553 MB
    found = probability_map(dense, as_tensor(pixels), [3, 5])
    torch.testing.assert_close(found[0, 0], said_by(net, pixels)[[3, 5]].sum(), atol=1e-6, rtol=1e-3)


@pytest.mark.parametrize(("name", "middle"), [("vgg16", 111.5), ("alexnet", 111.0)])
def test_cells_lie_in_the_middle_of_their_crops_32_pixels_apart(name, middle):
    """AlexNet's poolings of 3 pixels shift it by half of one."""
    with torch.device("meta"):
        net = nn.Sequential(module.convolutionalize(module.CLASSIFIERS[name][0](weights=None)))
    assert (cells(net).scale, cells(net).shift) == (32, middle)


def test_enlarging_is_bilinear_and_meets_each_cell_where_its_crop_has_its_middle(weights):
    net, grid = dense_classifier("alexnet", weights), np.random.default_rng(0).random((3, 4), np.float32)
    found = enlarged(grid, (224 + 64, 224 + 96), cells(net))
    assert found.shape == (288, 320)
    np.testing.assert_allclose(found[111::32][:3, 111::32][:, :4], grid, atol=1e-6)
    assert found[0, 0] == found[80, 111] == grid[0, 0]
    between = F.interpolate(torch.from_numpy(grid)[None, None], (65, 97), mode="bilinear", align_corners=True)
    np.testing.assert_allclose(found[111:176, 111:208], between[0, 0].numpy(), atol=1e-5)


# --- the picture


def test_where_the_class_is_certain_the_photo_turns_red_and_where_it_is_not_it_is_grey(weights):
    image = Image.fromarray(noise(288, 320))
    certain = np.zeros((3, 4), np.float32)
    certain[2, 3] = 1
    picture = np.asarray(overlaid(image, certain, cells(dense_classifier("alexnet", weights)))).astype(int)
    grey = np.asarray(image.convert("L")).astype(int)
    assert (picture[:100, :100] == grey[:100, :100, None]).all()
    assert (picture[-50:, -50:, 0] > 200).all()
    assert (picture[-50:, -50:, 1:] < 60).all()


def test_the_command_writes_the_picture_and_returns_the_peak(weights, photo, tmp_path):
    pixels = pixels_of(photo)
    net = dense_classifier("alexnet", weights)
    grid = probability_map(net, as_tensor(pixels), range(151, 269))
    dest = tmp_path / "new" / "heat.png"
    peak = heatmap(photo, "Dog", dest, classifier="alexnet", weights=weights)
    row, column = np.unravel_index(int(grid.argmax()), grid.shape)
    assert (peak.x, peak.y) == (111 + 32 * column, 111 + 32 * row)
    assert peak.probability == pytest.approx(float(grid.max()))
    assert peak.classes.name == "dog"
    with Image.open(dest) as picture:
        assert (picture.format, picture.mode, picture.size) == ("PNG", "RGB", (320, 288))
    expected = overlaid(Image.fromarray(pixels), grid.numpy(), cells(net))
    assert np.array_equal(pixels_of(dest), np.asarray(expected))
    assert [path.name for path in dest.parent.iterdir()] == ["heat.png"]


@pytest.mark.parametrize(
    ("size", "drawn", "word"),
    [
        ((100, 60), (373, 224), "enlarged"),
        ((2, 2), (224, 224), "enlarged"),
        ((2600, 300), (1941, 224), "reduced"),
    ],
)
def test_a_photo_too_small_or_too_large_is_brought_to_size_and_that_is_said(
    weights, tmp_path, capsys, size, drawn, word
):
    Image.fromarray(noise(size[1], size[0])).save(tmp_path / "odd.png")
    peak = heatmap(tmp_path / "odd.png", "cat", tmp_path / "heat.png", classifier="alexnet", weights=weights)
    assert pixels_of(tmp_path / "heat.png").shape == (drawn[1], drawn[0], 3)
    assert f"{size[0]}x{size[1]} {word} to {drawn[0]}x{drawn[1]}" in capsys.readouterr().err
    assert 0 <= peak.x <= size[0] - 1
    assert 0 <= peak.y <= size[1] - 1


@pytest.mark.parametrize("mode", ["L", "1", "P", "CMYK", "RGBA", "LA"])
def test_photos_of_any_mode_are_read(weights, tmp_path, mode):
    path = tmp_path / ("photo.jpg" if mode in ("L", "CMYK") else "photo.png")
    Image.fromarray(noise(224, 224)).convert(mode).save(path)
    heatmap(path, "bird", tmp_path / "heat.png", classifier="alexnet", weights=weights)
    assert pixels_of(tmp_path / "heat.png").shape == (224, 224, 3)


def test_a_photo_lies_as_viewers_show_it(weights, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    Image.fromarray(noise(224, 300)).save(tmp_path / "photo.jpg", exif=exif)
    heatmap(tmp_path / "photo.jpg", "bird", tmp_path / "heat.png", classifier="alexnet", weights=weights)
    assert pixels_of(tmp_path / "heat.png").shape == (300, 224, 3)


# --- classes


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("dog", ["dog", 118, "Chihuahua", "Mexican hairless"]),
        ("cat", ["cat", 5, "tabby", "Egyptian cat"]),
        ("bird", ["bird", 59, "cock", "albatross"]),
        ("207", ["golden retriever", 1, "golden retriever", "golden retriever"]),
        ("Golden  Retriever", ["golden retriever", 1, "golden retriever", "golden retriever"]),
        ("boxer", ["boxer", 1, "boxer", "boxer"]),
        ("terrier", ["terrier", 18, "toy terrier", "West Highland white terrier"]),
        ("siames", ["Siamese cat", 1, "Siamese cat", "Siamese cat"]),
    ],
)
def test_a_name_stands_for_a_group_an_index_a_category_or_part_of_one(name, found):
    classes = classes_named(name, CATEGORIES)
    shown = [CATEGORIES[classes.indices[place]] for place in (0, -1)]
    assert [classes.name, len(classes.indices), *shown] == found


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("golden retreiver", "no ImageNet class is called 'golden retreiver'; the nearest: golden retriever"),
        ("dogg", "the nearest: dog"),
        ("qqqqqqqq", "try bird, cat, dog, or an index"),
        ("", "no ImageNet class is called ''"),
        ("1000", "there is no class 1000; indices go from 0 to 999"),
        ("-1", "no ImageNet class is called '-1'"),
    ],
)
def test_an_unknown_class_is_refused_with_the_nearest_names(photo, tmp_path, name, words):
    with pytest.raises(UserError, match=words):
        heatmap(photo, name, tmp_path / "heat.png", classifier="alexnet", weights=tmp_path / "none.pth")


# --- mistakes


def test_an_unknown_classifier_is_refused(photo, tmp_path):
    with pytest.raises(UserError, match="unknown classifier 'vgg61'; known: alexnet, vgg16"):
        heatmap(photo, "dog", tmp_path / "heat.png", classifier="vgg61")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "photo.png is missing"),
        (b"", "no image that can be read"),
        (b"<html>not found</html>", "no image that can be read"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", "no image that can be read"),
        ("half", "cannot be read as an image"),
    ],
)
def test_a_file_that_is_no_image_is_refused_by_name(weights, photo, tmp_path, content, words):
    if content is None:
        photo.unlink()
    else:
        photo.write_bytes(photo.read_bytes()[: photo.stat().st_size // 2] if content == "half" else content)
    with pytest.raises(UserError, match=words):
        heatmap(photo, "dog", tmp_path / "heat.png", classifier="alexnet", weights=weights)
    assert not (tmp_path / "heat.png").exists()


def test_a_photo_that_is_hardly_more_than_a_line_is_refused(weights, tmp_path):
    Image.new("RGB", (500, 3)).save(tmp_path / "line.png")
    with pytest.raises(UserError, match="500x3, more than 16 times as long as wide"):
        heatmap(tmp_path / "line.png", "dog", tmp_path / "h.png", classifier="alexnet", weights=weights)


def test_the_photo_itself_is_never_written_over(weights, photo, tmp_path):
    before = photo.read_bytes()
    for dest, words in ((photo, "is the photo"), (tmp_path, "is a folder")):
        with pytest.raises(UserError, match=words):
            heatmap(photo, "dog", dest, classifier="alexnet", weights=weights)
    assert photo.read_bytes() == before


def test_a_place_that_cannot_be_written_to_is_the_users_mistake(weights, photo):
    with pytest.raises(UserError, match="cannot be written"):
        heatmap(photo, "dog", photo / "heat.png", classifier="alexnet", weights=weights)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"<html>", "cannot be loaded as weights alone"),
        ([1, 2], "found a list"),
        ({}, "Missing key"),
        ({3: torch.zeros(1)}, "no weights of torchvision's alexnet"),
        ({"features.0.weight": torch.zeros(64, 3, 3, 3)}, "Missing key"),
        ("text for a tensor", "no weights of torchvision's alexnet"),
        ("whole numbers", "no weights of torchvision's alexnet"),
        ("another number of classes", "size mismatch"),
        ("not finite", "not finite"),
    ],
)
def test_weights_of_another_kind_are_refused_by_name(alexnet, photo, tmp_path, content, words):
    path, state = tmp_path / "weights.pth", dict(alexnet.state_dict())
    changes = {
        "text for a tensor": {"features.0.bias": "text"},
        "whole numbers": {"features.0.bias": torch.zeros(64, dtype=torch.int64)},
        "another number of classes": {"classifier.6.bias": torch.zeros(21)},
        "not finite": {"features.0.bias": torch.full((64,), torch.nan)},
    }
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(state | changes[content] if isinstance(content, str) else content, path)
    with pytest.raises(CheckpointError, match=words) as caught:
        heatmap(photo, "dog", tmp_path / "heat.png", classifier="alexnet", weights=path)
    assert str(path) in str(caught.value)
    assert not (tmp_path / "heat.png").exists()


def test_half_precision_weights_are_used_as_they_are_worth(alexnet, weights, photo, tmp_path):
    torch.save({name: tensor.half() for name, tensor in alexnet.state_dict().items()}, tmp_path / "half.pth")
    half, full = (
        heatmap(photo, "dog", tmp_path / "heat.png", classifier="alexnet", weights=path)
        for path in (tmp_path / "half.pth", weights)
    )
    assert half.probability == pytest.approx(full.probability, rel=0.05)


# --- published weights


@pytest.mark.parametrize(
    ("name", "url", "checksum", "num_bytes"),
    [  # as torchvision publishes them; sizes of the files on download.pytorch.org
        (
            "alexnet",
            "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth",
            "sha256:7be5be79",
            244_408_911,
        ),
        ("vgg16", "https://download.pytorch.org/models/vgg16-397923af.pth", "sha256:397923af", 553_433_881),
    ],
)
def test_without_a_file_torchvisions_published_one_is_fetched(monkeypatch, name, url, checksum, num_bytes):
    asked = {}

    def fetch(folder, **published):
        asked.update(published, folder=folder)
        return folder / "file.pth"

    monkeypatch.setattr(module, "fetch_published", fetch)
    assert module._published(module.CLASSIFIERS[name][1]).name == "file.pth"
    assert (asked["urls"], asked["checksum"], str(asked["folder"])) == ([url], checksum, "downloads")
    assert num_bytes < 1e9 * asked["max_size_gb"] < 1.05 * num_bytes


def test_what_was_fetched_is_what_is_used(monkeypatch, weights, photo, tmp_path):
    def fetch(_folder, **_published):
        return shutil.copy(weights, tmp_path / "fetched.pth")

    monkeypatch.setattr(module, "fetch_published", fetch)
    fetched = heatmap(photo, "dog", tmp_path / "heat.png", classifier="alexnet")
    assert fetched == heatmap(photo, "dog", tmp_path / "heat.png", classifier="alexnet", weights=weights)
