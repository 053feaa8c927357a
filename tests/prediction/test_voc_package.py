"""`fcn submit`: only predictions that VOC's server scores are packed, and VOC's own rules give them our scores."""

import io
import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fcn import voc as voc_classes
from fcn.metrics import ConfusionMatrix
from pipeline.cli.main import parser
from pipeline.errors import DatasetError, UserError
from pipeline.prediction.predict import legend
from pipeline.prediction.voc_package import submit
from pipeline.shards.labels import decode_label, encode_label
from tests.photo_net import OPTIONS, encoded, save_model

SIZES = {"2007_000001": (5, 7), "2007_000002": (6, 4), "2008_000003": (3, 3)}


@pytest.fixture
def voc(tmp_path) -> Path:
    """A VOC2012 folder of three images, and a list `test` of them; no labels, as the published one has none."""
    root = tmp_path / "VOC2012"
    (root / "ImageSets" / "Segmentation").mkdir(parents=True)
    (root / "JPEGImages").mkdir()
    for key, (height, width) in SIZES.items():
        Image.new("RGB", (width, height), "red").save(root / "JPEGImages" / f"{key}.jpg")
    (root / "ImageSets" / "Segmentation" / "test.txt").write_text("\n".join(reversed(SIZES)) + "\n")
    return root


@pytest.fixture
def seen(tmp_path) -> Path:
    """The folder that `fcn predict` writes for these images."""
    folder, rng = tmp_path / "seen", np.random.default_rng(0)
    (folder / "overlay").mkdir(parents=True)
    for key, size in SIZES.items():
        (folder / f"{key}.png").write_bytes(encode_label(rng.integers(0, 21, size, np.uint8)))
    (folder / "overlay" / "2007_000001.png").write_text("a picture")
    (folder / "classes.json").write_text("[]")
    return folder


def pack(source: Path, root: Path, dest: Path, split: str = "test", competition: str = "comp6") -> int:
    return submit(source, root, split, dest, competition=competition, side=1000)


def unpacked(dest: Path) -> dict[str, bytes]:
    with tarfile.open(dest) as tar:
        return {member.name: tar.extractfile(member).read() for member in tar}


def test_the_tar_holds_each_png_untouched_where_vocs_server_looks(voc, seen, tmp_path):
    for competition in ("comp5", "comp6"):
        assert pack(seen, voc, tmp_path / "results.tar", competition=competition) == 3
        assert unpacked(tmp_path / "results.tar") == {
            f"results/VOC2012/Segmentation/{competition}_test_cls/{key}.png": (
                seen / f"{key}.png"
            ).read_bytes()
            for key in SIZES
        }


def test_the_same_predictions_give_the_same_bytes_wherever_and_whenever(voc, seen, tmp_path):
    pack(seen, voc, tmp_path / "one.tar")
    shutil.copytree(seen, tmp_path / "copy")  # with new times, and in another order on the disk
    for path in sorted((tmp_path / "copy").glob("*.png")):
        path.write_bytes(path.read_bytes())
        path.chmod(0o600)
    pack(tmp_path / "copy", voc, tmp_path / "two.tar")
    assert (tmp_path / "one.tar").read_bytes() == (tmp_path / "two.tar").read_bytes()
    with tarfile.open(tmp_path / "one.tar") as tar:
        assert {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode) for m in tar} == {(0, 0, 0, "", "", 0o644)}


def with_other_palette(label: np.ndarray) -> bytes:
    image = Image.fromarray(label)
    image.putpalette(bytes(range(256)) * 3)
    return encoded(image)


BLANK = np.zeros((6, 4), np.uint8)
FAULTS = {
    "no prediction": None,
    "not in the list": encode_label(BLANK),
    "not VOC's palette": with_other_palette(BLANK),
    "mode L, expected P": encoded(BLANK),
    "mode RGB": encoded(Image.fromarray(BLANK).convert("RGB")),
    "index 21, expected 0..20": encode_label(BLANK + 21),
    "index 255, expected 0..20": encode_label(BLANK + 255),
    "not of its image's size": encode_label(BLANK.T),
    "damaged PNG": encode_label(BLANK)[:-20],
    "not a PNG": b"text",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_prediction_that_voc_would_not_score_is_refused_by_id_and_reason(voc, seen, tmp_path, fault):
    key, data = ("2009_000009" if fault == "not in the list" else "2007_000002"), FAULTS[fault]
    if data is None:
        (seen / f"{key}.png").unlink()
    else:
        (seen / f"{key}.png").write_bytes(data)
    with pytest.raises(UserError) as caught:
        pack(seen, voc, tmp_path / "results.tar")
    assert fault in str(caught.value)
    assert key in str(caught.value)
    assert not {other for other in SIZES if other != key and other in str(caught.value)}
    assert not (tmp_path / "results.tar").exists()


def test_every_fault_is_named_at_once(voc, seen, tmp_path):
    (seen / "2007_000001.png").unlink()
    (seen / "2007_000002.png").write_bytes(b"text")
    (voc / "JPEGImages" / "2008_000003.jpg").unlink()
    with pytest.raises(UserError) as caught:
        pack(seen, voc, tmp_path / "results.tar")
    for key in ("2007_000001", "2007_000002", "2008_000003"):
        assert key in str(caught.value)


@pytest.mark.parametrize(
    ("source", "dest", "options", "words"),
    [
        ("seen", "results.zip", {}, "results.zip"),
        ("seen", "results.tar", {"competition": "comp7"}, "comp7"),
        ("seen", "results.tar", {"split": "tset"}, "tset"),
        ("none.pt", "results.tar", {}, "none.pt is missing"),
    ],
)
@pytest.mark.usefixtures("seen")
def test_a_mistaken_argument_is_refused_by_name(voc, tmp_path, source, dest, options, words):
    with pytest.raises(UserError, match=words):
        pack(tmp_path / source, voc, tmp_path / dest, **options)
    assert not list(tmp_path.glob("results*"))


def test_a_model_is_run_on_the_lists_images(voc, model, tmp_path, capsys):
    arguments = parser().parse_args(["submit", str(model), str(tmp_path / "results.tar"), "--voc", str(voc)])
    arguments.run(arguments)
    assert "3 predictions of test for comp6" in capsys.readouterr().out
    for name, png in unpacked(tmp_path / "results.tar").items():
        assert decode_label(png, "").shape == SIZES[Path(name).stem]
    (voc / "JPEGImages" / "2007_000001.jpg").unlink()
    with pytest.raises(DatasetError, match=r"1 of 3 .*2007_000001"):
        pack(model, voc, tmp_path / "results.tar")


@pytest.mark.parametrize("is_folder", [True, False])
def test_a_net_whose_classes_have_other_indices_than_vocs_is_refused(voc, seen, net, tmp_path, is_folder):
    names = ["background", "cat", "dog"]
    source = seen if is_folder else save_model(tmp_path / "pets.pt", net, OPTIONS, names)
    (seen / "classes.json").write_text(json.dumps(legend(names)))
    with pytest.raises(UserError, match=r"cat is class 1, VOC's 8.*cat, dog"):
        pack(source, voc, tmp_path / "results.tar")
    assert not (tmp_path / "results.tar").exists()


@pytest.mark.parametrize(("names", "warned"), [(voc_classes.CLASSES, ""), (["background", "chat"], "chat")])
def test_classes_that_voc_does_not_have_are_named(voc, seen, tmp_path, capsys, names, warned):
    (seen / "classes.json").write_text(json.dumps(legend(names)))
    assert pack(seen, voc, tmp_path / "results.tar") == 3
    assert bool(warned) == bool(error := capsys.readouterr().err)
    assert warned in error


def kit_accuracies(labels: dict[str, np.ndarray], predictions: dict[str, np.ndarray]) -> np.ndarray:
    """As VOCevalseg.m of VOC's development kit has it: percent, by class."""
    confusion = np.zeros((21, 21))
    for key, label in labels.items():
        resim, locs = predictions[key].astype(int), label < 255
        sumim = 1 + label.astype(int) + resim * 21
        hs = np.array([np.count_nonzero(sumim[locs] == bin_) for bin_ in range(1, 21 * 21 + 1)])
        confusion += hs.reshape(21, 21, order="F")
    accuracies = np.zeros(21)
    for j in range(21):
        gtj, resj, gtjresj = confusion[j].sum(), confusion[:, j].sum(), confusion[j, j]
        accuracies[j] = 100 * gtjresj / (gtj + resj - gtjresj)
    return accuracies


def test_vocs_own_rules_score_the_package_as_we_do(real_data, tmp_path):
    """On real labels, predicted with mistakes: shifted, and a fifth of the pixels another class."""
    root = tmp_path / "VOC2012"
    shutil.copytree(real_data / "voc" / "ImageSets", root / "ImageSets")
    (root / "JPEGImages").symlink_to(real_data / "voc" / "JPEGImages")
    files = sorted((real_data / "voc" / "SegmentationClass").glob("*.png"))
    present = [
        path for path in files if (real_data / "voc" / "JPEGImages" / path.with_suffix(".jpg").name).is_file()
    ]
    chosen, rng, seen = present[:: len(present) // 40][:40], np.random.default_rng(0), tmp_path / "seen"
    seen.mkdir()
    (root / "ImageSets" / "Segmentation" / "some.txt").write_text("\n".join(path.stem for path in chosen))
    labels, ours = {}, ConfusionMatrix(21)
    for path in chosen:
        with Image.open(path) as image:
            label = labels[path.stem] = np.array(image)
        wrong = np.where(
            rng.random(label.shape) < 0.2, rng.integers(0, 21, label.shape), np.roll(label, 9, 1)
        )
        prediction = np.where(wrong == 255, 0, wrong).astype(np.uint8)
        (seen / path.name).write_bytes(encode_label(prediction))
        ours.update(torch.from_numpy(prediction), torch.from_numpy(label))
    assert pack(seen, root, tmp_path / "results.tar", split="some") == 40
    predictions = {}
    for name, png in unpacked(tmp_path / "results.tar").items():
        with Image.open(io.BytesIO(png)) as image:
            predictions[Path(name).stem] = np.array(image)
    accuracies, scores = kit_accuracies(labels, predictions), ours.scores()
    assert 10 < accuracies.mean() < 90
    np.testing.assert_allclose(100 * np.array(scores.class_iu), accuracies, rtol=1e-12)
    assert 100 * scores.mean_iu == pytest.approx(accuracies.mean(), rel=1e-12)
