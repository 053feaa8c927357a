"""The figures of an evaluated net: which images they show, and with which predictions."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from fcn.model import FCN
from pipeline.curves import Curve
from pipeline.distributed.rank import SINGLE
from pipeline.evaluation import confusion, scoring
from pipeline.evaluation.per_image import PerImage
from pipeline.models.predictor import Predictor
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
def confidence(model) -> net_figures.Confidence:
    return lambda image: model(image).softmax(1).max(1)


@pytest.fixture(scope="module")
def scored(shards, model) -> Scored:
    predictor = Predictor(model, shards.classes, SINGLE.device)
    counts = scoring.score_split(predictor, shards, SINGLE, border_width=2)
    images = PerImage.sorted(shards.keys, counts.images.numpy(), {})
    values = scoring.as_json(counts.confusion.scores(), shards.classes, len(shards)) | {"model_sha256": "ab"}
    curve = Curve("fcn8s", "backbone", ({"step": 1, "loss": 2.0, "lr": 0.1},))
    return Scored("fcn8s", values, counts.confusion.hist.numpy(), images, None, curve)


def test_images_are_spread_over_the_split_from_its_first_to_its_last():
    assert net_figures.spread(map(str, range(100)), 3) == ["0", "49", "99"]
    assert net_figures.spread("abcde", 99) == list("abcde")
    assert net_figures.spread("abcdefg", 1) == ["a"]


def test_an_image_is_shown_with_the_networks_best_class_and_its_softmax(shards, model, confidence):
    samples = Dataset(shards)
    for index, seen in zip((0, 3, 6), net_figures.predict(confidence, shards, (0, 3, 6)), strict=True):
        image, label, (key,) = samples[index]
        with torch.no_grad():
            score = model(image)[0].double()
        confidence = (score - torch.logsumexp(score, 0)).exp().numpy()
        assert seen.key == key
        assert np.array_equal(seen.image, image[0].permute(1, 2, 0).numpy())
        assert np.array_equal(seen.label, label[0].numpy())
        assert np.array_equal(seen.prediction, score.argmax(0).numpy())
        assert np.abs(seen.confidence / 255 - confidence.max(0)).max() <= 0.5 / 255 + 1e-6


def test_the_worst_and_best_images_share_none_and_leave_out_an_image_without_a_score():
    scores = {"d": 0.9, "a": math.nan, "c": 0.5, "b": 0.5, "e": 0.1}
    assert net_figures.worst_and_best(scores, 9) == (["e", "b"], ["d", "c"])
    assert net_figures.worst_and_best(scores, 1) == (["e"], ["d"])


def test_the_folder_holds_all_figures_the_counts_and_the_gallery_and_replaces_an_older_one(
    tmp_path, shards, confidence, scored
):
    dest = tmp_path / "figures" / "small" / "fcn8s"
    dest.mkdir(parents=True)
    (dest / "old.png").touch()
    net_figures.write(dest, scored, confidence, shards, 2, 4)
    figures = {"best.png", "class_iu.png", "confusion.png", "curve.png", "predictions.png", "worst.png"}
    assert {path.name for path in dest.iterdir()} == figures | {"confusion.csv", "gallery"}
    for name in figures:
        with Image.open(dest / name) as picture:
            picture.load()
    assert np.array_equal(confusion.read(dest / confusion.FILE), scored.hist)
    opened = gallery.read(dest / gallery.FOLDER)
    assert opened.keys == tuple(shards.keys[i] for i in (0, 2, 4, 6))
    assert opened.model_sha256 == "ab"
    for key, seen in zip(opened.keys, net_figures.predict(confidence, shards, (0, 2, 4, 6)), strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(opened[key], seen, strict=True))
    assert [path.name for path in dest.parent.iterdir()] == ["fcn8s"]


def test_a_drawing_that_fails_leaves_the_older_folder_as_it_was(tmp_path, shards, confidence, scored):
    dest = tmp_path / "fcn8s"
    dest.mkdir()
    (dest / "old.png").touch()
    with pytest.raises(KeyError):
        net_figures.write(dest, replace(scored, values={}), confidence, shards, 2, 4)
    assert [path.name for path in tmp_path.iterdir()] == ["fcn8s"]
    assert [path.name for path in dest.iterdir()] == ["old.png"]


@pytest.mark.parametrize(
    ("lineage", "is_shown"),
    [
        ({"parent": "fcn16s", "parent_sha256": "ab"}, True),
        ({"parent": "fcn16s", "parent_sha256": "cd"}, False),  # trained again since
        ({"parent": "backbone", "parent_sha256": "ab"}, False),
        ({"parent": "fcn32s", "parent_sha256": "ab"}, False),  # not scored
        ({}, False),
    ],
)
def test_bars_stand_beside_the_very_net_that_this_one_was_started_from(
    tmp_path, monkeypatch, scored, lineage, is_shown
):
    monkeypatch.chdir(tmp_path)
    values = {"model_sha256": "ab", "class_iu": {}}
    path = tmp_path / "metrics" / "small" / "fcn16s.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(values))
    made = net_figures.read_scored("small", {"net": "fcn8s"}, scored.hist, scored.images, lineage)
    assert made.parent == (("fcn16s", values) if is_shown else None)
    assert made.curve is None  # it was trained elsewhere
