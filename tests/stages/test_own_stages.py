"""The stages before training on a user's own folder, run in this process: photos, names and classes of any kind."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.errors import DatasetError, LeakError
from pipeline.shards.read import open_shards
from stages import download, inspect, shard
from tests.conftest import ROOT
from tests.project_copy import yaml

ENDINGS = ("JPG", "png", "tif", "webp", "bmp", "jpeg")  # the first four are trained on
CLASSES = ["背景", "裂缝", "车"]


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project whose folder my-data has six photos "cam 1/图 N" of all formats, the second one transparent."""
    mine = tmp_path / "my-data"
    for name in ("images/cam 1", "masks/cam 1", "splits"):
        (mine / name).mkdir(parents=True)
    (mine / "classes.txt").write_text("\n".join(CLASSES), encoding="utf-8")
    random = np.random.default_rng(0)
    label = np.repeat(np.array([255, 0, 0, 1, 2, 2], np.uint8), 8)[:, None].repeat(60, axis=1)
    for number, ending in enumerate(ENDINGS):
        photo = Image.fromarray(random.integers(0, 256, (48, 60, 3), np.uint8))
        photo.convert("RGBA" if number == 1 else "RGB").save(mine / f"images/cam 1/图 {number}.{ending}")
        Image.fromarray(label).save(mine / f"masks/cam 1/图 {number}.png")
    for split, numbers in (("train", range(4)), ("val", range(4, 6))):
        lines = "".join(f"cam 1/图 {number}\r\n" for number in numbers)
        (mine / "splits" / f"{split}.txt").write_text(lines, encoding="utf-8-sig", newline="")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    use(tmp_path, classes=CLASSES)
    return tmp_path


def use(root: Path, **data: object) -> None:
    profile = yaml.load((ROOT / "profiles" / "own.yaml").read_text("utf-8"))
    profile["data"] |= {"source": {"own": "my-data"}} | data
    (root / "profiles").mkdir(exist_ok=True)
    (root / "params.yaml").write_text("profile: own\n")
    with (root / "profiles" / "own.yaml").open("w", encoding="utf-8") as file:
        yaml.dump(profile, file)


def run() -> None:
    for stage in (download, shard, inspect):
        stage.main()


def pixels(root: Path) -> list[int]:
    return open_shards(root / "data/own/shards/train").class_pixels.tolist()


def test_photos_and_names_of_any_kind_pass_and_are_counted_and_shown(root: Path):
    run()
    shards = open_shards(root / "data/own/shards/train")
    assert sorted(map(shards.name_of, shards.keys)) == [f"cam 1/图 {n}.{ENDINGS[n]}" for n in range(4)]
    described = json.loads((root / "data/own/inspection/inspection.json").read_text("utf-8"))
    assert described["train"]["conversions"] == {"transparent on white": 1}
    assert pixels(root) == [4 * 16 * 60, 4 * 8 * 60, 4 * 16 * 60]


def test_a_map_changes_labels_digest_and_inspection(root: Path):
    run()
    before = open_shards(root / "data/own/shards/train").digest
    use(root, classes=["裂缝", "背景"], map={"车": "裂缝"})
    run()
    assert pixels(root) == [4 * 24 * 60, 4 * 16 * 60]
    shards = open_shards(root / "data/own/shards/train")
    assert shards.digest != before
    assert shards.header["map"] == {"车": "裂缝"}
    assert "车 = 裂缝" in (root / "data/own/inspection/inspection.md").read_text("utf-8")


def test_the_users_own_names_stand_in_the_messages(root: Path):
    photo, mask = root / "my-data/images/cam 1/图 5.jpeg", root / "my-data/masks/cam 1/图 5.png"
    shutil.copy(photo, mask)  # a JPEG under a mask's name
    with pytest.raises(DatasetError) as caught:
        run()
    assert "own cam 1/图 5.jpeg: my-data/masks/cam 1/图 5.png: a JPEG, which changes label" in str(
        caught.value
    )
    assert str(caught.value).endswith("\nThen run `dvc repro`")
    shutil.copy(root / "my-data/masks/cam 1/图 0.png", mask)
    shutil.copy(photo, root / "my-data/images/cam 1/图 0.JPG")  # trained and evaluated on
    with pytest.raises(LeakError, match=r"cam 1/图 5\.jpeg \(cam 1/图 0\.JPG in train\)"):
        run()
    assert "cam 1/图 5.jpeg (cam 1/图 0.JPG in train)" in (root / "data/own/inspection/leaks.md").read_text(
        "utf-8"
    )


def test_the_users_own_names_stand_in_messages_about_images_to_choose_settings_on(root: Path):
    (root / "my-data/splits/tune.txt").write_text("cam 1/图 0\n", encoding="utf-8")
    use(root, classes=CLASSES, tuning=["own/tune"])
    shutil.copy(root / "my-data/images/cam 1/图 5.jpeg", root / "my-data/images/cam 1/图 0.JPG")
    with pytest.raises(LeakError, match=r"cam 1/图 5\.jpeg \(cam 1/图 0\.JPG in tuning\)"):
        run()
    (root / "my-data/splits/tune.txt").write_text("cam 1/图 5\n", encoding="utf-8")
    with pytest.raises(LeakError, match=r"images of val: cam 1/图 5"):
        run()
