"""Near duplicates: photos that are turned, mirrored, rescaled or recompressed are found, and others are not."""

import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image
from scipy.fft import dctn

from pipeline.datasets import synthetic
from pipeline.errors import LeakError
from pipeline.inspection import near_duplicates
from pipeline.inspection.near_duplicates import survey
from pipeline.inspection.same_picture import TURNS, groups, hashes, matches, thumbnail
from pipeline.shards.read import Shards, open_shards
from pipeline.shards.sample import Sample
from pipeline.shards.write import write_shards
from pipeline.tables import Table

T, Resampling = Image.Transpose, Image.Resampling


def drawn(number: int, width: int = 200, height: int = 150) -> Image.Image:
    """Blots of all sizes and colours, as different from number to number as photos are."""
    random = np.random.default_rng(number)
    total = np.zeros((height, width, 3))
    for cells in (3, 6, 12, 24):
        blots = Image.fromarray(random.integers(0, 256, (cells, cells, 3), np.uint8))
        total += np.asarray(blots.resize((width, height), Resampling.BICUBIC), float) / 4
    return Image.fromarray(total.astype(np.uint8))


def encoded(image: Image.Image, form: str = "JPEG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


CHANGES: dict[str, tuple[Callable[[Image.Image], bytes], str]] = {
    "quality 30": (lambda image: encoded(image, quality=30), "not turned"),
    "half the size": (
        lambda image: encoded(image.resize((image.width // 2, image.height // 2))),
        "not turned",
    ),
    "twice the size": (
        lambda image: encoded(image.resize((image.width * 2, image.height * 2))),
        "not turned",
    ),
    "squeezed": (lambda image: encoded(image.resize((image.height, image.height))), "not turned"),
    "grey": (lambda image: encoded(image.convert("L")), "not turned"),
    "CMYK": (lambda image: encoded(image.convert("CMYK")), "not turned"),
    "PNG": (lambda image: encoded(image, "PNG"), "not turned"),
    "palette": (lambda image: encoded(image.quantize(64), "PNG"), "not turned"),
    "brighter": (lambda image: encoded(image.point(lambda value: value * 1.15 + 8)), "not turned"),
    "left": (lambda image: encoded(image.transpose(T.ROTATE_90)), "turned left"),
    "180": (lambda image: encoded(image.transpose(T.ROTATE_180)), "turned by 180 degrees"),
    "right": (lambda image: encoded(image.transpose(T.ROTATE_270)), "turned right"),
    "mirrored": (lambda image: encoded(image.transpose(T.FLIP_LEFT_RIGHT)), "mirrored"),
    "upside down": (
        lambda image: encoded(image.transpose(T.FLIP_TOP_BOTTOM)),
        "mirrored, turned by 180 degrees",
    ),
    "mirrored, left": (
        lambda image: encoded(image.transpose(T.FLIP_LEFT_RIGHT).transpose(T.ROTATE_90), quality=50),
        "mirrored, turned left",
    ),
    "mirrored, right": (
        lambda image: encoded(image.transpose(T.FLIP_LEFT_RIGHT).transpose(T.ROTATE_270), quality=50),
        "mirrored, turned right",
    ),
}


def thumbnails_of(photos: list[bytes]) -> np.ndarray:
    return np.stack([thumbnail(photo) for photo in photos])


@pytest.fixture(scope="module")
def originals() -> np.ndarray:
    return thumbnails_of([encoded(drawn(number), quality=90) for number in range(40)])


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_photo_is_found_with_its_turn_and_no_other(originals, change):
    alter, turn = CHANGES[change]
    altered = thumbnails_of([alter(drawn(number)) for number in range(0, 40, 10)])
    found = [(match.one, match.other, match.turn) for match in matches(originals, altered)]
    assert found == [(10 * i, i, TURNS.index(turn)) for i in range(4)]


def test_the_hash_is_the_signs_of_the_lowest_dct_coefficients(originals):
    signs = np.asarray(dctn(originals.astype(float), axes=(1, 2)))[:, :8, :8].reshape(len(originals), 64) > 0
    signs[:, 0] = False
    expected = [int.from_bytes(np.packbits(one).tobytes(), "little") for one in signs]
    assert np.bitwise_count(hashes(originals) ^ np.array(expected, np.uint64)).max() <= 1  # rounding


def test_drawn_shapes_flat_photos_and_empty_skies_are_no_near_duplicates():
    shapes = [synthetic.picture("voc_val", number, 128, seed=1)[0] for number in range(60)]
    flat = [np.full((60, 80, 3), grey, np.uint8) for grey in (0, 100, 101, 255)]
    noise = [np.random.default_rng(i).integers(100, 104, (60, 80, 3), np.uint8) for i in range(4)]
    photos = thumbnails_of([encoded(Image.fromarray(image)) for image in [*shapes, *flat, *noise]])
    assert [match for match in matches(photos, photos) if match.one != match.other] == []


def test_two_birds_in_the_same_sky_are_two_pictures():
    """Their grey values agree to 99%: where the edges are decides."""
    sky = np.tile(np.linspace(90, 220, 150)[:, None, None], (1, 200, 3))
    photos = []
    for top, left in ((20, 30), (90, 140)):
        image = sky.copy()
        image[top : top + 25, left : left + 30] = np.asarray(drawn(top, 30, 25))
        photos.append(encoded(Image.fromarray(image.astype(np.uint8))))
    first, second = thumbnails_of(photos)
    assert np.corrcoef(first.ravel(), second.ravel())[0, 1] > 0.9
    assert list(matches(first[None], second[None])) == []
    again = thumbnails_of([encoded(Image.open(io.BytesIO(photo)), quality=40) for photo in photos])
    assert [(match.one, match.other) for match in matches(again, np.stack([first, second]))] == [
        (0, 0),
        (1, 1),
    ]


def test_each_pair_of_one_set_is_found_once():
    photos = thumbnails_of([encoded(drawn(number)) for number in (0, 1, 0, 1, 0)])
    found = [(match.one, match.other) for match in matches(photos)]
    assert sorted(found) == [(0, 2), (0, 4), (1, 3), (2, 4)]


def test_groups_hold_the_matches_of_a_match_and_every_photo_once():
    numbers = [0, 1, 2, 0, 3, 1, 0]
    photos = [encoded(drawn(number), quality=40 + 8 * i) for i, number in enumerate(numbers)]
    assert groups(thumbnails_of(photos)) == [[0, 3, 6], [1, 5], [2], [4]]
    assert groups(np.zeros((2, 32, 32), np.uint8)) == [[0], [1]]  # flat ones match none


# --- between two splits


class Splits(NamedTuple):
    val: Shards
    train: Shards


def shards_of(dest: Path, photos: Mapping[str, bytes], sources: Mapping[str, str]) -> Shards:
    def load(key: str) -> Sample:
        with Image.open(io.BytesIO(photos[key])) as image:
            return Sample.checked(key, photos[key], np.zeros((image.height, image.width), np.uint8))

    write_shards(
        list(photos),
        load,
        dest,
        split=dest.name,
        classes=["a", "b"],
        samples_per_shard=2,
        seed=0,
        about={"sources": sources},
    )
    return open_shards(dest)


@pytest.fixture(scope="module")
def splits(tmp_path_factory) -> Splits:
    """The val and train splits: of val's photos, one is in train to the pixel, two are near duplicates, one is new."""
    folder = tmp_path_factory.mktemp("splits")
    photos = [encoded(drawn(number)) for number in range(4)]
    val = dict(zip("abcd", photos, strict=True))
    train = {
        "exact": photos[0],
        "mirror": encoded(drawn(1).transpose(T.FLIP_LEFT_RIGHT)),
        "small": encoded(drawn(2).resize((100, 75)), "PNG"),
        "other": encoded(drawn(9)),
    }
    sources = {"mirror": "my photos/spiegel.jpg"}
    return Splits(shards_of(folder / "val", val, {}), shards_of(folder / "train", train, sources))


def test_photos_of_val_that_train_shows_changed_are_listed_and_exact_copies_left_to_the_leak_guard(
    splits: Splits,
):
    found = survey(splits.val, splits.train, "warn")
    assert found["num_images"] == 2
    pairs = {(pair["val"], pair["train"]): pair["turn"] for pair in found["pairs"]}
    assert pairs == {("b", "mirror"): "mirrored", ("c", "small"): "not turned"}
    assert all(0.8 <= pair["similarity"] <= 1 for pair in found["pairs"])
    assert found["names"] == {"mirror": "my photos/spiegel.jpg"}
    table = near_duplicates.as_blocks(found)[1]
    assert isinstance(table, Table)
    rows = {tuple(row[:3]) for row in table.rows}
    assert rows == {("b", "my photos/spiegel.jpg", "mirrored"), ("c", "small", "not turned")}


def test_examples_show_the_photos_of_each_pair(splits: Splits):
    for caption, val, train in near_duplicates.examples(
        survey(splits.val, splits.train, "warn"), splits.val, splits.train
    ):
        if "spiegel" in caption:
            assert np.abs(val[:, ::-1].astype(int) - train).mean() < 3
        assert val.shape == (150, 200, 3)


def test_near_duplicates_are_a_warning_or_by_choice_an_error_with_names_picture_and_remedy(
    splits: Splits, capsys
):
    near_duplicates.refuse(survey(splits.val, splits.train, "warn"), Path("seen"))
    warning = capsys.readouterr().err
    with pytest.raises(LeakError) as error:
        near_duplicates.refuse(survey(splits.val, splits.train, "refuse"), Path("seen"))
    for message in (warning, str(error.value)):
        for part in (
            "b (my photos/spiegel.jpg, mirrored)",
            "c (small)",
            "seen/near_duplicates.png",
            "exclude",
        ):
            assert part in message


def test_ignored_splits_are_not_read(splits: Splits, monkeypatch, capsys):
    monkeypatch.setattr(Shards, "read", lambda *_: pytest.fail("read"))
    found = survey(splits.val, splits.train, "ignore")
    near_duplicates.refuse(found, Path("seen"))
    assert found["pairs"] == []
    assert capsys.readouterr().err == ""
    assert "data.near_duplicates" in str(near_duplicates.as_blocks(found))


def test_of_real_photos_every_changed_one_is_found_and_no_two_different_ones(real_data: Path):
    paths = sorted((real_data / "voc" / "JPEGImages").glob("*.jpg"))[::12]
    originals = thumbnails_of([path.read_bytes() for path in paths])
    assert [match for match in matches(originals, originals) if match.one != match.other] == []
    for change, (alter, turn) in CHANGES.items():
        altered = thumbnails_of([alter(Image.open(path)) for path in paths[::4]])
        found = [(match.one, match.other, TURNS[match.turn]) for match in matches(originals, altered)]
        assert found == [(4 * i, i, turn) for i in range(len(altered))], change
