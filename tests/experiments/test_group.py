"""A group of seeds: its scores on disk and in MLflow, its page, and `fcn compare` of groups."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from mlflow import MlflowClient

from pipeline import paths
from pipeline.config import Profile
from pipeline.errors import ConfigError, ResultError, UserError
from pipeline.evaluation.bootstrap import Bootstrap
from pipeline.experiments import group, seeds, variant
from pipeline.experiments.seeds import Outcome, first_seeds, group_name, variant_of, with_seed
from pipeline.experiments.variant import run_variant
from pipeline.report import group_page
from pipeline.tracking import follow
from tests.conftest import run_fcn
from tests.experiments.conftest import NAME, train_here
from tests.lock_holder import holder
from tests.made_results import make_result, write_result
from tests.project_copy import yaml

SEEDS = (7, 8, 9)


def train(root: Path, profile: Profile, last_net: str = "fcn16s", seeds=SEEDS) -> str:
    """What `fcn seeds` does, without Ray. Return the group's name."""
    name = group_name(NAME, profile, root)
    run = group.begin_run(NAME, profile, name, root)
    for seed in seeds:
        run_variant(NAME, with_seed(profile, seed), root, variant_of(NAME, name, seed, root), last_net)
    scored = group.read_group(NAME, profile, name, root)
    group.end_run(*run, scored, group.write_page(scored, root))
    return name


@pytest.fixture(scope="module")
def group_root(tmp_path_factory, template, values) -> Path:
    """A project with a group of FCN-32s and FCN-16s, trained in this process."""
    root = Path(shutil.copytree(template, tmp_path_factory.mktemp("group") / "project"))
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.setattr(follow, "POLL_S", 0.05)
        train_here(patch)
        train(root, Profile.model_validate(values))
    return root


@pytest.fixture
def grouped(group_root, monkeypatch) -> Path:
    """That project as this process's folder; tests only read it."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(group_root)
    return group_root


@pytest.fixture
def copied(group_root, started, monkeypatch, tmp_path) -> Path:  # noqa: ARG001
    """A copy of that project as this process's folder, to train more in."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(follow, "POLL_S", 0.05)
    root = Path(shutil.copytree(group_root, tmp_path / "project"))
    monkeypatch.chdir(root)
    return root


def rows(text: str) -> dict[str, list[str]]:
    """The lines of plain tables by their first cells; cells are two spaces or more apart."""
    cells = [re.split(r" {2,}", line.strip()) for line in text.splitlines() if "  " in line]
    return {f"{line[0]} {line[1]}" if " - " in line[0] else line[0]: line for line in cells}


def test_the_first_seed_is_the_profiles_own_and_each_moves_a_random_backbone(profile):
    assert list(first_seeds(profile, 3)) == [7, 8, 9]
    assert with_seed(profile, 7) == profile
    moved = with_seed(profile, 9)
    assert (moved.train.seed, moved.backbone.seed) == (9, profile.backbone.seed + 2)
    assert (moved.data, moved.shards, moved.nets) == (profile.data, profile.shards, profile.nets)
    at_the_end = profile.model_copy(update={"train": profile.train.model_copy(update={"seed": 2**63 - 1})})
    with pytest.raises(ConfigError, match=r"train\.seed"):
        first_seeds(at_the_end, 2)


def test_a_group_is_of_one_recipe_and_one_data_set_and_may_grow(root, values, profile):
    name = group_name(NAME, profile, root)

    def name_with(section: str, key: str, value) -> str:
        changed = values | {section: values[section] | {key: value}}
        return group_name(NAME, Profile.model_validate(changed), root)

    assert name_with("run", "log_every", 3) == name_with("train", "num_workers", 2) == name
    assert name_with("evaluate", "flip", True) == name
    names = {name, name_with("train", "loss", "sum"), name_with("train", "seed", 8)}
    names.add(name_with("nets", "fcn8s", {"lr": 1.0, "iterations": 1}))
    assert len(names) == 4
    (root / paths.inspection(NAME) / "verdict.json").unlink()
    with pytest.raises(UserError, match=f"dvc repro inspect.*profile: {NAME}"):
        group_name(NAME, profile, root)


def test_the_scores_of_a_group_are_means_with_an_interval(grouped, profile):
    root, name = grouped, group_name(NAME, profile, grouped)
    scored = group.read_group(NAME, profile, name, root)
    assert [result.name for result in scored.results] == ["fcn32s", "fcn16s"]
    for result in scored.results:
        each = [
            json.loads(
                (
                    root / paths.group(NAME, name) / f"seed {seed}" / paths.metrics(NAME, result.name)
                ).read_text()
            )
            for seed in SEEDS
        ]
        scores = [values["mean_iu"] for values in each]
        assert result.values["mean_iu"] == pytest.approx(np.mean(scores))
        assert result.values["mean_iu_sd"] == pytest.approx(np.std(scores, ddof=1))
        assert result.values["mean_iu_low"] <= np.mean(scores) <= result.values["mean_iu_high"]
        assert result.values["seeds"] == [f"seed {seed}" for seed in SEEDS]
        for label, iu in result.values["class_iu"].items():
            known = [values["class_iu"][label] for values in each if values["class_iu"][label] is not None]
            assert iu == (pytest.approx(np.mean(known)) if known else None)


def test_a_group_is_one_run_in_mlflow_with_its_scores_its_page_and_its_children(copied, profile):
    root, name = copied, group_name(NAME, profile, copied)
    client = MlflowClient(f"sqlite:///{root / 'mlflow.db'}")
    experiment = client.get_experiment_by_name(f"fcn-{NAME}")
    (parent,) = client.search_runs([experiment.experiment_id], "tags.seeds = '3'")
    scored = group.read_group(NAME, profile, name, root)
    for result in scored.results:
        for key in ("mean_iu", "mean_iu_sd", "mean_iu_low", "pixel_acc_high"):
            assert parent.data.metrics[f"{result.name}/{key}"] == pytest.approx(result.values[key])
    assert parent.data.metrics["mean_iu"] == parent.data.metrics["fcn16s/mean_iu"]
    assert (parent.info.run_name, parent.info.status) == (name, "FINISHED")
    assert "seed 7" in parent.data.tags["mlflow.note.content"]
    assert [file.path for file in client.list_artifacts(parent.info.run_id)] == [group_page.PAGE]
    children = client.search_runs(
        [experiment.experiment_id], f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'"
    )
    assert len(children) == 6
    # One more seed: the same group and the same run
    assert train(root, profile, seeds=(*SEEDS, 10)) == name
    (parent,) = client.search_runs([experiment.experiment_id], "tags.seeds = '4'")
    assert len(client.search_runs([experiment.experiment_id])) == 1 + 8


def test_the_page_has_every_seed_and_needs_no_network(grouped, profile):
    root, name = grouped, group_name(NAME, profile, grouped)
    scored = group.read_group(NAME, profile, name, root)
    page = (root / paths.group(NAME, name) / group_page.PAGE).read_text("utf-8")
    assert page == group_page.build(scored)
    assert page.startswith("<!doctype html>")
    for seed in SEEDS:
        assert f"<td>seed {seed}</td>" in page
    for result in scored.results:
        assert f"{result.values['mean_iu']:.3f} [{result.values['mean_iu_low']:.3f}" in page
    assert page.count("data:image/svg+xml") == 2
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert "default-src 'none'" in page


def test_groups_are_compared_by_seeds_and_images_and_single_runs_are_called_blind(
    copied, profile, values, monkeypatch, capsys
):
    root, first = copied, group_name(NAME, profile, copied)
    other = Profile.model_validate(values | {"train": values["train"] | {"loss": "sum"}})
    second = train(root, other, "fcn32s")
    assert first != second
    code, out, _ = run_fcn(
        monkeypatch,
        capsys,
        "compare",
        f"{NAME}/{first}/fcn32s",
        f"{NAME}/{first}/fcn16s",
        f"{NAME}/seeds/fcn32s",
    )
    assert code == 0
    cells = rows(out)
    assert cells[f"{NAME}/{first}/fcn32s"][-2:] == ["3", "yes"]
    nets = cells[f"{NAME}/{first}/fcn16s - {NAME}/{first}/fcn32s mean_iu"]
    assert nets[4].startswith("3: ")  # pairs: each FCN-16s with its own FCN-32s
    recipes = cells[f"{NAME}/seeds/fcn32s - {NAME}/{first}/fcn32s mean_iu"]
    assert recipes[4].startswith("3 and 3: ")
    newest = group.read_net(NAME, second, "fcn32s", root, group.Bootstrap(), "newest")
    assert cells[f"{NAME}/seeds/fcn32s"][1].startswith(f"{newest.values['mean_iu']:.3f}")

    single = [
        str(root / paths.group(NAME, first) / f"seed {seed}" / paths.metrics(NAME, "fcn32s"))
        for seed in (7, 8)
    ]
    code, out, _ = run_fcn(monkeypatch, capsys, "compare", *single)
    assert rows(out)[f"{single[1]} - {single[0]} mean_iu"][4] == "blind to seeds"
    code, out, _ = run_fcn(monkeypatch, capsys, "compare", single[0], f"{NAME}/{first}/fcn32s")
    assert code == 0
    assert "single run" in rows(out)[f"{NAME}/{first}/fcn32s - {single[0]} -"][-1]


def test_a_parent_of_mlflow_is_compared_as_the_group_on_disk(grouped, profile, monkeypatch, capsys):
    name = group_name(NAME, profile, grouped)
    code, out, _ = run_fcn(monkeypatch, capsys, "compare", "--parent", name)
    assert code == 0
    there = rows(out)
    _, out, _ = run_fcn(monkeypatch, capsys, "compare", f"{NAME}/{name}/fcn32s", f"{NAME}/{name}/fcn16s")
    here = rows(out)
    for net in ("fcn32s", "fcn16s"):
        assert there[f"{name}/{net}"][1:] == here[f"{NAME}/{name}/{net}"][1:]
    difference = f"{name}/fcn16s - {name}/fcn32s mean_iu"
    assert there[difference][1:] == here[f"{NAME}/{name}/fcn16s - {NAME}/{name}/fcn32s mean_iu"][1:]


def test_only_folders_of_seeds_are_its_seeds_in_the_order_of_their_numbers(tmp_path):
    folder = tmp_path / paths.group(NAME, "seeds-ab")
    for name in ("seed 10", "seed 9", "seed 9 copy", "seed old", "notes"):
        write_result(folder / name / paths.metrics(NAME, "fcn8s").parent, make_result("fcn8s"))
    (folder / "seed 11").mkdir()
    assert [name for name, _ in group.seeds_of(NAME, "seeds-ab", "fcn8s", tmp_path)] == ["seed 9", "seed 10"]


def test_a_second_command_waits_until_the_first_has_ended(copied, profile, values, monkeypatch, capsys):
    (copied / "profiles").mkdir()
    with (copied / "profiles" / f"{NAME}.yaml").open("w") as file:
        yaml.dump(values, file)
    path = copied / paths.group(NAME, group_name(NAME, profile, copied)) / "lock"

    def train_nothing(*_) -> Iterator[Outcome]:
        assert first.wait(0) == 0
        yield from ()

    monkeypatch.setattr(seeds, "train_seeds", train_nothing)
    with holder(path, 1.0) as first:
        code, _, err = run_fcn(monkeypatch, capsys, "seeds", NAME, "--num", "3", "--net", "fcn16s")
    assert code == 0
    assert f"process {first.pid} on " in err


def test_a_seeds_scores_are_traced_to_the_model_in_its_own_folder(grouped, profile, monkeypatch, capsys):
    folder = variant_of(NAME, group_name(NAME, profile, grouped), 8, grouped).folder.relative_to(grouped)
    code, out, _ = run_fcn(monkeypatch, capsys, "explain", str(folder / paths.metrics(NAME, "fcn32s")))
    assert code == 0
    assert str(folder / paths.model(NAME, "fcn32s")) in out
    assert "mismatch" not in out
    assert "no such file" not in out


@pytest.mark.parametrize("name", ["seeds-0", "seeds-5"])
def test_a_group_or_net_without_scores_is_answered_with_the_groups_that_are_there(tmp_path, name):
    for other in ("seeds-1", "seeds-5"):
        (tmp_path / paths.group(NAME, other)).mkdir(parents=True)
    with pytest.raises(ResultError, match=rf"{name} of .*{NAME}.* fcn8s.*: seeds-1, seeds-5\."):
        group.read_net(NAME, name, "fcn8s", tmp_path, group.Bootstrap(), f"{NAME}/{name}/fcn8s")


def test_a_seed_that_an_earlier_call_scored_in_another_way_is_named_with_the_call_that_scores_all(tmp_path):
    folder, flip = tmp_path / paths.group(NAME, "seeds-ab"), {"scales": [1.0], "flip": True}
    for seed, averaging in enumerate([flip, flip, None]):
        result = make_result("fcn8s", seed=seed, averaging=averaging)
        assert result.images
        result.images.about["averaging"] = averaging
        write_result(folder / f"seed {seed}" / paths.metrics(NAME, "fcn8s").parent, result)
    with pytest.raises(ResultError, match=r"seed 0 and seed 2.*averaging.*--num 3"):
        group.read_net(NAME, "seeds-ab", "fcn8s", tmp_path, Bootstrap(100), "fcn8s")


def test_a_mistake_of_the_code_in_one_seed_is_an_error_that_the_group_survives(root, profile, monkeypatch):
    def fail(*_):
        raise RuntimeError("CUDA out of memory")

    monkeypatch.setattr(variant, "run_variant", fail)
    with pytest.raises(UserError, match=r"RuntimeError.*memory"):
        seeds._run_seed(NAME, profile, root, "seeds-ab", "fcn8s", {}, 7)


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("compare", f"{NAME}/seeds/fcn8s"), "fcn seeds"),
        (("compare", f"{NAME}/seeds-00000000/fcn8s"), "groups there: none"),
        (("compare", "--parent", "nothing"), "'nothing'"),
        (("compare",), "--parent"),
        (("seeds", "nowhere"), "nowhere"),
    ],
)
def test_what_is_not_there_ends_in_one_line_and_exit_code_2(root, monkeypatch, capsys, arguments, why):
    (root / "profiles").mkdir()
    code, _, err = run_fcn(monkeypatch, capsys, *arguments)
    assert code == 2
    assert err.startswith("error: ")
    assert why in err
    assert len(err.splitlines()) == 1
