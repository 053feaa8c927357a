"""`fcn heatmap`, on torchvision's own networks with random weights."""

import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from torchvision import models
from torchvision.transforms.functional import normalize, to_tensor

from fcn.geometry import IMAGE
from fcn.surgery import convolutionalize
from pipeline.errors import CheckpointError, UserError
from pipeline.prediction import heatmap as module
from pipeline.prediction.heatmap import (
    CLASSIFIERS,
    classes_named,
    dense_classifier,
    enlarged,
    heatmap,
    overlaid,
    probability_map,
)
from tests.photo_net import noise as noise_in_cells

CATEGORIES = models.AlexNet_Weights.IMAGENET1K_V1.meta["categories"]
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # torchvision's preset for ImageNet


@pytest.fixture(scope="module")
def alexnet() -> models.AlexNet:
    """torchvision's, random, with scores far apart: those of fresh weights hardly differ."""
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


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "photo.png"
    Image.fromarray(noise(224 + 64, 224 + 96)).save(path)
    return path


def noise(height: int, width: int) -> np.ndarray:
    return noise_in_cells(height, width, cell=28)


def pixels_of(path) -> np.ndarray:
    with Image.open(path) as image:
        return np.array(image.convert("RGB"))


def as_tensor(pixels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(pixels).permute(2, 0, 1)


# Probabilities


def test_on_a_crop_the_map_is_the_classifiers_own_softmax(alexnet, weights):
    pixels, net = noise(224, 224), dense_classifier("alexnet", weights)
    with torch.inference_mode():
        expected = alexnet(normalize(to_tensor(pixels), MEAN, STD)[None]).softmax(1)[0]
    assert expected.max() > 0.02
    for indices in ([int(expected.argmax())], [207], list(range(1000))):
        grid = probability_map(net, as_tensor(pixels), indices)
        assert grid.shape == (1, 1)
        torch.testing.assert_close(grid[0, 0], expected[indices].sum(), atol=1e-5, rtol=1e-3)


def test_on_a_photo_each_cell_is_the_classifier_on_the_features_below_it(alexnet, weights, real_data):
    path = sorted((real_data / "voc" / "JPEGImages").glob("*.jpg"))[0]
    pixels = pixels_of(path)
    grid = probability_map(dense_classifier("alexnet", weights), as_tensor(pixels), range(151, 269))
    height, width = pixels.shape[:2]
    assert grid.shape == ((height - 224) // 32 + 1, (width - 224) // 32 + 1)
    with torch.inference_mode():
        features = alexnet.features(normalize(to_tensor(pixels), MEAN, STD)[None])
        for y, x in np.ndindex(*grid.shape):
            expected = alexnet.classifier(features[:, :, y : y + 6, x : x + 6].flatten(1)).softmax(1)
            torch.testing.assert_close(grid[y, x], expected[0, 151:269].sum(), atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize(("name", "middle"), [("vgg16", 111.5), ("alexnet", 111.0)])
def test_cells_lie_in_the_middle_of_their_crops_32_pixels_apart(name, middle):
    """AlexNet's poolings of 3 pixels shift it by half a pixel."""
    with torch.device("meta"):
        cells = IMAGE.through(nn.Sequential(convolutionalize(CLASSIFIERS[name][0](weights=None))))
    assert (cells.scale, cells.shift) == (32, middle)


def test_enlarging_is_bilinear_and_meets_each_cell_at_the_middle_of_its_crop(weights):
    cells = IMAGE.through(dense_classifier("alexnet", weights))
    grid = np.random.default_rng(0).random((3, 4), np.float32)
    image = enlarged(grid, (224 + 64, 224 + 96), cells)
    assert image.shape == (288, 320)
    np.testing.assert_allclose(image[111::32][:3, 111::32][:, :4], grid, atol=1e-6)
    assert image[0, 0] == image[80, 111] == grid[0, 0]
    between = F.interpolate(torch.from_numpy(grid)[None, None], (65, 97), mode="bilinear", align_corners=True)
    np.testing.assert_allclose(image[111:176, 111:208], between[0, 0].numpy(), atol=1e-5)


# The picture


def test_the_photo_is_red_where_the_class_is_certain_and_grey_where_it_is_not(weights):
    image, certain = Image.fromarray(noise(288, 320)), np.zeros((3, 4), np.float32)
    certain[2, 3] = 1
    cells = IMAGE.through(dense_classifier("alexnet", weights))
    picture = np.asarray(overlaid(image, certain, cells)).astype(int)
    grey = np.asarray(image.convert("L")).astype(int)
    assert (picture[:100, :100] == grey[:100, :100, None]).all()
    assert (picture[-50:, -50:, 0] > 200).all()
    assert (picture[-50:, -50:, 1:] < 60).all()


def test_the_picture_is_written_and_the_peak_returned(weights, photo, tmp_path):
    pixels, net = pixels_of(photo), dense_classifier("alexnet", weights)
    grid = probability_map(net, as_tensor(pixels), range(151, 269))
    dest = tmp_path / "new" / "heat.png"
    peak = heatmap(photo, "Dog", dest, classifier="alexnet", weights=weights)
    row, column = np.unravel_index(int(grid.argmax()), grid.shape)
    assert (peak.classes.name, peak.x, peak.y) == ("dog", 111 + 32 * column, 111 + 32 * row)
    assert peak.probability == pytest.approx(float(grid.max()))
    expected = overlaid(Image.fromarray(pixels), grid.numpy(), IMAGE.through(net))
    np.testing.assert_array_equal(pixels_of(dest), np.asarray(expected))
    assert [path.name for path in dest.parent.iterdir()] == ["heat.png"]


@pytest.mark.parametrize(
    ("size", "drawn"), [((100, 60), (373, 224)), ((2, 2), (224, 224)), ((2600, 300), (1941, 224))]
)
def test_a_photo_too_small_or_too_large_is_resized_with_a_message(weights, tmp_path, capsys, size, drawn):
    Image.fromarray(noise(size[1], size[0])).save(tmp_path / "odd.png")
    peak = heatmap(tmp_path / "odd.png", "cat", tmp_path / "heat.png", classifier="alexnet", weights=weights)
    assert pixels_of(tmp_path / "heat.png").shape == (drawn[1], drawn[0], 3)
    message = capsys.readouterr().err
    assert f"{size[0]}x{size[1]}" in message
    assert f"{drawn[0]}x{drawn[1]}" in message
    assert 0 <= peak.x <= size[0] - 1
    assert 0 <= peak.y <= size[1] - 1


# Classes


@pytest.mark.parametrize(
    ("name", "expected"),
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
def test_a_name_stands_for_a_group_an_index_a_category_or_part_of_one(name, expected):
    classes = classes_named(name, CATEGORIES)
    first, last = (CATEGORIES[classes.indices[position]] for position in (0, -1))
    assert [classes.name, len(classes.indices), first, last] == expected


@pytest.mark.parametrize(
    ("name", "fact"),
    [
        ("golden retreiver", "'golden retreiver'; the nearest: golden retriever"),
        ("dogg", "the nearest: dog"),
        ("qqqqqqqq", "bird, cat, dog"),
        ("", "''"),
        ("1000", "1000; .* 999"),
        ("-1", "'-1'"),
    ],
)
def test_an_unknown_class_is_refused_with_the_nearest_names(photo, tmp_path, name, fact):
    with pytest.raises(UserError, match=fact):
        heatmap(photo, name, tmp_path / "heat.png", classifier="alexnet", weights=tmp_path / "none.pth")


# Refusals


def test_an_unknown_classifier_is_refused(photo, tmp_path):
    with pytest.raises(UserError, match=r"'vgg61'.* alexnet, vgg16"):
        heatmap(photo, "dog", tmp_path / "heat.png", classifier="vgg61")


def test_a_photo_that_is_hardly_more_than_a_line_is_refused(weights, tmp_path):
    Image.new("RGB", (500, 3)).save(tmp_path / "line.png")
    with pytest.raises(UserError, match=r"line\.png is 500x3"):
        heatmap(tmp_path / "line.png", "dog", tmp_path / "h.png", classifier="alexnet", weights=weights)


@pytest.mark.parametrize("dest", ["photo.png", ".", "photo.png/heat.png"])
def test_a_destination_that_is_the_photo_a_folder_or_not_writable_is_refused(weights, photo, tmp_path, dest):
    before = photo.read_bytes()
    with pytest.raises(UserError, match=str(tmp_path / dest)):
        heatmap(photo, "dog", tmp_path / dest, classifier="alexnet", weights=weights)
    assert photo.read_bytes() == before


@pytest.mark.parametrize(
    "content",
    [
        b"<html>",
        [1, 2],
        {},
        {3: torch.zeros(1)},
        "text for a tensor",
        "whole numbers",
        "another number of classes",
        "not finite",
    ],
    ids=str,
)
def test_weights_of_another_kind_are_refused_by_name(alexnet, photo, tmp_path, content):
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
    with pytest.raises(CheckpointError, match=str(path)):
        heatmap(photo, "dog", tmp_path / "heat.png", classifier="alexnet", weights=path)
    assert not (tmp_path / "heat.png").exists()


def test_half_precision_weights_give_nearly_the_same_peak(alexnet, weights, photo, tmp_path):
    torch.save({name: tensor.half() for name, tensor in alexnet.state_dict().items()}, tmp_path / "half.pth")
    half, full = (
        heatmap(photo, "dog", tmp_path / "heat.png", classifier="alexnet", weights=path)
        for path in (tmp_path / "half.pth", weights)
    )
    assert half.probability == pytest.approx(full.probability, rel=0.05)


# Published weights


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
def test_without_a_file_torchvisions_published_one_is_fetched_and_used(
    monkeypatch, weights, photo, tmp_path, name, url, checksum, num_bytes
):
    requests = []

    def fetch(folder, **published):
        requests.append(published | {"folder": folder})
        return shutil.copy(weights, tmp_path / "fetched.pth")

    monkeypatch.setattr(module, "fetch_published", fetch)
    if name == "alexnet":
        fetched = heatmap(photo, "dog", tmp_path / "heat.png", classifier=name)
        assert fetched == heatmap(photo, "dog", tmp_path / "heat.png", classifier=name, weights=weights)
    else:  # the file is that of another net
        with pytest.raises(CheckpointError, match=r"fetched\.pth does not fit torchvision's vgg16"):
            heatmap(photo, "dog", tmp_path / "heat.png", classifier=name)
    (request,) = requests
    assert (request["urls"], request["checksum"], str(request["folder"])) == ([url], checksum, "downloads")
    assert num_bytes < 1e9 * request["max_size_gb"] < 1.05 * num_bytes
