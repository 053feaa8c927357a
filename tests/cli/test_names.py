"""A model, a run or a profile named in another way, or missing: understood, or refused by its right name."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT, run_fcn
from tests.made_results import make_result
from tests.tiny_model import write_model


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """The root of a project with two models, the scores of one, and files that are none of these."""
    monkeypatch.chdir(tmp_path)
    Path("params.yaml").write_text("profile: mine\n")
    for profile in ("mine", "other"):
        Path("models", profile).mkdir(parents=True)
        write_model(Path("models", profile, "fcn8s.pt"))
    Path("metrics/mine").mkdir(parents=True)
    Path("metrics/mine/fcn8s.json").write_text(json.dumps(make_result("a").values))
    Path("profiles").mkdir()
    Path("profiles/mine.yaml").write_text("data: {}\n")
    Path("sweeps").mkdir()
    Path("sweeps/lr.yaml").write_text("profile: mine\n")
    Path("notes.txt").write_text("to do\n")
    Path("folder").mkdir()
    return tmp_path


@pytest.fixture
def fcn(here, monkeypatch, capsys):  # noqa: ARG001  # in that folder
    return lambda *arguments: run_fcn(monkeypatch, capsys, *arguments)


MODEL_COMMANDS = [
    ("predict", "{}", "folder", "--output", "out"),
    ("serve", "{}", "--port", "0"),
    ("export", "{}", "out.onnx"),
    ("caffe", "export", "{}", "out"),
    ("submit", "{}", "out.tar", "--voc", "folder"),
]


@pytest.mark.parametrize("command", MODEL_COMMANDS)
@pytest.mark.parametrize("missing", ["models/mine/fcn16s.pt", "nosuch/fcn8s", "fcn16s", "none.onnx"])
def test_a_missing_model_names_the_active_profile_and_the_models_that_are_there(fcn, command, missing):
    code, _, error = fcn(*(part.format(missing) for part in command))
    assert code == 2
    assert error.startswith(f"error: {missing} is missing")
    assert all(f"models/{profile}/fcn8s.pt" in error for profile in ("mine", "other"))
    assert "profile is mine" in error


@pytest.mark.parametrize("name", ["models/other/fcn8s.pt", "other/fcn8s", "fcn8s"])
def test_a_model_is_known_by_its_path_by_profile_and_net_and_by_its_net(fcn, name):
    code, _, error = fcn("export", name, "out.safetensors")
    assert (code, error) == (0, "")
    assert Path("out.safetensors").exists()


@pytest.mark.parametrize("name", ["fcn8s.pt2", "fcn8s.onnx"])
def test_an_exported_program_is_refused_as_such(fcn, name):
    assert fcn("export", "fcn8s", name)[0] == 0
    for command in MODEL_COMMANDS[2:4]:
        code, _, error = fcn(*(part.format(name) for part in command))
        assert code == 2
        assert "give the model that was exported" in error


@pytest.mark.parametrize("dest", ["out", "out.txt", "folder", "out.pt"])
def test_an_export_whose_name_does_not_tell_the_format_is_refused_with_the_names_that_do(fcn, dest):
    code, _, error = fcn("export", "fcn8s", dest)
    assert code == 2
    assert ".onnx or .pt2 or .safetensors" in error


@pytest.mark.parametrize("run", ["mine/fcn8s", "models/mine/fcn8s.pt", "metrics/mine/fcn8s.json"])
def test_a_run_is_known_by_its_name_and_by_the_path_of_its_model_or_scores(fcn, run):
    code, out, _ = fcn("compare", run)
    assert code == 0
    assert run in out


@pytest.mark.parametrize("command", [("compare", "{}"), ("explain", "{}"), ("register", "{}", "shapes")])
@pytest.mark.parametrize("run", ["mine/fcn16s", "nosuch/fcn8s"])
def test_missing_scores_name_those_that_are_there(fcn, command, run):
    code, _, error = fcn(*(part.format(run) for part in command))
    assert code == 2
    assert f"metrics/{run}.json is missing" in error
    assert "metrics/mine/fcn8s.json" in error


@pytest.mark.parametrize("what", ["notes.txt", "folder", "profiles/mine.yaml"])
@pytest.mark.parametrize("command", [("compare", "{}"), ("explain", "{}"), ("register", "{}", "shapes")])
def test_a_file_that_is_no_run_is_refused(fcn, command, what):
    code, _, error = fcn(*(part.format(what) for part in command))
    assert code == 2
    assert f"{what} is not a run" in error


@pytest.mark.parametrize("command", [("seeds", "{}"), ("tracking", "replay", "{}"), ("tracking", "ui", "{}")])
def test_an_unknown_profile_is_refused_with_those_that_are_known(fcn, command):
    code, _, error = fcn(*(part.format("nosuch") for part in command))
    assert code == 2
    assert "'nosuch'" in error
    assert "params.yaml" not in error  # which does not name it
    code, _, error = fcn(*(part.format("folder/fcn8s.pt") for part in command))
    assert code == 2
    assert "not a profile's name" in error


def test_a_profile_is_known_by_the_path_of_its_file(fcn):
    assert fcn("seeds", "profiles/mine.yaml") == fcn("seeds", "mine")


def test_a_missing_sweep_names_those_that_are_there_and_a_profile_is_none(fcn):
    code, _, error = fcn("sweep", "lr")
    assert (code, "sweeps/lr.yaml" in error) == (2, True)
    code, _, error = fcn("sweep", "profiles/mine.yaml")
    assert (code, "is a profile" in error) == (2, True)


def test_a_folder_of_splits_names_them_and_a_file_is_no_folder_of_shards(fcn):
    for split in ("train", "val"):
        Path("shards", split).mkdir(parents=True)
        Path("shards", split, "manifest.parquet").touch()
    for command in (("inspect", "{}"), ("shards", "verify", "{}")):
        code, out, error = fcn(*(part.format("shards") for part in command))
        assert code in (1, 2)
        assert "shards/train, shards/val" in out + error
        code, out, error = fcn(*(part.format("notes.txt") for part in command))
        assert code in (1, 2)
        assert "notes.txt is a file" in out + error


def test_comparing_single_runs_imports_neither_torch_nor_mlflow_which_take_seconds(here):
    program = (
        "import sys; from pipeline.cli.main import main; sys.argv = ['fcn', 'compare', 'mine/fcn8s']; main(); "
        "print({'torch', 'mlflow', 'ray'} & set(sys.modules))"
    )
    command = [sys.executable, "-c", program]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=here, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "set()"
