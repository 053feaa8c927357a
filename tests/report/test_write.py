"""The folder of a report: README.md with its pictures, and the page."""

import subprocess
import sys
from base64 import b64encode
from dataclasses import replace

import pytest
from PIL import Image

from pipeline.report import write
from pipeline.report.content import Content
from tests.conftest import ROOT
from tests.report.page_content import content


@pytest.fixture
def made(tmp_path) -> Content:
    return content(tmp_path / "made")


def test_the_report_shows_tables_bars_data_each_nets_picture_and_the_page(tmp_path, made):
    dest = tmp_path / "reports" / "sample"
    write.write(made, dest)
    text = (dest / "README.md").read_text("utf-8")
    cells = [[cell.strip() for cell in line.split("|")] for line in text.splitlines()]
    assert ["run", "mean_iu"] in [line[1:3] for line in cells]
    assert ["fcn8s - fcn16s", "mean_iu"] in [line[1:3] for line in cells]
    assert ["images", "7", "7"] in [line[1:4] for line in cells]
    assert "`small`" in text
    assert "No image of val is trained on." in text
    assert "LEAK" not in text
    pictures = ["class_iu.png", "inspection.png", "fcn32s.png", "fcn16s.png", "fcn8s.png"]
    for name in pictures:
        assert f"]({name})" in text
        with Image.open(dest / name) as picture:
            picture.load()
    assert "](index.html)" in text
    assert {path.name for path in dest.iterdir()} == {*pictures, "README.md", "index.html"}
    assert (dest / "fcn8s.png").read_bytes() == (made.figures[2] / "predictions.png").read_bytes()
    write.write(replace(made, profile="other"), dest)  # over the old one
    for name in ("README.md", "index.html"):
        assert "other" in (dest / name).read_text("utf-8")


def test_near_duplicates_are_shown_in_the_report_and_on_the_page(tmp_path, made):
    picture = made.inspection / "near_duplicates.png"
    Image.new("RGB", (9, 9), "red").save(picture)
    write.write(made, tmp_path / "report")
    assert "](near_duplicates.png)" in (tmp_path / "report" / "README.md").read_text("utf-8")
    assert (tmp_path / "report" / "near_duplicates.png").read_bytes() == picture.read_bytes()
    page = (tmp_path / "report" / "index.html").read_text("utf-8")
    assert b64encode(picture.read_bytes()).decode() in page


def test_a_net_that_was_trained_on_images_it_is_scored_on_is_named_under_the_table(tmp_path, made):
    leaked = replace(made.results[1], values=made.results[1].values | {"num_leaked": 3})
    write.write(replace(made, results=[made.results[0], leaked, made.results[2]]), tmp_path / "report")
    lines = (tmp_path / "report" / "README.md").read_text("utf-8").splitlines()
    (warning,) = [line for line in lines if "LEAK" in line]
    assert "fcn16s was trained on 3 of the 3 images" in warning


def test_the_report_of_single_runs_imports_neither_a_net_nor_what_trains_it():
    heavy = {"torch", "ray", "mlflow", "scipy.stats"}
    code = f"import sys, stages.report; sys.exit(sorted({heavy} & set(sys.modules)) or None)"
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
