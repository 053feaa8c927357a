"""`fcn predict`: the files it writes, the photos it takes and refuses."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.cli.main import parser
from pipeline.errors import CheckpointError, UserError
from pipeline.models.predictor import Predictor
from pipeline.prediction import photos, predict
from pipeline.prediction.photos import find_photos, read_photo
from pipeline.prediction.predict import blended, predict_photos
from tests.conftest import ROOT
from tests.photo_net import indices_of, label_of, noise, scores_of, write_photo


def run(model, *inputs, output, **options):
    return predict_photos(Predictor.load(model), inputs, output, side=1000, **options)


def names(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


# Results


def test_real_photos_get_the_models_argmax_in_vocs_palette_at_their_size(net, model, real_data, tmp_path):
    files = sorted((real_data / "voc" / "JPEGImages").glob("*.jpg"))[:3]
    assert run(model, *files, output=tmp_path) == []
    assert names(tmp_path) == sorted([*(f"{file.stem}.png" for file in files), "classes.json"])
    predicted = set()
    for file in files:
        expected = label_of(net, np.asarray(Image.open(file).convert("RGB")))
        np.testing.assert_array_equal(indices_of(tmp_path / f"{file.stem}.png"), expected)
        predicted |= set(np.unique(expected))
    assert predicted == {0, 1, 2}


def test_scores_are_the_models_in_half_precision(net, model, tmp_path):
    run(model, write_photo(tmp_path / "a.png"), output=tmp_path / "out", scores=True)
    with np.load(tmp_path / "out" / "scores" / "a.npz") as file:
        score = file["score"]
    assert score.dtype == np.float16
    np.testing.assert_array_equal(score, scores_of(net, noise(40, 60)).numpy().astype(np.float16))


def test_an_overlay_is_the_photo_with_the_classes_colours_and_the_photo_itself_at_background(model, tmp_path):
    run(model, write_photo(tmp_path / "a.png"), output=tmp_path / "out", overlay=True)
    with Image.open(tmp_path / "out" / "overlay" / "a.png") as picture:
        assert (picture.size, picture.mode) == ((60, 40), "RGB")
    photo, label = noise(2, 3), np.array([[0, 1, 2], [0, 0, 1]], np.uint8)
    mixed = np.asarray(blended(photo, label))
    for y, x in np.ndindex(2, 3):
        colour = {0: photo[y, x], 1: (128, 0, 0), 2: (0, 128, 0)}[int(label[y, x])]
        np.testing.assert_allclose(mixed[y, x], 0.4 * photo[y, x] + 0.6 * np.array(colour), atol=0.51)


def test_the_legend_names_index_class_and_colour(model, tmp_path):
    run(model, write_photo(tmp_path / "a.png"), output=tmp_path / "out")
    assert json.loads((tmp_path / "out" / "classes.json").read_text("utf-8")) == [
        {"index": 0, "name": "background", "colour": "#000000"},
        {"index": 1, "name": "chat", "colour": "#800000"},
        {"index": 2, "name": "été", "colour": "#008000"},
    ]


@pytest.mark.parametrize(("kind", "other"), [("onnx", "torch"), ("model", "onnxruntime")])
def test_a_net_runs_without_packages_it_does_not_need(request, tmp_path, kind, other):
    unneeded = {other, "torchvision", "ray", "mlflow", "pyarrow", "scipy", "pydantic"}
    code = (
        "import sys; from pipeline.cli.main import main; sys.argv[0] = 'fcn'; main(); "
        f"print(sorted({unneeded} & set(sys.modules)))"
    )
    path = write_photo(tmp_path / "a.png")
    given = ["predict", str(request.getfixturevalue(kind)), str(path), "--output", str(tmp_path / "out")]
    done = subprocess.run([sys.executable, "-c", code, *given], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert "Warning" not in done.stderr


# Photos


@pytest.mark.parametrize("mode", ["L", "1", "P", "CMYK", "RGBA", "LA"])
def test_a_photo_of_any_mode_is_read_as_rgb(tmp_path, mode):
    path = tmp_path / ("a.jpg" if mode in ("L", "CMYK") else "a.png")
    Image.fromarray(noise(40, 60)).convert(mode).save(path)
    with Image.open(path) as image:
        np.testing.assert_array_equal(np.asarray(read_photo(path)), np.asarray(image.convert("RGB")))


def test_transparent_pixels_are_white(tmp_path):
    Image.fromarray(np.array([[[9, 8, 7, 0], [9, 8, 7, 255]]], np.uint8), "RGBA").save(tmp_path / "a.png")
    assert np.asarray(read_photo(tmp_path / "a.png")).tolist() == [[[255, 255, 255], [9, 8, 7]]]


def test_a_photo_is_turned_as_viewers_show_it(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # shown a quarter turned to the right
    path = write_photo(tmp_path / "a.png", 40, 60, exif=exif)
    np.testing.assert_array_equal(np.asarray(read_photo(path)), np.rot90(noise(40, 60), -1))


def test_photos_that_cannot_be_read_are_named_and_the_others_done(model, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(photos, "MAX_PIXELS", 10_000)
    good = write_photo(tmp_path / "good.png")
    data = good.read_bytes()
    (tmp_path / "cut.png").write_bytes(data[: len(data) // 2])
    (tmp_path / "text.jpg").write_text("no photo")
    (tmp_path / "eps.jpg").write_text("%!PS-Adobe-3.0 EPSF-3.0\n")
    write_photo(tmp_path / "bomb.png", 101, 100)
    Image.fromarray(np.zeros((4, 4), np.uint16)).save(tmp_path / "deep.png")
    bad = [tmp_path / name for name in ("cut.png", "text.jpg", "eps.jpg", "bomb.png", "deep.png", "none.jpg")]
    last = write_photo(tmp_path / "last.jpg")
    assert run(model, good, *bad, last, output=tmp_path / "out", overlay=True) == bad
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    for path, line in zip(bad, errors, strict=True):
        assert str(path) in line
    written = ["classes.json", "good.png", "last.png", "overlay/good.png", "overlay/last.png"]
    assert names(tmp_path / "out") == written


def test_photos_are_found_by_file_folder_pattern_and_list_each_once(tmp_path):
    for name in ("a.jpg", "b.PNG", "notes.txt", "sub/c.jpg", "sub/d.webp", "[1].jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()

    def found(*inputs: str, stdin: str = "") -> list[str]:
        texts = [text if text == "-" else f"{tmp_path}/{text}" for text in inputs]
        return [path.relative_to(tmp_path).as_posix() for path in find_photos(texts, io.StringIO(stdin))]

    assert found("") == ["[1].jpg", "a.jpg", "b.PNG"]
    assert found("sub", "a.jpg", "sub/c.jpg") == ["sub/c.jpg", "sub/d.webp", "a.jpg"]
    assert found("**/*.jpg") == ["[1].jpg", "a.jpg", "sub/c.jpg"]
    assert found("[1].jpg") == ["[1].jpg"]
    assert found("none.jpg") == ["none.jpg"]
    assert found("a.jpg", "-", stdin=f"{tmp_path}/b.PNG\n\n{tmp_path}/a.jpg\n") == ["a.jpg", "b.PNG"]
    for text in ("*.gif", "-"):
        with pytest.raises(UserError, match="no photo there"):
            found(text)


def test_a_list_on_stdin_may_name_files_in_any_encoding(model, tmp_path):
    latin = tmp_path / os.fsdecode(b"caf\xe9.jpg")
    write_photo(latin)
    command = [sys.executable, "-m", "pipeline.cli.main", "predict", str(model), "-", "--output", "out"]
    done = subprocess.run(
        command,
        input=bytes(latin) + b"\n",
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert done.returncode == 0
    assert (tmp_path / "out" / os.fsdecode(b"caf\xe9.png")).is_file()


def test_a_name_longer_than_the_system_allows_is_a_photo_that_cannot_be_read(model, tmp_path, capsys):
    photos = find_photos(["a" * 300 + ".jpg"], [])
    assert run(model, *photos, output=tmp_path / "out") == photos
    assert "a" * 300 in capsys.readouterr().err


def test_a_folder_that_cannot_be_read_is_refused(tmp_path, monkeypatch):
    def refused(_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", refused)
    with pytest.raises(UserError, match=str(tmp_path)):
        find_photos([str(tmp_path)], [])


def test_a_folders_files_of_other_kinds_are_named_and_those_of_systems_passed_over(model, tmp_path, capsys):
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in ("a.jpg", "b.JFIF"):
        write_photo(folder / name)
    for name in ("IMG_1.HEIC", "c.jp2", "noend", ".DS_Store", "._a.jpg", "Thumbs.db"):
        (folder / name).touch()
    (folder / "sub.avif").mkdir()
    arguments = parser().parse_args(["predict", str(model), str(folder), "--output", str(tmp_path / "out")])
    arguments.run(arguments)
    assert names(tmp_path / "out") == ["a.png", "b.png", "classes.json"]
    message = next(line for line in capsys.readouterr().err.splitlines() if "IMG_1.HEIC" in line)
    assert all(f"{folder}/{name}" in message for name in ("IMG_1.HEIC", "c.jp2", "noend"))
    assert not any(name in message for name in ("DS_Store", "._a", "Thumbs", "sub.avif", "a.jpg"))


# Files that must not be overwritten


@pytest.mark.parametrize(("one", "other"), [("a.jpg", "a.png"), ("a.jpg", "sub/A.JPG")])
def test_photos_whose_results_would_share_a_name_are_refused_before_work(model, tmp_path, one, other):
    with pytest.raises(UserError) as caught:
        run(model, write_photo(tmp_path / one), write_photo(tmp_path / other), output=tmp_path / "out")
    assert f"{tmp_path / one} and {tmp_path / other}" in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("is_link", [False, True])
def test_a_photo_is_never_overwritten(model, tmp_path, is_link):
    path, other = write_photo(tmp_path / "in" / "a.png"), write_photo(tmp_path / "b.jpg")
    before = path.read_bytes()
    if is_link:
        (tmp_path / "out").symlink_to(tmp_path / "in")
    with pytest.raises(UserError, match=str(path)):
        run(model, other, path, output=tmp_path / ("out" if is_link else "in"))
    assert path.read_bytes() == before
    assert names(tmp_path / "in") == ["a.png"]


def test_a_mask_drawn_by_hand_is_never_overwritten_and_an_earlier_prediction_is(model, tmp_path):
    photo, mask = write_photo(tmp_path / "a.jpg"), tmp_path / "masks" / "a.png"
    mask.parent.mkdir()
    mask.write_bytes(b"drawn by hand")
    with pytest.raises(UserError, match=f"{mask}.*classes.json"):
        run(model, photo, output=tmp_path / "masks")
    assert mask.read_bytes() == b"drawn by hand"
    assert names(mask.parent) == ["a.png"]
    run(model, photo, output=tmp_path / "out")
    run(model, photo, output=tmp_path / "out")


def test_tiles_that_are_all_overlap_are_refused_before_a_small_photo_is_written(model, tmp_path):
    small, large = write_photo(tmp_path / "a.png"), tmp_path / "b.png"
    Image.fromarray(np.zeros((300, 300, 3), np.uint8)).save(large)
    with pytest.raises(UserError, match="64 pixels"):
        predict_photos(Predictor.load(model), [small, large], tmp_path / "out", side=64)
    assert not (tmp_path / "out").exists()


def test_a_result_is_written_whole_or_not_at_all(model, tmp_path, monkeypatch):
    path, out = write_photo(tmp_path / "a.jpg"), tmp_path / "out"
    run(model, path, output=out)
    before = (out / "a.png").read_bytes()

    def fails(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(predict, "encode_label", fails)
    with pytest.raises(UserError, match=r"a\.png .*No space left on device"):
        run(model, path, output=out)
    assert names(out) == ["a.png", "classes.json"]
    assert (out / "a.png").read_bytes() == before


# Models and the command


@pytest.mark.parametrize(
    ("name", "length"), [("none.pt", None), ("none.onnx", None), ("cut.pt", 1000), ("cut.onnx", 1000)]
)
def test_a_model_file_that_is_missing_or_damaged_is_refused_by_name(request, tmp_path, name, length):
    path = tmp_path / name
    if length:
        whole = request.getfixturevalue("onnx" if path.suffix == ".onnx" else "model")
        path.write_bytes(whole.read_bytes()[:length])
    with pytest.raises(CheckpointError, match=str(path)):
        run(path, write_photo(tmp_path / "a.jpg"), output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_scores_that_are_nan_make_no_prediction(nan_model, tmp_path):
    with pytest.raises(CheckpointError, match=r"nan\.pt"):
        run(nan_model, write_photo(tmp_path / "a.jpg"), output=tmp_path / "out")
    assert names(tmp_path / "out") == ["classes.json"]


def test_a_folder_is_done_but_for_what_cannot_be_read_and_the_exit_code_is_1(model, tmp_path):
    folder = tmp_path / "photos"
    data = write_photo(folder / "a.png").read_bytes()
    (folder / "b.png").write_bytes(data[: len(data) // 2])
    write_photo(folder / "c.jpg")
    command = [sys.executable, "-m", "pipeline.cli.main", "predict", str(model), str(folder)]
    options = ["--output", str(tmp_path / "out"), "--tile", "640"]
    done = subprocess.run([*command, *options], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, f"wrote 2 of 3 predictions to {tmp_path / 'out'}\n")
    assert f"error: {folder / 'b.png'}" in done.stderr
    assert names(tmp_path / "out") == ["a.png", "c.png", "classes.json"]
