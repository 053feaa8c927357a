"""Checks of MLflow, data, models and fonts against real ones that are damaged or away; `fcn doctor` as a whole."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline import config, paths
from pipeline.doctor import thorough
from pipeline.doctor.findings import AdviceError, Setting
from pipeline.errors import UserError
from tests import small_shards
from tests.conftest import run_fcn
from tests.stage_runs import NAME, edit_profile, sample_profile, write_profile


@pytest.fixture
def setting(tmp_path: Path, monkeypatch) -> Setting:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    write_profile(tmp_path, sample_profile())
    return Setting(tmp_path, *config.load(tmp_path))


def test_a_server_of_mlflow_that_is_down_is_a_warning_with_its_address(setting, monkeypatch):
    assert "first run" in thorough.mlflow(setting)
    assert not (setting.root / "mlflow.db").exists()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@127.0.0.1:9")
    with pytest.raises(AdviceError, match=r"127\.0\.0\.1:9") as raised:
        thorough.mlflow(setting)
    assert "secret" not in str(raised.value)


def test_a_damaged_database_of_mlflow_is_named(setting):
    (setting.root / "mlflow.db").write_bytes(b"no database" * 100)
    with pytest.raises(AdviceError, match=r"mlflow\.db"):
        thorough.mlflow(setting)


def test_a_damaged_shard_is_named_with_the_command_that_makes_it_again(setting):
    assert "no shards" in thorough.data(setting)
    folder = small_shards.write(setting.root / paths.shards(NAME, "train"))
    assert "train" in thorough.data(setting)
    shard = next(folder.glob("*.tar"))
    shard.write_bytes(shard.read_bytes()[:-1024])
    with pytest.raises(UserError, match=f"{shard.name}.*dvc repro"):
        thorough.data(setting)


def test_shards_of_tuning_are_looked_at_as_well(setting):
    edit_profile(setting.root, "data", "tuning", value=0.2)
    setting = Setting(setting.root, *config.load(setting.root))
    folder = small_shards.write(setting.root / paths.shards(NAME, "tuning"))
    assert "tuning" in thorough.data(setting)
    next(folder.glob("*.tar")).unlink()
    with pytest.raises(UserError, match="tuning"):
        thorough.data(setting)


def test_a_folder_of_own_data_that_is_missing_is_named(setting):
    edit_profile(setting.root, "data", "source", value={"own": "../my-data"})
    with pytest.raises(UserError, match=r"data\.source\.own: .*my-data"):
        thorough.data(Setting(setting.root, *config.load(setting.root)))


@pytest.mark.parametrize("name", ["fcn8s", "backbone"])
def test_a_damaged_model_is_named(setting, name):
    assert "none" in thorough.models(setting)
    model = setting.root / paths.model(NAME, name)
    model.parent.mkdir(parents=True)
    model.write_bytes(b"no model")
    with pytest.raises(UserError, match=rf"{name}\.pt"):
        thorough.models(setting)


def test_gpus_that_the_profile_wants_and_this_machine_lacks_are_named(setting):
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    assert "none" in thorough.gpu(setting)
    edit_profile(setting.root, "train", "use_gpu", value=True)
    with pytest.raises(UserError, match="use_gpu"):
        thorough.gpu(Setting(setting.root, *config.load(setting.root)))


def test_letters_without_a_font_are_a_warning(setting):
    assert thorough.fonts(setting)
    linear_b = "\U00010000"
    data = setting.profile.data.model_copy(update={"classes": ["background", linear_b]})
    with pytest.raises(AdviceError, match=linear_b):
        thorough.fonts(setting._replace(profile=setting.profile.model_copy(update={"data": data})))


@pytest.mark.usefixtures("setting")
@pytest.mark.parametrize("has_git", [True, False])
def test_the_command_ends_with_1_only_if_a_run_would_fail(monkeypatch, capsys, has_git):
    """Without Ray, whose start takes seconds."""
    monkeypatch.setattr(thorough, "CHECKS", {"MLflow": thorough.mlflow, "data": thorough.data})
    if has_git:
        subprocess.run(["git", "init", "-q"], check=True)
        identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
        subprocess.run(["git", *identity, "commit", "-q", "--allow-empty", "-m", "x"], check=True)
    code, output, _ = run_fcn(monkeypatch, capsys, "doctor")
    assert code == (0 if has_git else 1)
    assert "make setup" in output or has_git
    code, output, _ = run_fcn(monkeypatch, capsys, "doctor", "--json")
    found = {finding["check"]: finding for finding in json.loads(output)}
    assert {"Python", "memory", "disk", "MLflow", "data"} <= found.keys()
    assert (found["git and DVC"]["state"] == "ok") is has_git


@pytest.mark.slow
def test_ray_starts_here_and_a_cluster_that_is_away_is_named(setting, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(sys.modules["pipeline"].__file__).parents[1]))
    assert "a worker answered" in thorough.ray(setting)
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")
    with pytest.raises(UserError, match=r"127\.0\.0\.1:9"):
        thorough.ray(setting)
