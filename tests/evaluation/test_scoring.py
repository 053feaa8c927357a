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
from pipeline.evaluation.scoring import ScoreJob
from pipeline.models import checkpoint
from pipeline.shards.read import Shards, open_shards
from pipeline.shards.sample import Sample
from pipeline.shards.write import write_shards

CLASSES = ("background", "disc", "square", "triangle")
CPU = torch.device("cpu")
WIDTH = 2  # of the band along borders
TINY = {"backbone": "vgg16", "padding": "tight", "width": 1 / 64, "fc6_kernel": 3}


def split(dest: Path, labels: list[np.ndarray], classes: tuple[str, ...] = CLASSES) -> Shards:
    """Shards of noise with these labels."""

    def load(key: str) -> Sample:
        label, file = labels[int(key)], io.BytesIO()
        noise = np.random.Generator(np.random.PCG64(int(key))).integers(
            0, 256, (*label.shape, 3), dtype=np.uint8
        )
        Image.fromarray(noise).save(file, "JPEG")
        return Sample.checked(key, file.getvalue(), label)

    keys = [str(i) for i in range(len(labels))]
    write_shards(keys, load, dest, split="val", classes=classes, samples_per_shard=2, seed=0)
    return open_shards(dest)


@pytest.fixture
def labels() -> list[np.ndarray]:
    """Of five images, each of another size; the last class is never there."""
    random = np.random.Generator(np.random.PCG64(0))
    sizes = ((16, 48), (33, 17), (48, 48), (1, 1), (20, 31))
    labels = [random.integers(0, len(CLASSES) - 1, size, dtype=np.uint8) for size in sizes]
    labels[0][:, :40] = IGNORE_LABEL
    labels[1][:] = IGNORE_LABEL
    return labels


@pytest.fixture
def model() -> FCN:
    """A net that predicts all classes but `square`, which ones is chance."""
    torch.manual_seed(1)
    model = FCN(len(CLASSES), 8, **TINY).eval()
    for layer in (model.score_fr, model.score_pool4, model.score_pool3):
        torch.nn.init.normal_(layer.weight)
    with torch.no_grad():
        model.score_pool3.bias[2] = -1e9
    return model


def test_the_scores_of_a_split_are_those_sklearn_gives_for_its_pixels(tmp_path, labels, model):
    shards = split(tmp_path / "val", labels)
    truth, predicted = [], []
    for i in range(len(shards)):
        jpeg, _ = shards.read(i)
        label = labels[int(shards.keys[i])]
        with Image.open(io.BytesIO(jpeg)) as photo:
            image = torch.from_numpy(np.array(photo)).permute(2, 0, 1)[None]
        with torch.no_grad():
            prediction = model(image)[0].numpy().argmax(0)
        assert prediction.shape == label.shape
        truth.append(label[label != IGNORE_LABEL])
        predicted.append(prediction[label != IGNORE_LABEL])
    truth, predicted = np.concatenate(truth), np.concatenate(predicted)
    assert set(predicted) >= {0, 3}  # or the test would show little
    classes = range(len(CLASSES))

    confusion = scoring.score_split(model, shards, SINGLE, WIDTH).confusion
    assert confusion.hist.tolist() == confusion_matrix(truth, predicted, labels=classes).tolist()
    scores = confusion.scores()
    iu = jaccard_score(truth, predicted, labels=classes, average=None)
    assert scores.class_iu == pytest.approx(iu.tolist())
    assert scores.mean_iu == pytest.approx(iu.mean())
    assert scores.pixel_acc == pytest.approx(accuracy_score(truth, predicted))
    acc = recall_score(
        truth, predicted, labels=[0, 1, 2], average=None, zero_division=0
    )  # 3 is never the truth
    assert scores.mean_acc == pytest.approx(acc.mean())
    weighted = jaccard_score(truth, predicted, labels=classes, average="weighted")
    assert scores.fw_iu == pytest.approx(weighted)


def test_a_class_in_neither_truth_nor_prediction_is_null_and_not_counted(tmp_path, model):
    with torch.no_grad():
        model.score_pool3.bias[[1, 2, 3]] = -1e9  # all background
    labels = [np.zeros((16, 16), np.uint8), np.zeros((16, 16), np.uint8)]
    labels[1][:8] = 1
    shards = split(tmp_path / "val", labels)
    values = scoring.as_json(
        scoring.score_split(model, shards, SINGLE, WIDTH).confusion.scores(), shards.classes, 2
    )
    assert values == {
        "pixel_acc": 0.75,
        "mean_acc": 0.5,
        "mean_iu": 0.375,
        "fw_iu": 0.5625,
        "class_iu": {"background": 0.75, "disc": 0.0, "square": None, "triangle": None},
        "num_classes_scored": 2,
        "num_images": 2,
    }


def test_a_split_that_is_all_void_has_no_scores_and_says_so_in_valid_json(tmp_path, model):
    shards = split(tmp_path / "val", [np.full((16, 20), IGNORE_LABEL, np.uint8)] * 2)
    values = scoring.as_json(
        scoring.score_split(model, shards, SINGLE, WIDTH).confusion.scores(), shards.classes, 2
    )
    scoring.write_json(tmp_path / "a.json", values)

    def refuse(constant: str):
        raise AssertionError(constant)

    found = json.loads((tmp_path / "a.json").read_text(), parse_constant=refuse)  # NaN is no JSON
    assert [found[name] for name in ("pixel_acc", "mean_acc", "mean_iu", "fw_iu")] == [None] * 4
    assert found["class_iu"] == dict.fromkeys(CLASSES)
    assert found["num_images"] == 2
    assert scoring.as_metrics(found) == {"num_images": 2.0, "num_classes_scored": 0.0}


# What is kept of each image


def counted(prediction: np.ndarray, label: np.ndarray) -> list[list[int]]:
    """(3, C) right, labelled and predicted pixels, where the label is a class; one comparison after the other."""
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


def test_each_images_counts_are_those_of_its_own_pixels_and_add_up_to_the_matrix(tmp_path, labels, model):
    labels[4][:, 10:] = 1  # of one class but for a part, so that the band is not all of it
    shards = split(tmp_path / "val", labels)
    confusion, images = scoring.score_split(model, shards, SINGLE, WIDTH)
    for i, key in enumerate(shards.keys):
        label = labels[int(key)]
        with Image.open(io.BytesIO(shards.read(i)[0])) as photo:
            image = torch.from_numpy(np.array(photo)).permute(2, 0, 1)[None]
        prediction = scoring.predict(model, image)[0].numpy()
        assert images[i, 0].tolist() == counted(prediction, label)
        assert images[i, 1].tolist() == counted(prediction, along_borders(label, WIDTH))
    hist, total = confusion.hist, images.sum(0)[0]
    assert total.tolist() == [hist.diagonal().tolist(), hist.sum(1).tolist(), hist.sum(0).tolist()]
    assert images[:, 1, 1].sum() < images[:, 0, 1].sum()


def test_the_json_has_intervals_the_borders_scores_and_says_which_images(tmp_path, labels, model):
    shards = split(tmp_path / "val", labels)
    confusion, counts = scoring.score_split(model, shards, SINGLE, WIDTH)
    images = PerImage.sorted(shards.keys, counts.numpy(), {"classes": list(CLASSES), "border_width": WIDTH})
    values = scoring.with_uncertainty(images, Bootstrap(200, 0.9, 1))
    scores = confusion.scores()
    assert values["mean_iu_low"] <= scores.mean_iu <= values["mean_iu_high"]
    assert values["pixel_acc_low"] <= scores.pixel_acc <= values["pixel_acc_high"]
    borders = ConfusionMatrix(len(CLASSES))
    for i in range(len(shards)):
        label = labels[int(shards.keys[i])]
        with Image.open(io.BytesIO(shards.read(i)[0])) as photo:
            image = torch.from_numpy(np.array(photo)).permute(2, 0, 1)[None]
        borders.update(scoring.predict(model, image), torch.from_numpy(along_borders(label, WIDTH))[None])
    assert values["border_mean_iu"] == pytest.approx(borders.scores().mean_iu)
    assert (values["level"], values["border_width"]) == (0.9, WIDTH)
    assert values["keys_sha256"] == hashlib.sha256(b"0\n1\n2\n3\n4\n").hexdigest()
    reached = scoring.as_metrics(scoring.as_json(scores, CLASSES, 5) | values)
    assert reached["mean_iu_low"] == values["mean_iu_low"]
    assert "keys_sha256" not in reached  # MLflow's metrics are numbers


def test_what_could_not_be_scored_has_no_interval_in_the_json(tmp_path, model):
    shards = split(tmp_path / "val", [np.full((16, 20), IGNORE_LABEL, np.uint8)] * 2)
    counts = scoring.score_split(model, shards, SINGLE, WIDTH).images.numpy()
    images = PerImage.sorted(shards.keys, counts, {"classes": list(CLASSES), "border_width": WIDTH})
    values = scoring.with_uncertainty(images, Bootstrap(100))
    names = ("mean_iu_low", "mean_iu_high", "pixel_acc_low", "pixel_acc_high", "border_mean_iu")
    assert [values[name] for name in names] == [None] * 5


# Averages over scales and mirror images

AVERAGING = Averaging((0.5, 1.0, 1.5), flip=True)


def test_averaged_scores_are_those_of_the_mean_probability_of_each_pass(tmp_path, labels, model):
    shards = split(tmp_path / "val", labels)
    expected = ConfusionMatrix(len(CLASSES))
    for i, key in enumerate(shards.keys):
        with Image.open(io.BytesIO(shards.read(i)[0])) as photo:
            image = torch.from_numpy(np.array(photo)).permute(2, 0, 1)[None].float()
        size, total = image.shape[-2:], 0
        for scale in (0.5, 1.0, 1.5):
            sides = [max(1, round(scale * side)) for side in size]
            resized = torch.nn.functional.interpolate(image, sides, mode="bilinear")
            with torch.no_grad():
                both = model(resized).softmax(1) + model(resized.flip(3)).softmax(1).flip(3)
            total = total + torch.nn.functional.interpolate(both, size, mode="bilinear")
        expected.update(total.argmax(1), torch.from_numpy(labels[int(key)])[None])
    found = scoring.score_split(model, shards, SINGLE, WIDTH, AVERAGING)
    assert torch.equal(found.confusion.hist, expected.hist)
    assert torch.equal(found.images[:, 0].sum(0), expected.per_class())
    once = scoring.score_split(model, shards, SINGLE, WIDTH).confusion.hist
    assert not torch.equal(found.confusion.hist, once)  # or the test would show little
    assert torch.equal(scoring.score_split(model, shards, SINGLE, WIDTH, Averaging()).confusion.hist, once)


def test_the_json_says_over_what_was_averaged_and_mlflow_gets_no_number_of_it():
    said = scoring.about_averaging(AVERAGING)
    assert said == {"averaging": {"scales": [0.5, 1.0, 1.5], "flip": True}}
    assert scoring.about_averaging(Averaging()) == {"averaging": None}
    assert scoring.as_metrics(said | {"class_iu": {}}) == {}


# Over workers


def score_in_a_process(rank: int, meeting: str, job: ScoreJob, world: int) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=world)
    scoring.score_worker(job, Rank(rank, world, CPU))
    dist.destroy_process_group()


@pytest.mark.parametrize("world", [2, 3, 7])
def test_workers_score_each_image_once_between_them_even_if_some_have_none(tmp_path, labels, model, world):
    shards = split(tmp_path / "val", labels)  # five images
    save(tmp_path / "fcn8s.pt", model)
    alone = scoring.score_split(model, shards, SINGLE, WIDTH)
    seen = []
    for rank in range(world):  # without the meeting at the end, which needs real processes
        place = Rank(rank, world, CPU)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Rank, "total", lambda _, value: value)
            seen.append(scoring.score_split(model, shards, place, WIDTH))
    assert torch.equal(sum(each.confusion.hist for each in seen), alone.confusion.hist)
    assert torch.equal(sum(each.images for each in seen), alone.images)
    if world == 2:
        for averaging in (Averaging(), AVERAGING):
            job = ScoreJob(tmp_path / "fcn8s.pt", shards.folder, tmp_path / "counts.npz", WIDTH, averaging)
            meeting = str(tmp_path / f"meeting-{averaging.flip}")
            torch.multiprocessing.spawn(score_in_a_process, (meeting, job, world), nprocs=world)
            alone = scoring.score_split(model, shards, SINGLE, WIDTH, averaging)
            with np.load(job.counts) as counts:
                assert counts["hist"].tolist() == alone.confusion.hist.tolist()
                assert counts["images"].tolist() == alone.images.tolist()


def test_a_share_meets_the_others_at_its_end_however_many_images_it_has(tmp_path, labels, model, monkeypatch):
    """A meeting for each image would hang as soon as one worker has an image more than another."""
    shards, meetings = split(tmp_path / "val", labels), []
    monkeypatch.setattr(Rank, "total", lambda _, value: meetings.append(value.shape) or value)
    for rank in range(3):
        scoring.score_split(model, shards, Rank(rank, 3, CPU), WIDTH)
    assert meetings == 3 * [(4, 4), (5, 2, 3, 4)]  # the matrix and the counts of five images


@pytest.mark.slow
def test_ray_workers_give_the_same_matrix_and_a_mistake_ends_in_one_message(tmp_path, labels, model):
    shards, path = split(tmp_path / "val", labels), tmp_path / "fcn8s.pt"
    save(path, model)
    workers = {"num_workers": 2, "use_gpu": False, "cpus_per_worker": 1}
    found = scoring.score_on_workers(
        path, shards.folder, tmp_path / "runs" / "evaluate-fcn8s", WIDTH, **workers
    )
    alone = scoring.score_split(model, shards, SINGLE, WIDTH)
    assert torch.equal(found.confusion.hist, alone.confusion.hist)
    assert torch.equal(found.images, alone.images)
    assert not (tmp_path / "runs" / "evaluate-fcn8s").exists()
    shard = next(shards.folder.glob("*.tar"))
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(UserError, match=f"{shard}: .* bytes, expected") as caught:
        scoring.score_on_workers(path, shards.folder, tmp_path / "runs" / "evaluate-fcn8s", WIDTH, **workers)
    assert "\n" not in str(caught.value)


# What is refused


def test_an_empty_split_is_refused(tmp_path, labels, model):
    shards = split(tmp_path / "val", labels)
    with pytest.raises(ShardError, match="val holds no image to evaluate on"):
        scoring.score_split(
            model, Shards(shards.folder, shards.table.slice(0, 0), shards.header), SINGLE, WIDTH
        )


def test_a_model_of_another_number_of_classes_is_refused_naming_both(tmp_path, labels):
    shards = split(tmp_path / "val", labels)
    with pytest.raises(CheckpointError, match=r"tells 21 classes apart, .*val has 4"):
        scoring.score_split(FCN(21, 32, **TINY), shards, SINGLE, WIDTH)


def test_a_prediction_of_another_size_than_the_label_is_refused(tmp_path, labels, model, monkeypatch):
    shards = split(tmp_path / "val", labels)
    monkeypatch.setattr(scoring, "predict", lambda *_: torch.zeros(1, 3, 3, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"prediction is \(1, 3, 3\) but label is"):
        scoring.score_split(model, shards, SINGLE, WIDTH)


def test_a_shard_damaged_since_it_was_opened_is_named(tmp_path, labels, model):
    shards = split(tmp_path / "val", labels)
    for shard in shards.folder.glob("*.tar"):
        data = bytearray(shard.read_bytes())
        data[600] ^= 1  # in the first image
        shard.write_bytes(data)
    with pytest.raises(ShardError, match=r"\.jpg .*`dvc repro -f shard`"):
        scoring.score_split(model, shards, SINGLE, WIDTH)


def resident() -> int:
    """Bytes of memory this process has."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="asks Linux")
def test_memory_does_not_grow_with_the_number_of_images(tmp_path, model):
    random = np.random.Generator(np.random.PCG64(0))
    sizes = 20 * random.integers(100, 300, (10, 2)).tolist()
    shards = split(tmp_path / "val", [np.zeros(size, np.uint8) for size in sizes])
    scoring.score_split(model, shards, SINGLE, WIDTH)  # convolutions remember the sizes they have seen
    before = resident()
    scoring.score_split(model, shards, SINGLE, WIDTH)
    images = sum(3 * height * width for height, width in sizes)
    assert resident() - before < images / 4, f"{images / 2**20:.0f} MiB of images"


# The model's file


def save(path: Path, net: FCN, **changes) -> str:
    content = {
        "model": TINY | {"num_classes": net.num_classes, "stride": net.stride},
        "classes": list(CLASSES),
        "lineage": {"net": "fcn8s"},
        "state_dict": net.state_dict(),
    }
    return checkpoint.save(path, "model", content | changes)


def test_a_saved_model_predicts_as_before_with_dropout_off(tmp_path, model):
    digest = save(tmp_path / "fcn8s.pt", model)
    loaded, about, found = scoring.load_model(tmp_path / "fcn8s.pt", CPU)
    assert not loaded.training
    assert found == digest
    assert about == {"model": TINY | {"num_classes": 4, "stride": 8}} | {
        "classes": list(CLASSES),
        "lineage": {"net": "fcn8s"},
        "trained_on": None,  # what a file says that was written before models said it
    }
    image = torch.randint(0, 256, (2, 3, 20, 30), dtype=torch.uint8)
    prediction = scoring.predict(loaded, image)
    assert prediction.shape == (2, 20, 30)
    assert torch.equal(prediction, model(image).argmax(1))


@pytest.mark.parametrize(
    "changes",
    [
        {"model": TINY | {"num_classes": 5, "stride": 8}},
        {"model": TINY | {"num_classes": 4, "stride": 16}},
        {"model": TINY | {"num_classes": 4, "stride": 8, "width": 1 / 32}},
        {"model": TINY | {"num_classes": 4, "stride": 8, "colour": "red"}},
        {"model": TINY | {"num_classes": 4, "stride": 8, "backbone": "vgg61"}},
        {"model": {"num_classes": 4, "stride": 4}},
        {"state_dict": {}},
    ],
)
def test_a_model_file_that_does_not_fit_is_refused_by_name_in_one_line(tmp_path, model, changes):
    save(tmp_path / "fcn8s.pt", model, **changes)
    with pytest.raises(CheckpointError) as caught:
        scoring.load_model(tmp_path / "fcn8s.pt", CPU)
    assert str(caught.value).startswith(
        f"{tmp_path / 'fcn8s.pt'} does not fit the networks of this version: "
    )
    assert "\n" not in str(caught.value)


def test_a_model_file_of_another_format_or_kind_is_refused(tmp_path, model):
    path = tmp_path / "fcn8s.pt"
    torch.save(model.state_dict(), path)
    with pytest.raises(CheckpointError, match=r"fcn8s\.pt is no file of format"):
        scoring.load_model(path, CPU)
    checkpoint.save(path, "model", {"state_dict": {}})
    with pytest.raises(CheckpointError, match=r"fcn8s\.pt does not fit .*'model'"):
        scoring.load_model(path, CPU)
    checkpoint.save(path, "backbone", {})
    with pytest.raises(CheckpointError, match="holds a backbone, expected a model"):
        scoring.load_model(path, CPU)


# What is written


def test_the_json_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "metrics" / "sample" / "fcn8s.json"
    scoring.write_json(path, {"mean_iu": 0.5})

    def fail(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", fail)
        with pytest.raises(OSError, match="No space"):
            scoring.write_json(path, {"mean_iu": 0.75})
    assert json.loads(path.read_text()) == {"mean_iu": 0.5}
    scoring.write_json(path, {"mean_iu": 0.75})
    assert json.loads(path.read_text()) == {"mean_iu": 0.75}
    assert [file.name for file in path.parent.iterdir()] == ["fcn8s.json"]


def test_every_score_reaches_json_and_mlflow_by_itself():
    scores = Scores(0.1, 0.2, 0.3, 0.4, (0.5, math.nan))
    values = scoring.as_json(scores, ("background", "disc"), 7)
    assert set(values) == set(vars(scores)) | {"num_images", "num_classes_scored"}
    assert values["class_iu"] == {"background": 0.5, "disc": None}
    assert scoring.as_metrics(values) == {
        "pixel_acc": 0.1,
        "mean_acc": 0.2,
        "mean_iu": 0.3,
        "fw_iu": 0.4,
        "iu/background": 0.5,
        "num_classes_scored": 1.0,
        "num_images": 7.0,
    }
