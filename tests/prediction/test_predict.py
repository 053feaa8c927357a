"""`fcn predict`: what it writes is the model's own argmax, whatever the photo, the backend and the tiles."""

import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fcn.model import FCN
from pipeline.cli.main import parser
from pipeline.errors import CheckpointError, UserError
from pipeline.export.export import export_model
from pipeline.models import checkpoint
from pipeline.prediction import photos, predict
from pipeline.prediction.photos import find_photos, read_photo
from pipeline.prediction.predict import predict_photos
from pipeline.shards.labels import voc_palette

CLASSES = ["background", "chat", "été"]
OPTIONS = {"num_classes": 3, "backbone": "mobilenet_v1", "width": 0.1, "score_init": "random"}


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def save_model(path: Path, model: FCN, options: dict, classes: list[str] = CLASSES) -> Path:
    content = {
        "model": options,
        "classes": classes,
        "lineage": {"net": "fcn8s"},
        "state_dict": dict(model.state_dict()),
    }
    checkpoint.save(path, "model", content)
    return path


@pytest.fixture(scope="module")
def net() -> FCN:
    torch.manual_seed(0)
    model = FCN(**OPTIONS).eval()
    with torch.no_grad():  # of decided opinions, each class somewhere: scores of fresh weights hardly differ
        for layer in (model.score_fr, model.score_pool4, model.score_pool3):
            layer.weight *= 1e4
        model.score_fr.bias.copy_(torch.tensor([0.6, 0.4, -1.1]))
    return model


@pytest.fixture(scope="module")
def model(net, tmp_path_factory) -> Path:
    return save_model(tmp_path_factory.mktemp("model") / "fcn8s.pt", net, OPTIONS)


@pytest.fixture(scope="module")
def onnx(model) -> Path:
    export_model(model, model.with_suffix(".onnx"), "onnx")
    return model.with_suffix(".onnx")


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(0, 256, (height // 16 + 1, width // 16 + 1, 3), np.uint8)
    return np.ascontiguousarray(coarse.repeat(16, 0).repeat(16, 1)[:height, :width])


def photo(path: Path, height: int = 40, width: int = 60, seed: int = 0, **options) -> Path:
    path.parent.mkdir(exist_ok=True, parents=True)
    Image.fromarray(noise(height, width, seed)).save(path, **options)
    return path


def run(model: Path, *inputs: Path, output: Path, side: int = 1000, **wanted: bool) -> list[Path]:
    return predict_photos(model, inputs, output, side=side, **wanted)


def scores_of(net: FCN, image: np.ndarray) -> torch.Tensor:
    with torch.inference_mode():
        return net(torch.from_numpy(image.copy()).permute(2, 0, 1)[None])[0]


def indices_of(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        assert (image.format, image.mode) == ("PNG", "P")
        assert image.getpalette("RGB") == voc_palette().flatten().tolist()
        return np.array(image)


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


# --- what is written


def test_real_photos_get_the_models_argmax_in_vocs_palette_at_their_size(net, model, real_data, tmp_path):
    files = sorted((real_data / "voc" / "JPEGImages").glob("*.jpg"))[:3]
    assert run(model, *files, output=tmp_path) == []
    assert names(tmp_path) == sorted([*(f"{file.stem}.png" for file in files), "classes.json"])
    seen = set()
    for file in files:
        expected = scores_of(net, np.asarray(Image.open(file).convert("RGB"))).argmax(0).numpy()
        np.testing.assert_array_equal(indices_of(tmp_path / f"{file.stem}.png"), expected)
        seen |= set(np.unique(expected))
    assert seen == {0, 1, 2}


@pytest.mark.parametrize("size", [(1, 1), (1, 200), (33, 1), (7, 5), (97, 64)])
def test_a_photo_of_any_size_is_predicted(net, model, tmp_path, size):
    path = photo(tmp_path / "in" / "a.png", *size)
    run(model, path, output=tmp_path / "out")
    expected = scores_of(net, noise(*size)).argmax(0).numpy()
    np.testing.assert_array_equal(indices_of(tmp_path / "out" / "a.png"), expected)


def test_scores_are_the_models_in_half_precision(net, model, tmp_path):
    run(model, photo(tmp_path / "a.png"), output=tmp_path / "out", scores=True)
    with np.load(tmp_path / "out" / "scores" / "a.npz") as file:
        score = file["score"]
    assert score.dtype == np.float16
    np.testing.assert_array_equal(score, scores_of(net, noise(40, 60)).numpy().astype(np.float16))


def test_an_overlay_is_the_photo_with_the_classes_colours_and_the_photo_itself_at_background():
    image, prediction = noise(2, 3), np.array([[0, 1, 2], [0, 0, 1]], np.uint8)
    found = np.asarray(predict.blended(image, prediction))
    for y in range(2):
        for x in range(3):
            colour = {0: image[y, x], 1: (128, 0, 0), 2: (0, 128, 0)}[int(prediction[y, x])]
            np.testing.assert_allclose(found[y, x], 0.4 * image[y, x] + 0.6 * np.array(colour), atol=0.51)


def test_an_overlay_has_the_photos_size(model, tmp_path):
    run(model, photo(tmp_path / "a.png"), output=tmp_path / "out", overlay=True)
    with Image.open(tmp_path / "out" / "overlay" / "a.png") as picture:
        assert (picture.size, picture.mode) == ((60, 40), "RGB")


def test_the_legend_names_index_class_and_colour(model, tmp_path):
    run(model, photo(tmp_path / "a.png"), output=tmp_path / "out")
    assert json.loads((tmp_path / "out" / "classes.json").read_text("utf-8")) == [
        {"index": 0, "name": "background", "colour": "#000000"},
        {"index": 1, "name": "chat", "colour": "#800000"},
        {"index": 2, "name": "été", "colour": "#008000"},
    ]


# --- backends and tiles


def test_onnx_gives_the_same_predictions_and_scores(model, onnx, real_data, tmp_path):
    files = sorted((real_data / "voc" / "JPEGImages").glob("*.jpg"))[:2]
    for path in (model, onnx):
        assert run(path, *files, output=tmp_path / path.suffix, scores=True) == []
    assert names(tmp_path / ".pt") == names(tmp_path / ".onnx")
    for file in files:
        ours, theirs = (
            np.load(tmp_path / suffix / "scores" / f"{file.stem}.npz")["score"] for suffix in (".pt", ".onnx")
        )
        np.testing.assert_allclose(ours, theirs, rtol=2e-3, atol=1e-3)
        same = indices_of(tmp_path / ".pt" / f"{file.stem}.png") == indices_of(
            tmp_path / ".onnx" / f"{file.stem}.png"
        )
        assert same.mean() > 0.9999  # where two classes are equally likely, the last bit decides


@pytest.mark.parametrize("kind", [".pt", ".onnx"])
def test_a_photo_in_tiles_gets_the_prediction_of_the_whole(net, model, onnx, tmp_path, monkeypatch, kind):
    path = photo(tmp_path / "a.png", 500, 830)
    calls, load = [], predict.load_net

    def counted(file):
        loaded = load(file)
        return loaded._replace(score=lambda image: (calls.append(image.shape), loaded.score(image))[1])

    monkeypatch.setattr(predict, "load_net", counted)
    run(model if kind == ".pt" else onnx, path, output=tmp_path / "out", side=480)
    assert len(calls) > 1
    assert all(max(shape) <= 480 for shape in calls)
    same = indices_of(tmp_path / "out" / "a.png") == scores_of(net, noise(500, 830)).argmax(0).numpy()
    assert same.mean() > 0.9999


@pytest.mark.parametrize(
    ("kind", "unneeded"),
    [
        (".onnx", {"torch", "torchvision", "ray", "mlflow", "pyarrow", "scipy", "pydantic"}),
        (".pt", {"onnxruntime", "torchvision", "ray", "mlflow", "pyarrow", "scipy", "pydantic"}),
    ],
)
def test_a_net_is_run_without_what_it_does_not_need(model, onnx, tmp_path, kind, unneeded):
    path = photo(tmp_path / "a.png")
    code = (
        "import sys; from pipeline.cli.main import main; sys.argv[0] = 'fcn'; main(); "
        f"print(sorted({unneeded} & set(sys.modules)))"
    )
    given = ["predict", str(model if kind == ".pt" else onnx), str(path), "--output", str(tmp_path / "out")]
    done = subprocess.run([sys.executable, "-c", code, *given], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert "Warning" not in done.stderr


# --- photos as they come


@pytest.mark.parametrize("mode", ["L", "1", "P", "CMYK", "RGBA", "LA"])
def test_a_photo_of_any_mode_is_seen_in_rgb(net, model, tmp_path, mode):
    path = tmp_path / ("a.jpg" if mode in ("L", "CMYK") else "a.png")
    Image.fromarray(noise(40, 60)).convert(mode).save(path)
    run(model, path, output=tmp_path / "out")
    with Image.open(path) as image:
        expected = scores_of(net, np.asarray(image.convert("RGB"))).argmax(0).numpy()
    np.testing.assert_array_equal(indices_of(tmp_path / "out" / "a.png"), expected)


def test_what_is_transparent_is_white(tmp_path):
    Image.fromarray(np.array([[[9, 8, 7, 0], [9, 8, 7, 255]]], np.uint8), "RGBA").save(tmp_path / "a.png")
    assert np.asarray(read_photo(tmp_path / "a.png")).tolist() == [[[255, 255, 255], [9, 8, 7]]]


def test_a_photo_lies_as_viewers_show_it(net, model, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # shown a quarter turned to the right
    path = photo(tmp_path / "a.png", 40, 60, exif=exif)
    run(model, path, output=tmp_path / "out")
    expected = scores_of(net, np.rot90(noise(40, 60), -1)).argmax(0).numpy()
    assert expected.shape == (60, 40)
    np.testing.assert_array_equal(indices_of(tmp_path / "out" / "a.png"), expected)


def test_photos_that_cannot_be_read_are_named_and_the_others_done(model, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(photos, "MAX_PIXELS", 10_000)
    good = photo(tmp_path / "good.png")
    data = good.read_bytes()
    (tmp_path / "cut.png").write_bytes(data[: len(data) // 2])
    (tmp_path / "text.jpg").write_text("no photo")
    photo(tmp_path / "bomb.png", 101, 100)
    Image.fromarray(np.zeros((4, 4), np.uint16)).save(tmp_path / "deep.png")
    bad = [tmp_path / name for name in ("cut.png", "text.jpg", "bomb.png", "deep.png", "none.jpg")]
    last = photo(tmp_path / "last.jpg")
    assert run(model, good, *bad, last, output=tmp_path / "out", overlay=True) == bad
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(said) == len(bad)
    for path, line in zip(bad, said, strict=True):
        assert str(path) in line
    assert "grey of more than 8 bits" in said[3]
    assert names(tmp_path / "out") == [
        "classes.json",
        "good.png",
        "last.png",
        "overlay/good.png",
        "overlay/last.png",
    ]


# --- which photos, and where results go


def test_photos_are_found_by_file_folder_pattern_and_list_each_once(tmp_path):
    for name in ("a.jpg", "b.PNG", "notes.txt", "sub/c.jpg", "sub/d.webp", "[1].jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()

    def found(*inputs: str, stdin: str = "") -> list[str]:
        paths = find_photos(
            [one if one == "-" else f"{tmp_path}/{one}" for one in inputs], io.StringIO(stdin)
        )
        return [path.relative_to(tmp_path).as_posix() for path in paths]

    assert found("") == ["[1].jpg", "a.jpg", "b.PNG"]
    assert found("sub", "a.jpg", "sub/c.jpg") == ["sub/c.jpg", "sub/d.webp", "a.jpg"]
    assert found("**/*.jpg") == ["[1].jpg", "a.jpg", "sub/c.jpg"]
    assert found("[1].jpg") == ["[1].jpg"]
    assert found("none.jpg") == ["none.jpg"]
    assert found("a.jpg", "-", stdin=f"{tmp_path}/b.PNG\n\n{tmp_path}/a.jpg\n") == ["a.jpg", "b.PNG"]
    for nothing in ("*.gif", "-"):
        with pytest.raises(UserError, match="no photo there"):
            found(nothing)


@pytest.mark.parametrize(("one", "other"), [("a.jpg", "a.png"), ("a.jpg", "sub/A.JPG")])
def test_photos_whose_results_would_share_a_name_are_refused_before_work(model, tmp_path, one, other):
    with pytest.raises(UserError, match=r"would both become A?a?\.png") as caught:
        run(model, photo(tmp_path / one), photo(tmp_path / other), output=tmp_path / "out")
    assert f"{tmp_path / one} and {tmp_path / other}" in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("link", [False, True])
def test_a_photo_is_never_written_over(model, tmp_path, link):
    path, other = photo(tmp_path / "in" / "a.png"), photo(tmp_path / "b.jpg")
    before = path.read_bytes()
    if link:
        (tmp_path / "out").symlink_to(tmp_path / "in")
    with pytest.raises(UserError, match="would be written over the photo"):
        run(model, other, path, output=tmp_path / ("out" if link else "in"))
    assert path.read_bytes() == before
    assert names(tmp_path / "in") == ["a.png"]


def test_a_result_is_written_whole_or_not_at_all(model, tmp_path, monkeypatch):
    path, out = photo(tmp_path / "a.jpg"), tmp_path / "out"
    run(model, path, output=out)
    before = (out / "a.png").read_bytes()

    def fails(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(predict, "encode_label", fails)
    with pytest.raises(UserError, match=r"a\.png cannot be written: No space left on device"):
        run(model, path, output=out)
    assert names(out) == ["a.png", "classes.json"]
    assert (out / "a.png").read_bytes() == before


def test_a_folder_that_cannot_be_made_is_the_users_mistake(model, tmp_path):
    path = photo(tmp_path / "a.jpg")
    with pytest.raises(UserError, match="cannot be written"):
        run(model, path, output=path / "out")


# --- models that cannot be used


def test_models_that_cannot_be_used_are_refused_by_name(onnx, tmp_path):
    path = photo(tmp_path / "a.jpg")
    (tmp_path / "cut.onnx").write_bytes(onnx.read_bytes()[:1000])
    (tmp_path / "text.pt").write_text("no model")
    for name, words in [
        ("none.pt", "is missing"),
        ("none.onnx", "is missing"),
        ("cut.onnx", "cannot be loaded as ONNX"),
        ("text.pt", "cannot be loaded as weights alone"),
    ]:
        with pytest.raises(CheckpointError, match=words) as caught:
            run(tmp_path / name, path, output=tmp_path / "out")
        assert str(tmp_path / name) in str(caught.value)
    many = FCN(256, backbone="mobilenet_v1", width=0.03)
    save_model(
        tmp_path / "many.pt",
        many,
        {"num_classes": 256, "backbone": "mobilenet_v1", "width": 0.03},
        ["x"] * 256,
    )
    with pytest.raises(CheckpointError, match="256 classes apart; a palette PNG holds 255"):
        run(tmp_path / "many.pt", path, output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_scores_that_are_no_numbers_make_no_prediction(net, tmp_path):
    damaged = FCN(**OPTIONS)
    damaged.load_state_dict(net.state_dict())
    with torch.no_grad():
        damaged.score_fr.bias[1] = torch.nan
    path = save_model(tmp_path / "nan.pt", damaged, OPTIONS)
    with pytest.raises(CheckpointError, match="not finite"):
        run(path, photo(tmp_path / "a.jpg"), output=tmp_path / "out")
    assert names(tmp_path / "out") == ["classes.json"]


# --- the command


def test_the_command_does_what_can_be_done_and_exits_with_1(model, tmp_path, capsys, monkeypatch):
    good = photo(tmp_path / "good.png")
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{tmp_path / 'none.png'}\n"))
    given = ["predict", str(model), str(good), "-", "--output", str(tmp_path / "out"), "--tile", "64"]
    arguments = parser().parse_args(given)
    with pytest.raises(SystemExit) as exit_:
        arguments.run(arguments)
    assert exit_.value.code == 1
    said = capsys.readouterr()
    assert "wrote 1 of 2 predictions" in said.out
    assert "none.png is missing" in said.err
    assert names(tmp_path / "out") == ["classes.json", "good.png"]


def test_a_folder_is_done_but_for_what_cannot_be_read_and_the_exit_code_is_1(model, tmp_path):
    folder = tmp_path / "photos"
    data = photo(folder / "a.png").read_bytes()
    (folder / "b.png").write_bytes(data[: len(data) // 2])
    photo(folder / "c.jpg")
    given = ["predict", str(model), str(folder), "--output", str(tmp_path / "out")]
    done = subprocess.run(
        [sys.executable, "-m", "pipeline.cli.main", *given], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (1, f"wrote 2 of 3 predictions to {tmp_path / 'out'}\n")
    assert f"error: {folder / 'b.png'} cannot be read as an image" in done.stderr
    assert names(tmp_path / "out") == ["a.png", "c.png", "classes.json"]


@pytest.mark.parametrize("tile", ["0", "-5", "many"])
def test_a_tile_of_no_pixels_is_refused(model, capsys, tile):
    with pytest.raises(SystemExit):
        parser().parse_args(["predict", str(model), "a.jpg", "--output", "o", f"--tile={tile}"])
    assert "no number of pixels" in capsys.readouterr().err
