from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from pipeline.report import write
from pipeline.report.page.page import Content
from tests.page_content import NETS, content


@pytest.fixture
def made(tmp_path) -> Content:
    return content(tmp_path / "made")


@pytest.fixture
def pictures(tmp_path) -> dict[str, Path]:
    """The figure of each net that README.md shows."""
    shown = {net: tmp_path / f"{net}-predictions.png" for net in NETS}
    for number, path in enumerate(shown.values()):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(path)
    return shown


def test_the_report_shows_table_bars_data_each_nets_picture_and_the_page(tmp_path, made, pictures):
    dest = tmp_path / "reports" / "sample"
    write.write(made, pictures, dest)
    text = (dest / "README.md").read_text("utf-8")
    assert "| run | mean_iu |" in text
    assert "| fcn8s - fcn16s | mean_iu | " in text
    assert "profile `small`" in text
    assert "| images | 400 |\n\nNo image of val is trained on." in text
    assert "LEAK" not in text
    shown = ["class_iu.png", "inspection.png", "fcn32s.png", "fcn16s.png", "fcn8s.png"]
    for name in shown:
        assert f"]({name})" in text
        with Image.open(dest / name) as picture:
            picture.load()
    assert "](index.html)" in text
    assert sorted(path.name for path in dest.iterdir()) == sorted([*shown, "README.md", "index.html"])
    assert (dest / "fcn8s.png").read_bytes() == pictures["fcn8s"].read_bytes()
    write.write(replace(made, profile="other"), pictures, dest)  # over the old one
    assert "profile `other`" in (dest / "README.md").read_text("utf-8")
    assert "FCN on other" in (dest / "index.html").read_text("utf-8")


def test_a_net_that_was_trained_on_what_it_is_scored_on_is_named_under_the_table(tmp_path, made, pictures):
    results = [
        replace(one, values=one.values | {"num_leaked": 3}) if one.name == "fcn16s" else one
        for one in made.results
    ]
    write.write(replace(made, results=results), pictures, tmp_path / "report")
    lines = (tmp_path / "report" / "README.md").read_text("utf-8").splitlines()
    said = [line for line in lines if "LEAK" in line]
    assert len(said) == 1
    assert "fcn16s was trained on 3 of the 3 images it is scored on" in said[0]
