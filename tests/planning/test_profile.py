"""The profile's file is YAML of both versions, and params.yaml changes in one line."""

import pytest
from ruamel.yaml import YAML

from pipeline.errors import ConfigError
from pipeline.planning.profile import as_yaml, check_name, write


@pytest.mark.parametrize(
    "value",
    [
        *(
            "cat",
            "no",
            "Null",
            "1",
            "1e3",
            "traffic light",
            "a: b",
            "# x",
            "é",
            "猫",
            "it's",
            'a "b"',
            "~",
            "-",
            "",
        ),
        *(True, None, 0, 3, 0.5, 1e-5, 4e-4, 2.5e-3, 1e7, 3e-10),
        *(
            [256, 256],
            [],
            {"name": "adamw", "weight_decay": 5e-2},
            {"no": 1, "a: b": 2},
            ["../my data", "own/train"],
        ),
    ],
)
def test_every_value_is_read_as_it_was_written(value):
    for version in ((1, 1), (1, 2)):
        yaml = YAML(typ="safe", pure=True)
        yaml.version = version
        assert yaml.load(f"key: {as_yaml(value)}\n") == {"key": value}


def test_params_keeps_its_comments_and_other_lines(tmp_path):
    (tmp_path / "params.yaml").write_text("# first\nprofile: sample # which\nother: 1\n")
    write("no", "data:\n", tmp_path)
    assert (tmp_path / "params.yaml").read_text() == '# first\nprofile: "no" # which\nother: 1\n'
    assert (tmp_path / "profiles" / "no.yaml").read_text() == "data:\n"


@pytest.mark.parametrize("text", [None, "", "other: 1\n", "profile: a\nprofile: b\n"])
def test_a_params_file_without_one_line_to_change_is_refused(tmp_path, text):
    if text is not None:
        (tmp_path / "params.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"params\.yaml"):
        check_name("mine", tmp_path, force=False)


@pytest.mark.parametrize("name", ["", "a b", "../a", "a.b", "é"])
def test_a_name_that_cannot_be_a_profiles_is_refused(project, name):
    with pytest.raises(ConfigError, match="expected letters"):
        check_name(name, project, force=True)
