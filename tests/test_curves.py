import json

import pytest

from pipeline import curves
from pipeline.errors import ResultError
from pipeline.spool import Point

MEASURED = [
    Point(10, 1_700_000_000_000, {"loss": 2.0, "lr": 0.1, "images_per_s": 3.5, "memory_gb": 1.0}),
    Point(20, 1_700_000_009_000, {"loss": 1.0, "lr": 0.05, "images_per_s": 3.0, "val_mean_iu": 0.3}),
]


def test_a_curve_keeps_what_the_run_decides_and_nothing_of_the_machine(tmp_path):
    path = tmp_path / "curves" / "fcn8s.json"
    curves.write(path, "fcn8s", "fcn16s", MEASURED)
    curve = curves.read(path)
    assert (curve.net, curve.parent) == ("fcn8s", "fcn16s")
    assert curve.points == (
        {"step": 10, "loss": 2.0, "lr": 0.1},
        {"step": 20, "loss": 1.0, "lr": 0.05, "val_mean_iu": 0.3},
    )
    assert curve.of("val_mean_iu") == ([20], [0.3])
    assert curve.of("val_pixel_acc") == ([], [])
    before = path.read_bytes()
    slower = [point._replace(time_ms=0, values=point.values | {"images_per_s": 0.1}) for point in MEASURED]
    curves.write(path, "fcn8s", "fcn16s", slower)
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == ["fcn8s.json"]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"net": "a", "parent": "b", "points": [{"loss": 1}]}',
        '{"points": 3}',
        '{"points": [7]}',
    ],
)
def test_a_damaged_curve_is_named_with_the_stage_that_writes_it(tmp_path, text):
    path = tmp_path / "fcn8s.json"
    path.write_text(text)
    with pytest.raises(ResultError, match=r"fcn8s\.json holds no curve .*dvc repro train"):
        curves.read(path)


def test_a_missing_curve_is_named_with_the_stage_that_writes_it(tmp_path):
    with pytest.raises(ResultError, match=r"fcn8s\.json is missing; run `dvc repro train`"):
        curves.read(tmp_path / "fcn8s.json")


def test_the_file_is_a_list_of_records_as_dvc_plots_reads_it(tmp_path):
    curves.write(tmp_path / "a.json", "fcn8s", "fcn16s", MEASURED)
    points = json.loads((tmp_path / "a.json").read_text())["points"]
    assert [point["step"] for point in points] == [10, 20]
    assert [list(point) for point in points] == [["step", "loss", "lr", "val_mean_iu"]] * 2
