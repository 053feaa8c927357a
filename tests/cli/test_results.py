"""`fcn inspect`, `fcn compare` and `fcn explain` as a user runs them."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
import torch

from pipeline.cli.results import metrics_file
from pipeline.errors import ResultError
from pipeline.evaluation.results import read_result
from pipeline.models import checkpoint
from pipeline.tracking import Tracker
from tests.conftest import run_fcn
from tests.drawn_shards import shards_of
from tests.made_results import KEYS, make_result, write_result


@pytest.fixture
def fcn(tmp_path, monkeypatch, capsys) -> Callable[..., tuple[int, str, str]]:
    """Runs the command in an empty folder; gives exit code, standard output and standard error."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return partial(run_fcn, monkeypatch, capsys)


def test_inspect_describes_folders_of_shards_and_lists_shared_images(tmp_path, fcn):
    train = shards_of(tmp_path / "train", {"a": 1, "b": 2}, "train").folder
    val = shards_of(tmp_path / "val", {"c": 2, "d": 4}, "val").folder
    code, out, _ = fcn("inspect", str(val), str(train))
    assert code == 0
    lines = out.splitlines()
    assert [line.split("|")[2].strip() for line in lines if line.startswith("| images ")] == ["2", "2"]
    assert lines[-1] == f"{val} shares 1 images with {train}, by id or pixels: c (b in {train})"


def test_compare_takes_runs_by_path_and_by_profile_and_net(tmp_path, fcn):
    write_result(tmp_path / "metrics" / "small", make_result("fcn8s"))
    path = write_result(tmp_path, make_result("other", 60, seed=1))
    code, out, _ = fcn("compare", "small/fcn8s", str(path))
    assert code == 0
    lines = out.splitlines()
    assert [line.split()[0] for line in lines[:3]] == ["run", "small/fcn8s", str(path)]
    assert any(line.startswith(f"{path} - small/fcn8s  mean_iu") for line in lines)
    assert "precision  recall" not in out
    _, out, _ = fcn("compare", "small/fcn8s", str(path), "--classes")
    assert [line.split()[1] for line in out.splitlines() if line.startswith("disc ")] == [
        "small/fcn8s",
        str(path),
    ]
    _, page, _ = fcn("compare", "small/fcn8s", "--format", "html")
    assert page.startswith("<table>")
    assert "difference" not in page  # one run has nothing to differ from


def test_the_path_of_scores_in_a_folder_that_begins_as_a_group_does_is_a_path(tmp_path, fcn):
    path = write_result(tmp_path / "old" / "seeds-2025", make_result("fcn8s")).relative_to(tmp_path)
    code, out, err = fcn("compare", str(path))
    assert (code, err) == (0, "")
    assert str(path) in out


@pytest.mark.parametrize("command", ["compare", "explain"])
@pytest.mark.parametrize(
    ("run", "why"), [("none.json", "none.json"), ("small/fcn99s", "fcn99s.json"), ("nightly", "'nightly'")]
)
def test_a_run_that_is_not_there_ends_in_one_line_and_exit_code_2(tmp_path, fcn, command, run, why):
    code, _, err = fcn(command, run)
    assert code == 2
    assert err.startswith("error: ")
    assert why in err
    assert len(err.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []  # no database was made by looking for the run


def test_a_run_of_mlflow_is_found_by_id_and_by_name_with_its_counts(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    path = write_result(tmp_path / "metrics", make_result("fcn8s"))
    tracker = Tracker("small", tmp_path)
    nightly, unscored = (
        tracker.record("evaluation", name, "model_sha256", digest, params={}, datasets={})
        for name, digest in (("nightly", "ab"), ("bare", "cd"))
    )
    tracker.log(nightly, {"mean_iu": 0.5}, {}, [], [path, path.with_suffix(".parquet")])
    run, bare = (tracker.open_run(record).info.run_id for record in (nightly, unscored))
    for name in (run, "nightly"):
        with metrics_file(name) as downloaded:
            result = read_result(downloaded, name)
        assert (result.name, result.values) == (name, make_result("fcn8s").values)
        assert result.images
        assert result.images.keys == KEYS
    for name in (bare, "it's", "none"):
        with pytest.raises(ResultError) as caught, metrics_file(name):
            pass
        assert name in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name", ["fcn8s train.best_by=iu/person (calm-yak)", "fcn8s train.start=models/a/b.pt", "fcn8s it's a/b"]
)
def test_a_run_of_mlflow_whose_name_has_a_slash_is_compared_and_registered(tmp_path, fcn, name):
    path = write_result(tmp_path / "downloads", make_result("fcn8s"))
    tracker = Tracker("small", tmp_path)
    record = tracker.record("evaluation", "fcn8s", "model_sha256", "ab", params={}, datasets={})
    tracker.log(replace(record, title=name), {"mean_iu": 0.5}, {}, [], [path, path.with_suffix(".parquet")])
    code, out, _ = fcn("compare", name)
    assert (code, name in out) == (0, True)
    code, _, err = fcn("register", name, "shapes")
    assert (code, "has no model" in err) == (2, True)


def test_explain_takes_a_model_file_or_a_run(tmp_path, fcn):
    content = {"source": "vgg16.pth", "state_dict": {"w": torch.zeros(1)}}
    digest = checkpoint.save(tmp_path / "models" / "small" / "backbone.pt", "backbone", content)
    code, out, _ = fcn("explain", "models/small/backbone.pt")
    assert code == 0
    title, *facts = out.splitlines()
    assert title == "models/small/backbone.pt"
    assert dict(line.split() for line in facts) == {"sha256": digest, "weights": "vgg16.pth"}
    write_result(tmp_path / "metrics" / "small", make_result("fcn8s"))
    code, out, _ = fcn("explain", "small/fcn8s")
    assert code == 0
    assert out.startswith("small/fcn8s\n")
    code, _, err = fcn("explain", "none.pt")
    assert code == 2
    assert "none.pt" in err
