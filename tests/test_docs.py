"""docs/: what they tell a reader to copy is what the code takes."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest
from torchvision.datasets.voc import DATASET_YEAR_DICT

from pipeline.config.data import Archive
from pipeline.datasets import published, splits
from tests.conftest import ROOT
from tests.project_copy import yaml

DATA = (ROOT / "docs" / "data.md").read_text("utf-8")


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def archives() -> dict[str, dict]:
    (block,) = blocks(DATA, "yaml")
    return yaml.load(block)


@pytest.mark.parametrize("name", archives())
def test_an_archive_to_copy_is_valid_and_has_the_published_checksum(name: str):
    archive = Archive.model_validate(archives()[name])
    for url in archive.urls:
        assert published.CHECKSUMS[url.rpartition("/")[2]] == archive.checksum


def test_the_urls_of_voc2007_are_those_torchvision_publishes():
    for name, year in (("voc2007", "2007"), ("voc2007-test", "2007-test")):
        assert archives()[name]["urls"][0] == DATASET_YEAR_DICT[year]["url"]


def test_every_list_of_published_length_is_in_the_table_with_it():
    rows = re.findall(r"^\| (`.*?) \| ([\d, ]+) \|", DATA, re.MULTILINE)
    counts = {}
    for names, numbers in rows:
        quoted = re.findall(r"`(.*?)`", names)
        dataset = quoted[0].partition("/")[0]
        full = [name if "/" in name else f"{dataset}/{name}" for name in quoted]
        counts |= dict(zip(full, map(int, numbers.split(",")), strict=True))
    assert counts == {
        name: count for name, count in splits.PUBLISHED_COUNTS.items() if name != "voc2012/seg11valid"
    }


def test_the_lines_to_edit_for_ones_own_images_are_those_of_the_template():
    *_, block = blocks((ROOT / "docs" / "own-data.md").read_text("utf-8"), "yaml")
    assert block in (ROOT / "profiles" / "own.yaml").read_text("utf-8")


FAULTS = (ROOT / "docs" / "faults.md").read_text("utf-8")


def test_every_test_that_holds_a_fault_is_there():
    missing = [
        f"{file}::{test}"
        for file, test in re.findall(r"`([\w/]+\.py)::(test_\w+)`", FAULTS)
        if not re.search(rf"^def {test}\(", (ROOT / "tests" / file).read_text("utf-8"), re.MULTILINE)
    ]
    assert missing == []


def test_every_fault_has_a_test():
    rows = [row for row in FAULTS.splitlines() if row.startswith("| ") and "**" not in row][2:]
    assert len(rows) > 40
    assert [row for row in rows if not re.search(r"\.py::test_\w+` \|$", row)] == []


def test_the_sweep_to_copy_is_the_one_that_is_shipped():
    (block,) = blocks((ROOT / "docs" / "sweeps.md").read_text("utf-8"), "yaml")
    assert yaml.load(block) == yaml.load((ROOT / "sweeps" / "sample-lr.yaml").read_text("utf-8"))


def test_every_function_that_a_page_names_is_in_its_file():
    named = {
        (page.name, *reference)
        for page in (ROOT / "docs").glob("*.md")
        for reference in re.findall(r"`((?:fcn|pipeline)/[\w/]+\.py)::([\w.]+)`", page.read_text("utf-8"))
    }
    assert len(named) > 70
    named = {one for one in named if not one[2].startswith("test_")}  # of docs/faults.md, below tests/
    assert [one for one in named if one[2] not in defined_in(ROOT / one[1])] == []


@cache
def defined_in(path: Path) -> set[str]:
    """The names of functions, classes, their methods and constants of a file."""
    names = set()
    for node in ast.parse(path.read_text("utf-8")).body:
        if isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {target.id for target in targets if isinstance(target, ast.Name)}
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            inner = [inner.name for inner in ast.walk(node) if isinstance(inner, ast.FunctionDef)]
            names |= {node.name, *(f"{node.name}.{name}" for name in inner)}
    return names


def test_every_room_is_on_the_page_about_the_design():
    design = (ROOT / "docs" / "design.md").read_text("utf-8")
    rooms = [path.name for path in (ROOT / "pipeline").iterdir() if (path / "__init__.py").exists()]
    assert len(rooms) > 15
    assert [room for room in rooms if f"| `pipeline/{room}/` |" not in design] == []
