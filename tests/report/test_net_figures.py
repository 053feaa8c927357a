"""What is drawn of an evaluated net: which images, and what the network makes of them."""

import numpy as np
import pytest
import torch
from PIL import Image

from fcn.model import FCN
from pipeline.curves import Curve
from pipeline.distributed.rank import SINGLE
from pipeline.evaluation import confusion, scoring
from pipeline.evaluation.per_image import PerImage
from pipeline.report import gallery, net_figures
from pipeline.report.net_figures import Scored
from pipeline.shards.dataset import Dataset
from pipeline.shards.read import Shards, open_shards
from tests import small_shards


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Shards:
    return open_shards(small_shards.write(tmp_path_factory.mktemp("shards") / "val", split="val"))


@pytest.fixture(scope="module")
def model() -> FCN:
    """A net whose predictions are chance."""
    torch.manual_seed(1)
    model = FCN(3, 8, backbone="vgg16", padding="tight", width=1 / 64, fc6_kernel=3).eval()
    for layer in (model.score_fr, model.score_pool4, model.score_pool3):
        torch.nn.init.normal_(layer.weight)
    return model


@pytest.fixture(scope="module")
def probability(model) -> net_figures.Probability:
    return lambda image: model(image).softmax(1)


@pytest.fixture(scope="module")
def scored(shards, model) -> Scored:
    counts = scoring.score_split(model, shards, SINGLE, border_width=2)
    images = PerImage.sorted(shards.keys, counts.images.numpy(), {})
    values = scoring.as_json(counts.confusion.scores(), shards.classes, len(shards)) | {"model_sha256": "ab"}
    curve = Curve("fcn8s", "backbone", ({"step": 1, "loss": 2.0, "lr": 0.1},))
    return Scored("fcn8s", values, counts.confusion.hist.numpy(), images, None, curve)


def test_images_are_spread_over_the_split_from_its_first_to_its_last():
    assert net_figures.spread(100, 3) == [0, 49, 99]
    assert net_figures.spread(5, 99) == [0, 1, 2, 3, 4]
    assert net_figures.spread(7, 1) == [0]


def test_an_image_is_shown_with_what_the_network_says_of_it(shards, model, probability):
    samples = Dataset(shards)
    for index, seen in zip((0, 3, 6), net_figures.look(probability, shards, (0, 3, 6)), strict=True):
        image, label, (key,) = samples[index]
        with torch.no_grad():
            score = model(image)[0].double()
        sure = (score - torch.logsumexp(score, 0)).exp().numpy()
        assert seen.key == key
        assert np.array_equal(seen.image, image[0].permute(1, 2, 0).numpy())
        assert np.array_equal(seen.label, label[0].numpy())
        assert np.array_equal(seen.prediction, score.argmax(0).numpy())
        assert np.abs(seen.confidence / 255 - sure.max(0)).max() <= 0.5 / 255 + 1e-6


def test_the_worst_and_best_images_are_those_whose_pixels_say_so(shards, probability, scored):
    scores = {}
    for seen in net_figures.look(probability, shards, range(len(shards))):
        valid = seen.label != 255
        label, prediction = seen.label[valid], seen.prediction[valid]
        ious = [
            ((label == c) & (prediction == c)).sum() / ((label == c) | (prediction == c)).sum()
            for c in range(3)
            if ((label == c) | (prediction == c)).any()
        ]
        scores[seen.key] = np.mean(ious)
    ordered = sorted(scores, key=lambda key: (scores[key], key))
    worst, best = net_figures.worst_and_best(scored.images, 2)
    assert [key for key, _ in worst] == ordered[:2]
    assert [key for key, _ in best] == ordered[:-3:-1]
    assert [score for _, score in worst] == pytest.approx([scores[key] for key in ordered[:2]])


def test_an_image_that_is_all_void_is_neither_worst_nor_best_and_none_is_both():
    counts = np.zeros((4, 2, 3, 2), np.int64)
    counts[1:, :, :, 0] = 10
    images = PerImage(("a", "b", "c", "d"), counts, {})
    worst, best = net_figures.worst_and_best(images, 9)
    assert [key for key, _ in worst] == ["b"]
    assert [key for key, _ in best] == ["c", "d"]


def test_the_folder_holds_all_figures_the_counts_and_the_gallery_and_replaces_an_older_one(
    tmp_path, shards, probability, scored
):
    dest = tmp_path / "figures" / "small" / "fcn8s"
    dest.mkdir(parents=True)
    (dest / "old.png").touch()
    net_figures.draw_all(dest, scored, probability, shards, 2, 4)
    figures = {"best.png", "class_iu.png", "confusion.png", "curve.png", "predictions.png", "worst.png"}
    assert {path.name for path in dest.iterdir()} == figures | {"confusion.csv", "gallery"}
    for name in figures:
        with Image.open(dest / name) as picture:
            picture.load()
    assert np.array_equal(confusion.read(dest / confusion.FILE), scored.hist)
    found = gallery.read(dest / gallery.FOLDER)
    assert found.keys == tuple(shards.keys[i] for i in (0, 2, 4, 6))
    assert found.model_sha256 == "ab"
    for key, seen in zip(found.keys, net_figures.look(probability, shards, (0, 2, 4, 6)), strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(found[key], seen, strict=True))
    assert [path.name for path in dest.parent.iterdir()] == ["fcn8s"]


def test_a_drawing_that_fails_leaves_the_older_folder_as_it_was(tmp_path, shards, probability, scored):
    dest = tmp_path / "fcn8s"
    dest.mkdir()
    (dest / "old.png").touch()
    strange = Scored("fcn8s", {}, scored.hist, scored.images, None, scored.curve)
    with pytest.raises(KeyError):
        net_figures.draw_all(dest, strange, probability, shards, 2, 4)
    assert [path.name for path in tmp_path.iterdir()] == ["fcn8s"]
    assert [path.name for path in dest.iterdir()] == ["old.png"]
