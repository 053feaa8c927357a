"""Names of runs: what a person changed stands in them."""

import subprocess
from pathlib import Path

import pytest

from pipeline.tracking import Tracker
from pipeline.tracking.naming import changed, run_name

PROFILE = """
data: {splits: {val: {include: [a/b]}}}
train: {seed: 1, num_workers: 2}
run: {log_every: 1}
nets:
  fcn32s: {lr: 1.0e-3}
  fcn16s: {lr: 1.0e-3}
  fcn8s: {lr: 1.0e-3}
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout whose one commit has the profile `small`."""
    (tmp_path / "profiles").mkdir()
    (tmp_path / "profiles" / "small.yaml").write_text(PROFILE)
    for command in (
        ["init", "-q"],
        ["add", "-A"],
        ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qma"],
    ):
        subprocess.run(["git", "-C", str(tmp_path), *command], check=True)
    return tmp_path


def edit(checkout: Path, *pairs: tuple[str, str]) -> None:
    path = checkout / "profiles" / "small.yaml"
    text = path.read_text()
    for before, after in pairs:
        assert before in text
        text = text.replace(before, after)
    path.write_text(text)


def test_a_net_of_the_committed_profile_has_its_own_name(checkout, monkeypatch):
    monkeypatch.delenv("DVC_EXP_NAME", raising=False)
    assert run_name("fcn8s", "small", checkout) == ("fcn8s", {})
    assert run_name("fcn8s", "other", checkout) == ("fcn8s", {})
    (checkout / "profiles" / "new.yaml").write_text("train: {seed: 3}")
    assert run_name("fcn8s", "new", checkout) == ("fcn8s", {})


def test_a_changed_value_is_in_the_names_of_the_nets_it_concerns(checkout, monkeypatch):
    monkeypatch.setenv("DVC_EXP_NAME", "calm-yak")
    edit(checkout, ("fcn16s: {lr: 1.0e-3}", "fcn16s: {lr: 2.0e-3}"), ("log_every: 1", "log_every: 9"))
    names = {name: run_name(name, "small", checkout)[0] for name in ("data", "fcn32s", "fcn16s", "fcn8s")}
    assert names == {
        "data": "data (calm-yak)",
        "fcn32s": "fcn32s (calm-yak)",
        "fcn16s": "fcn16s lr=0.002 (calm-yak)",
        "fcn8s": "fcn8s fcn16s.lr=0.002 (calm-yak)",
    }


def test_a_group_and_its_members_keep_their_names_and_a_tag_has_what_was_changed(checkout, monkeypatch):
    monkeypatch.delenv("DVC_EXP_NAME", raising=False)
    edit(
        checkout, ("[a/b]", "[a/c]"), ("seed: 1", "seed: 2"), ("fcn16s: {lr: 1.0e-3}", "fcn16s: {lr: 2.0e-3}")
    )
    later = {"data.splits.val.include", "train.seed"}
    for name, expected in (
        ("seeds-1a2b3c4d", later | {"nets.fcn16s.lr"}),
        ("fcn8s seed 3", later | {"nets.fcn16s.lr"}),
        ("fcn32s seed 3", later),
    ):
        title, tags = run_name(name, "small", checkout)
        assert title == name
        assert {change.partition("=")[0] for change in tags["changed"].split("; ")} == expected


def test_added_and_removed_values_are_changes_and_long_lists_are_cut(checkout, monkeypatch):
    monkeypatch.delenv("DVC_EXP_NAME", raising=False)
    lists = ", ".join(f"a/{i}" for i in range(30))
    edit(checkout, ("seed: 1, num_workers: 2", "seed: 2, loss: sum"), ("[a/b]", f"[{lists}]"))
    changes = changed("small", checkout)
    assert changes.keys() == {"train.seed", "train.loss", "train.num_workers", "data.splits.val.include"}
    assert changes["train.num_workers"] == "none"
    name, tags = run_name("fcn8s", "small", checkout)
    assert name.endswith("and 1 more")
    assert len(name) < 150
    assert all(f"'a/{i}'" in tags["changed"] for i in range(30))


def test_the_row_in_mlflow_has_the_name_and_the_models_name_stays_the_nets(
    checkout, empty_database, monkeypatch
):
    monkeypatch.setenv("DVC_EXP_NAME", "calm-yak")
    edit(checkout, ("seed: 1", "seed: 2"))
    (checkout / "mlflow.db").write_bytes(empty_database.read_bytes())
    tracker = Tracker("small", checkout)
    tracker.log(tracker.record("evaluation", "fcn8s", "model_sha256", "a", params={}, datasets={}), {}, {})
    (run,) = tracker.search_runs("tags.dvc_exp = 'calm-yak'")
    assert run.info.run_name == "fcn8s train.seed=2 (calm-yak)"
    assert run.data.tags["changed"] == "train.seed=2"


def test_an_experiments_copy_logs_to_its_projects_mlflow(tmp_path):
    for folder in ("standalone/tmp1", "tmp2"):
        workspace = tmp_path / ".dvc" / "tmp" / "exps" / folder
        workspace.mkdir(parents=True)
        tracker = Tracker("small", workspace)
        assert tracker.root == tmp_path
        assert tracker.uri == f"sqlite:///{tmp_path}/mlflow.db"
        assert tracker.records.folder == tmp_path / "runs" / "small" / ".tracking"
