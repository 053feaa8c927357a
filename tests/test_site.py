"""docs/site/: README, CONTRIBUTING and docs/ as a site whose links lead somewhere, with a complete reference."""

import argparse
import sys
from pathlib import Path

import pytest

from pipeline.cli.main import parser
from pipeline.config import Profile
from tests.conftest import ROOT

sys.path.append(str(ROOT / "docs" / "site"))
import docstrings
import pages
import reference


def test_every_link_leads_to_a_file_and_every_page_is_in_the_navigation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(pages, "DEST", tmp_path / "pages")
    pages.main()
    for source in (ROOT / "docs").glob("**/*.md"):
        assert (tmp_path / "pages" / source.relative_to(ROOT / "docs")).exists()
    assert (tmp_path / "pages" / "images").is_dir()


def test_a_link_is_made_to_fit_the_site():
    text = "[a](docs/faults.md#x) [b](CONTRIBUTING.md) [`c`](fcn/loss.py) ![d](docs/images/d.png) [e](https://e.org)"
    page, missing = pages.on_site(text, "README.md")
    assert page == "[a](faults.md#x) [b](contributing.md) `c` ![d](images/d.png) [e](https://e.org)"
    assert missing == ["docs/images/d.png"]
    assert pages.on_site("[a](../../README.md#b) [c](../data.md)", "docs/reference/python.md") == (
        "[a](../index.md#b) [c](../data.md)",
        [],
    )
    assert pages.on_site("[gpu.md](gpu.md)", "docs/training.md") == ("[Train on a GPU](gpu.md)", [])


def test_the_reference_has_every_key_of_a_profile_with_a_meaning():
    keys = {
        (path, key)
        for path, section in reference.sections(Profile, "")
        if path
        for key in section.model_fields
    }
    rows, path = set(), ""
    for line in reference.profile_page().splitlines():
        if line.startswith("## ") or line.startswith("###"):
            path = line.split("`")[1]
        elif line.startswith("| `"):
            key, kind, default, meaning = (
                cell.strip() for cell in line.replace("\\|", "/")[1:-1].split(" | ")
            )
            assert kind
            assert default
            assert meaning
            rows.add((path, key.strip("`")))
    assert rows == keys


def test_the_reference_has_every_command_with_its_options():
    page = reference.cli_page()
    for command in reference.commands(parser()):
        assert f" `{command.prog}`\n" in page
        for action in command._actions:
            if action.help != argparse.SUPPRESS:
                assert all(option in page for option in action.option_strings)


def test_a_docstring_becomes_a_list_of_its_entries_and_nothing_in_it_is_lost_as_html():
    text = "Return a <b> ** 2.\n\nfirst: of data/<profile>, in\n    two lines.\nlow, high: ends.\n\nRaises `<x>`."
    assert dict(docstrings.entries(text)) == {
        "first": "of data/<profile>, in two lines.",
        "low": "ends.",
        "high": "ends.",
    }
    assert docstrings.as_markdown(text).splitlines() == [
        "Return a &lt;b> \\*\\* 2.",
        "",
        "- `first`: of data/&lt;profile>, in two lines.",
        "- `low, high`: ends.",
        "",
        "Raises `<x>`.",
    ]
