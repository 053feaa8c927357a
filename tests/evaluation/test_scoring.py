"""Scores of a split: sklearn's for the same pixels, for one worker and many, and their JSON."""

import gc
import hashlib
import io
import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from PIL import Image
from sklearn.metrics import accuracy_score, confusion_matrix, jaccard_score, recall_score

from fcn import IGNORE_LABEL
from fcn.averaging import Averaging
from fcn.metrics import ConfusionMatrix, Scores
from fcn.model import FCN
from pipeline.distributed.rank import SINGLE, Rank
from pipeline.errors import CheckpointError, ShardError, UserError
from pipeline.evaluation import scoring
from pipeline.evaluation.bootstrap import Bootstrap
from pipeline.evaluation.per_image import PerImage
from pipeline.evaluation.scoring import ScoreJob, score_split
from pipeline.models import checkpoint
from pipeline.models.predictor import Predictor
from pipeline.shards import verify
from pipeline.shards.read import Shards, open_shards
from pipeline.shards.sample import Sample
from pipeline.shards.write import write_shards

CLASSES = ("background", "disc", "square", "triangle")
CPU = torch.device("cpu")
WIDTH = 2  # of the band along borders
TINY = {"backbone": "vgg16", "padding": "tight", "width": 1 / 64, "fc6_kernel": 3}
AVERAGING = Averaging((0.5, 1.0, 1.5), flip=True)


def split(dest: Path, labels: list[np.ndarray]) -> Shards:
    """Shards of noise with these labels."""

    def load(key: str) -> Sample:
        label, file = labels[int(key)], io.BytesIO()
        noise = np.random.default_rng(int(key)).integers(0, 256, (*label.shape, 3), np.uint8)
        Image.fromarray(noise).save(file, "JPEG")
        return Sample.checked(key, file.getvalue(), label)

    keys = [str(i) for i in range(len(labels))]
    write_shards(keys, load, dest, split="val", classes=CLASSES, samples_per_shard=2, seed=0)
    return open_shards(dest)


@pytest.fixture
def labels() -> list[np.ndarray]:
    """Labels of five images of different sizes; no pixel is of the last class."""
    random = np.random.Generator(np.random.PCG64(0))
    sizes = ((16, 48), (33, 17), (48, 48), (1, 1), (20, 31))
    labels = [random.integers(0, len(CLASSES) - 1, size, dtype=np.uint8) for size in sizes]
    labels[0][:, :40] = IGNORE_LABEL
    labels[1][:] = IGNORE_LABEL
    return labels


@pytest.fixture
def shards(tmp_path, labels) -> Shards:
    return split(tmp_path / "val", labels)


@pytest.fixture
def model() -> FCN:
    """A net that predicts all classes but `square`, at random."""
    torch.manual_seed(1)
    model = FCN(len(CLASSES), 8, **TINY).eval()
    for layer in (model.score_fr, model.score_pool4, model.score_pool3):
        torch.nn.init.normal_(layer.weight)
    with torch.no_grad():
        model.score_pool3.bias[2] = -1e9
    return model


@pytest.fixture
def predictor(model) -> Predictor:
    return Predictor(model, CLASSES, CPU)


def image_of(shards: Shards, index: int) -> torch.Tensor:
    """(1, 3, H, W), by Pillow."""
    with Image.open(io.BytesIO(shards.read(index)[0])) as photo:
        return torch.from_numpy(np.array(photo)).permute(2, 0, 1)[None]


@torch.no_grad()
def prediction_of(model: FCN, shards: Shards, index: int) -> np.ndarray:
    return model(image_of(shards, index))[0].numpy().argmax(0)


def test_the_scores_of_a_split_are_those_sklearn_gives_for_its_pixels(shards, labels, model, predictor):
    truth, predicted = [], []
    for i, key in enumerate(shards.keys):
        prediction, label = prediction_of(model, shards, i), labels[int(key)]
        assert prediction.shape == label.shape
        truth.append(label[label != IGNORE_LABEL])
        predicted.append(prediction[label != IGNORE_LABEL])
    truth, predicted = np.concatenate(truth), np.concatenate(predicted)
    assert set(predicted) >= {0, 3}  # or the test would show little
    classes = range(len(CLASSES))

    confusion = score_split(predictor, shards, SINGLE, WIDTH).confusion
    assert confusion.hist.tolist() == confusion_matrix(truth, predicted, labels=classes).tolist()
    scores = confusion.scores()
    iu = jaccard_score(truth, predicted, labels=classes, average=None)
    assert scores.class_iu == pytest.approx(iu.tolist())
    assert scores.mean_iu == pytest.approx(iu.mean())
    assert scores.pixel_acc == pytest.approx(accuracy_score(truth, predicted))
    recall = recall_score(
        truth, predicted, labels=[0, 1, 2], average=None, zero_division=0
    )  # 3 is never the truth
    assert scores.mean_acc == pytest.approx(recall.mean())
    weighted = jaccard_score(truth, predicted, labels=classes, average="weighted")
    assert scores.fw_iu == pytest.approx(weighted)


# Counts of each image


def per_class(prediction: np.ndarray, label: np.ndarray) -> list[list[int]]:
    """(3, C) correct, labelled and predicted pixels, where the label is a class."""
    valid = label != IGNORE_LABEL
    prediction, label = prediction[valid], label[valid]
    return [
        [int(((prediction == c) & (label == c)).sum()) for c in range(len(CLASSES))],
        [int((label == c).sum()) for c in range(len(CLASSES))],
        [int((prediction == c).sum()) for c in range(len(CLASSES))],
    ]


def along_borders(label: np.ndarray, width: int) -> np.ndarray:
    """The label where a pixel of another value lies at most `width` rows and columns away, void elsewhere."""
    band = np.full_like(label, IGNORE_LABEL)
    for y, x in np.ndindex(*label.shape):
        around = label[max(0, y - width) : y + width + 1, max(0, x - width) : x + width + 1]
        if (around != label[y, x]).any():
            band[y, x] = label[y, x]
    return band


def test_each_images_counts_are_those_of_its_own_pixels_and_add_up_to_the_matrix(
    tmp_path, labels, model, predictor
):
    labels[4][:, 10:] = 1  # mostly one class, so that the band is not the whole image
    shards = split(tmp_path / "val", labels)
    confusion, images = score_split(predictor, shards, SINGLE, WIDTH)
    for i, key in enumerate(shards.keys):
        prediction, label = prediction_of(model, shards, i), labels[int(key)]
        assert images[i, 0].tolist() == per_class(prediction, label)
        assert images[i, 1].tolist() == per_class(prediction, along_borders(label, WIDTH))
    hist, total = confusion.hist, images.sum(0)[0]
    assert total.tolist() == [hist.diagonal().tolist(), hist.sum(1).tolist(), hist.sum(0).tolist()]
    assert images[:, 1, 1].sum() < images[:, 0, 1].sum()


def test_averaged_scores_are_those_of_the_mean_probability_of_each_pass(shards, labels, model, predictor):
    expected = ConfusionMatrix(len(CLASSES))
    for i, key in enumerate(shards.keys):
        image = image_of(shards, i).float()
        size, total = image.shape[-2:], 0
        for scale in AVERAGING.scales:
            sides = [max(1, round(scale * side)) for side in size]
            resized = torch.nn.functional.interpolate(image, sides, mode="bilinear")
            with torch.no_grad():
                both = model(resized).softmax(1) + model(resized.flip(3)).softmax(1).flip(3)
            total = total + torch.nn.functional.interpolate(both, size, mode="bilinear")
        expected.update(total.argmax(1), torch.from_numpy(labels[int(key)])[None])
    confusion, images = score_split(Predictor(model, CLASSES, CPU, AVERAGING), shards, SINGLE, WIDTH)
    assert torch.equal(confusion.hist, expected.hist)
    assert torch.equal(images[:, 0].sum(0), expected.per_class())
    once = score_split(predictor, shards, SINGLE, WIDTH).confusion.hist
    assert not torch.equal(confusion.hist, once)  # or the test would show little


# JSON


def as_json(predictor: Predictor, shards: Shards) -> dict:
    scores = score_split(predictor, shards, SINGLE, WIDTH).confusion.scores()
    return scoring.as_json(scores, shards.classes, len(shards))


def test_a_class_in_neither_truth_nor_prediction_is_null_and_not_counted(tmp_path, model, predictor):
    with torch.no_grad():
        model.score_pool3.bias[[1, 2, 3]] = -1e9  # all background
    labels = [np.zeros((16, 16), np.uint8), np.zeros((16, 16), np.uint8)]
    labels[1][:8] = 1
    assert as_json(predictor, split(tmp_path / "val", labels)) == {
        "pixel_acc": 0.75,
        "mean_acc": 0.5,
        "mean_iu": 0.375,
        "fw_iu": 0.5625,
        "mean_f1": pytest.approx(3 / 7),
        "mean_precision": 0.75,
        "class_iu": {"background": 0.75, "disc": 0.0, "square": None, "triangle": None},
        "class_f1": {"background": pytest.approx(6 / 7), "disc": 0.0, "square": None, "triangle": None},
        "class_precision": {"background": 0.75, "disc": None, "square": None, "triangle": None},
        "class_recall": {"background": 1.0, "disc": 0.0, "square": None, "triangle": None},
        "num_classes_scored": 2,
        "num_images": 2,
        "averaging": None,
    }


def test_a_split_that_is_all_void_has_no_scores_and_says_so_in_valid_json(tmp_path, predictor):
    shards = split(tmp_path / "val", [np.full((16, 20), IGNORE_LABEL, np.uint8)] * 2)
    values = as_json(predictor, shards)
    counts = score_split(predictor, shards, SINGLE, WIDTH).images.numpy()
    images = PerImage.sorted(shards.keys, counts, {"classes": list(CLASSES), "border_width": WIDTH})
    intervals = scoring.with_uncertainty(images, Bootstrap(100))
    json.dumps(values | intervals, allow_nan=False)
    names = ("pixel_acc", "mean_acc", "mean_iu", "fw_iu", "mean_f1", "mean_precision")
    assert [values[name] for name in names] == [None] * 6
    for name in ("class_iu", "class_f1", "class_precision", "class_recall"):
        assert values[name] == dict.fromkeys(CLASSES)
    assert scoring.as_metrics(values) == {"num_images": 2.0, "num_classes_scored": 0.0}
    bounds = ("mean_iu_low", "mean_iu_high", "pixel_acc_low", "pixel_acc_high", "border_mean_iu")
    assert [intervals[name] for name in bounds] == [None] * 5


def test_the_json_has_intervals_the_scores_along_borders_and_the_images_digest(
    shards, labels, model, predictor
):
    confusion, counts = score_split(predictor, shards, SINGLE, WIDTH)
    images = PerImage.sorted(shards.keys, counts.numpy(), {"classes": list(CLASSES), "border_width": WIDTH})
    values = scoring.with_uncertainty(images, Bootstrap(200, 0.9, 1))
    scores = confusion.scores()
    assert values["mean_iu_low"] <= scores.mean_iu <= values["mean_iu_high"]
    assert values["mean_f1_low"] <= scores.mean_f1 <= values["mean_f1_high"]
    assert values["pixel_acc_low"] <= scores.pixel_acc <= values["pixel_acc_high"]
    borders = ConfusionMatrix(len(CLASSES))
    for i, key in enumerate(shards.keys):
        band = torch.from_numpy(along_borders(labels[int(key)], WIDTH))
        borders.update(torch.from_numpy(prediction_of(model, shards, i)), band)
    assert values["border_mean_iu"] == pytest.approx(borders.scores().mean_iu)
    assert (values["level"], values["border_width"]) == (0.9, WIDTH)
    assert values["keys_sha256"] == hashlib.sha256(b"0\n1\n2\n3\n4\n").hexdigest()
    metrics = scoring.as_metrics(scoring.as_json(scores, CLASSES, 5) | values)
    assert metrics["mean_iu_low"] == values["mean_iu_low"]
    assert "keys_sha256" not in metrics  # MLflow's metrics are numbers


def test_every_score_is_in_the_json_and_every_number_among_mlflows_metrics():
    by_class = ((0.5, math.nan), (0.6, 0.0), (0.7, math.nan), (0.8, 0.9))
    scores = Scores(0.1, 0.2, 0.3, 0.4, 0.45, 0.55, *by_class)
    values = scoring.as_json(scores, ("background", "disc"), 7, AVERAGING)
    assert set(values) == set(vars(scores)) | {"num_images", "num_classes_scored", "averaging"}
    assert values["class_iu"] == {"background": 0.5, "disc": None}
    assert values["class_recall"] == {"background": 0.8, "disc": 0.9}
    assert json.loads(json.dumps(values["averaging"])) == {"scales": [0.5, 1.0, 1.5], "flip": True}
    assert scoring.as_metrics(values) == {
        "pixel_acc": 0.1,
        "mean_acc": 0.2,
        "mean_iu": 0.3,
        "fw_iu": 0.4,
        "mean_f1": 0.45,
        "mean_precision": 0.55,
        "iu/background": 0.5,
        "f1/background": 0.6,
        "f1/disc": 0.0,
        "precision/background": 0.7,
        "recall/background": 0.8,
        "recall/disc": 0.9,
        "num_classes_scored": 1.0,
        "num_images": 7.0,
    }


# Several workers


def save(path: Path, model: FCN) -> Path:
    options = TINY | {"num_classes": model.num_classes, "stride": model.stride}
    content = {"model": options, "classes": list(CLASSES), "lineage": {}, "state_dict": model.state_dict()}
    checkpoint.save(path, "model", content)
    return path


def test_a_worker_does_not_read_again_what_was_verified(tmp_path, shards, predictor, model, monkeypatch):
    open_shards(shards.folder, cache=tmp_path / "verified")
    monkeypatch.setattr(verify, "_difference", lambda *_: pytest.fail("a shard was read whole"))
    path, counts = save(tmp_path / "fcn8s.pt", model), tmp_path / "counts.npz"
    scoring.score_worker(ScoreJob(path, shards.folder, counts, WIDTH, cache=tmp_path / "verified"), SINGLE)
    expected = score_split(predictor, shards, SINGLE, WIDTH).confusion.hist
    assert np.array_equal(np.load(counts)["hist"], expected)


def score_in_a_process(number: int, store: str, job: ScoreJob, world_size: int) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=number, world_size=world_size)
    scoring.score_worker(job, Rank(number, world_size, CPU))
    dist.destroy_process_group()


@pytest.mark.parametrize("world_size", [3, 7])
def test_workers_score_each_image_once_between_them_even_if_some_have_none(
    shards, predictor, monkeypatch, world_size
):
    expected = score_split(predictor, shards, SINGLE, WIDTH)
    monkeypatch.setattr(Rank, "all_reduce", lambda _, value: value)
    shares = [
        score_split(predictor, shards, Rank(number, world_size, CPU), WIDTH) for number in range(world_size)
    ]
    assert torch.equal(sum(share.confusion.hist for share in shares), expected.confusion.hist)
    assert torch.equal(sum(share.images for share in shares), expected.images)


@pytest.mark.parametrize(
    "averaging",
    [pytest.param(Averaging(), id="once"), pytest.param(AVERAGING, id="averaged", marks=pytest.mark.slow)],
)
def test_two_processes_write_the_counts_of_the_whole_split(tmp_path, shards, model, averaging):
    job = ScoreJob(
        save(tmp_path / "fcn8s.pt", model), shards.folder, tmp_path / "counts.npz", WIDTH, averaging
    )
    torch.multiprocessing.spawn(score_in_a_process, (str(tmp_path / "store"), job, 2), nprocs=2)
    expected = score_split(Predictor(model, CLASSES, CPU, averaging), shards, SINGLE, WIDTH)
    with np.load(job.counts) as counts:
        assert counts["hist"].tolist() == expected.confusion.hist.tolist()
        assert counts["images"].tolist() == expected.images.tolist()


def test_a_share_meets_the_others_at_its_end_however_many_images_it_has(shards, predictor, monkeypatch):
    """A collective for each image would hang as soon as one worker has an image more than another."""
    shapes = []
    monkeypatch.setattr(Rank, "all_reduce", lambda _, value: shapes.append(value.shape) or value)
    for number in range(3):
        score_split(predictor, shards, Rank(number, 3, CPU), WIDTH)
    assert shapes == 3 * [(4, 4), (5, 2, 3, 4)]  # the matrix and the counts of five images


@pytest.mark.slow
def test_ray_workers_give_the_same_matrix_and_a_mistake_ends_in_one_message(
    tmp_path, shards, model, predictor
):
    path, folder = save(tmp_path / "fcn8s.pt", model), tmp_path / "runs" / "evaluate-fcn8s"
    workers = {"num_workers": 2, "use_gpu": False, "cpus_per_worker": 1}
    counts = scoring.score_on_workers(path, shards.folder, folder, WIDTH, **workers)
    expected = score_split(predictor, shards, SINGLE, WIDTH)
    assert torch.equal(counts.confusion.hist, expected.confusion.hist)
    assert torch.equal(counts.images, expected.images)
    assert not folder.exists()
    shard = next(shards.folder.glob("*.tar"))
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(UserError, match=f"{shard}: .* bytes, expected") as caught:
        scoring.score_on_workers(path, shards.folder, folder, WIDTH, **workers)
    assert "\n" not in str(caught.value)


# Refusals


def test_an_empty_split_is_refused(shards, predictor):
    empty = Shards(shards.folder, shards.table.slice(0, 0), shards.header)
    with pytest.raises(ShardError, match=str(shards.folder)):
        score_split(predictor, empty, SINGLE, WIDTH)


def test_a_model_of_another_number_of_classes_is_refused_naming_both(shards):
    predictor = Predictor(FCN(21, 32, **TINY), ["a"] * 21, CPU)
    with pytest.raises(CheckpointError, match=r"val.*21 and 4 classes"):
        score_split(predictor, shards, SINGLE, WIDTH)


def test_a_model_of_the_same_classes_in_another_order_is_refused_naming_both(shards, model):
    predictor = Predictor(model, ("background", "square", "disc", "triangle"), CPU, name="fcn8s.pt")
    with pytest.raises(CheckpointError, match=r"class 1 of fcn8s\.pt is square, .*val it is disc"):
        score_split(predictor, shards, SINGLE, WIDTH)


def test_a_prediction_of_another_size_than_the_label_is_refused(shards, predictor, monkeypatch):
    monkeypatch.setattr(Predictor, "predict", lambda *_: torch.zeros(1, 3, 3, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"prediction is \(1, 3, 3\) but label is"):
        score_split(predictor, shards, SINGLE, WIDTH)


def test_a_shard_damaged_since_it_was_opened_is_named(shards, predictor):
    for shard in shards.folder.glob("*.tar"):
        data = bytearray(shard.read_bytes())
        data[600] ^= 1  # in the first image
        shard.write_bytes(data)
    with pytest.raises(ShardError, match=r"\.jpg"):
        score_split(predictor, shards, SINGLE, WIDTH)


def resident() -> int:
    """Bytes of memory of this process."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads Linux's /proc")
def test_memory_does_not_grow_with_the_number_of_images(tmp_path, predictor):
    random = np.random.Generator(np.random.PCG64(0))
    sizes = 20 * random.integers(100, 300, (10, 2)).tolist()
    shards = split(tmp_path / "val", [np.zeros(size, np.uint8) for size in sizes])
    score_split(predictor, shards, SINGLE, WIDTH)  # convolutions cache the sizes they have seen
    before = resident()
    score_split(predictor, shards, SINGLE, WIDTH)
    num_bytes = sum(3 * height * width for height, width in sizes)
    assert resident() - before < num_bytes / 4, f"{num_bytes / 2**20:.0f} MiB of images"
