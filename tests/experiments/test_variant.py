"""One variant: what it leaves in its folder and in MLflow, and what a second call does again."""

import json
from pathlib import Path

import pytest
from mlflow import MlflowClient

from pipeline import paths
from pipeline.config import CHAIN
from pipeline.config.variant import Variant
from pipeline.curves import read_curve
from pipeline.errors import UserError
from pipeline.evaluation.results import read_result
from pipeline.experiments.seeds import with_seed
from pipeline.experiments.variant import run_variant
from pipeline.models import backbone, checkpoint
from pipeline.tracking import GROUP, MEMBER, Tracker
from pipeline.training import driver
from tests.experiments.conftest import NAME


@pytest.fixture
def variant(root) -> Variant:
    return Variant("seed 9", "group", root / "runs" / NAME / "group" / "seed 9")


def client(root: Path) -> MlflowClient:
    return MlflowClient(f"sqlite:///{root / 'mlflow.db'}")


def runs(root: Path, filter_string: str = ""):
    experiment = client(root).get_experiment_by_name(f"fcn-{NAME}")
    return client(root).search_runs([experiment.experiment_id], filter_string) if experiment else []


def files_outside(root: Path, folder: Path) -> set[str]:
    """What DVC, git or a user would see change."""
    return {
        str(path.relative_to(root))
        for path in root.rglob("*")
        if path.is_file() and not path.is_relative_to(folder) and path.parts[len(root.parts)] != "mlartifacts"
    }


def test_a_variant_leaves_all_in_its_folder_and_trains_nothing_twice(root, profile, variant, started):
    before = files_outside(root, variant.folder)
    values = run_variant(NAME, with_seed(profile, 9), root, variant)
    assert started == [f"seed 9 {net}" for net in CHAIN]
    for net in CHAIN:
        result = read_result(variant.folder / paths.metrics(NAME, net), net)
        assert result.values == json.loads(json.dumps(values[net]))
        assert result.images
        assert result.images.keys == ("3", "4", "5", "6")
        assert read_curve(variant.folder / paths.curve(NAME, net)).of("loss")[0] == [1, 2, 3, 4]
        lineage = checkpoint.load(variant.folder / paths.model(NAME, net), "model")[0]["lineage"]
        assert lineage["parent"] == ("backbone", *CHAIN)[CHAIN.index(net)]
        assert not (variant.folder / paths.RUNS / NAME / lineage["identity"]).exists()  # its checkpoints
    changed = files_outside(root, variant.folder) - before
    assert all(
        Path(name).parts[:3] == ("runs", NAME, ".tracking") or name.startswith("runs/.verified")
        for name in changed
    )
    assert run_variant(NAME, with_seed(profile, 9), root, variant) == json.loads(json.dumps(values))
    assert len(started) == 3


def test_a_variant_that_was_stopped_goes_on_where_it_was(root, profile, variant, started, monkeypatch):
    changed = with_seed(profile, 9)
    run_variant(NAME, changed, root, variant, "fcn32s")
    models = {"fcn32s": (variant.folder / paths.model(NAME, "fcn32s")).read_bytes()}
    real = driver._hand_over

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(driver, "_hand_over", killed)
    with pytest.raises(KeyboardInterrupt):
        run_variant(NAME, changed, root, variant)
    monkeypatch.setattr(driver, "_hand_over", real)
    run_variant(NAME, changed, root, variant)
    # FCN-16s had its last step done, so its training is not started again
    assert started == ["seed 9 fcn32s", "seed 9 fcn16s", "seed 9 fcn8s"]
    assert (variant.folder / paths.model(NAME, "fcn32s")).read_bytes() == models["fcn32s"]
    trained = [run for run in runs(root) if run.data.tags["net"] == "fcn16s"]
    assert len(trained) == 1
    assert [p.step for p in client(root).get_metric_history(trained[0].info.run_id, "loss")] == [1, 2, 3, 4]


def test_its_runs_are_children_of_their_group_with_scores_and_curves(root, profile, variant, started):  # noqa: ARG001
    tracker = Tracker(NAME, root)
    tracker.begin(tracker.record("group", "group", GROUP, "group", params={}, datasets={}))
    values = run_variant(NAME, with_seed(profile, 9), root, variant)
    (parent,) = runs(root, f"tags.`{GROUP}` = 'group'")
    children = runs(root, f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'")
    by_net = {run.data.tags["net"]: run for run in children}
    assert len(children) == len(by_net) == 3
    for net, run in by_net.items():
        assert run.info.run_name == f"{net} seed 9"
        assert run.info.status == "FINISHED"
        assert run.data.metrics["mean_iu"] == values[net]["mean_iu"]
        assert run.data.params["train.seed"] == "9"
        assert run.data.tags[MEMBER].startswith("group/seed 9/")
        assert {one.dataset.name for one in run.inputs.dataset_inputs} == {f"{NAME}-train", f"{NAME}-val"}
        assert client(root).get_metric_history(run.info.run_id, "loss")
    assert by_net["fcn8s"].data.tags["parent_run"] == by_net["fcn16s"].info.run_id


def test_scores_that_a_killed_process_did_not_log_are_logged_by_the_next(
    root, profile, variant, started, monkeypatch
):
    def killed(*_, **__):
        raise KeyboardInterrupt

    for flip in (False, True):
        settings = profile.evaluate.model_copy(update={"flip": flip})
        changed = with_seed(profile, 9).model_copy(update={"evaluate": settings})
        with monkeypatch.context() as patch:
            patch.setattr("pipeline.experiments.variant.scoring.as_metrics", killed)
            with pytest.raises(KeyboardInterrupt):
                run_variant(NAME, changed, root, variant, "fcn32s")
        values = run_variant(NAME, changed, root, variant, "fcn32s")["fcn32s"]
        assert bool(values["averaging"]) == flip
        (run,) = runs(root, f"tags.`{MEMBER}` LIKE 'group/%'")
        assert run.data.metrics["mean_iu"] == values["mean_iu"]
        assert run.data.metrics["border_mean_iu"] == values["border_mean_iu"]
    assert len(started) == 1


def test_another_seed_gives_another_net_and_the_same_seed_the_same(root, profile, started):  # noqa: ARG001
    def digest(seed: int, folder: str) -> str:
        variant = Variant(f"seed {seed}", "group", root / folder)
        run_variant(NAME, with_seed(profile, seed), root, variant, "fcn32s")
        content, _ = checkpoint.load(variant.folder / paths.model(NAME, "fcn32s"), "model")
        return checkpoint.content_digest(content["state_dict"])

    assert digest(9, "a") == digest(9, "b") != digest(10, "c")


def test_the_profiles_own_seed_takes_over_what_dvc_repro_trained(root, profile, started):
    backbone.write_random(
        root / paths.model(NAME, "backbone"), profile.model.arguments(), profile.backbone.seed
    )
    own = driver.train_net(NAME, profile, "fcn32s", root)
    seed = profile.train.seed
    variant = Variant(f"seed {seed}", "group", root / "runs" / NAME / "group" / f"seed {seed}")
    run_variant(NAME, with_seed(profile, seed), root, variant, "fcn16s")
    assert started == ["fcn32s", f"seed {seed} fcn16s"]
    assert (variant.folder / paths.model(NAME, "fcn32s")).read_bytes() == own.read_bytes()
    assert read_curve(variant.folder / paths.curve(NAME, "fcn32s")).of("loss")[0] == [1, 2, 3, 4]
    # Each has its run in MLflow, although both have one model
    names = sorted(run.info.run_name for run in runs(root) if run.data.tags["net"] == "fcn32s")
    assert names == ["fcn32s", f"fcn32s seed {seed}"]


def test_a_net_that_was_damaged_is_trained_again(root, profile, variant, started):
    changed = with_seed(profile, 9)
    run_variant(NAME, changed, root, variant, "fcn32s")
    model = variant.folder / paths.model(NAME, "fcn32s")
    content = model.read_bytes()
    model.write_bytes(content[: len(content) // 2])
    run_variant(NAME, changed, root, variant, "fcn32s")
    assert started == ["seed 9 fcn32s"] * 2
    assert checkpoint.load(model, "model")


def test_other_settings_of_the_evaluation_score_again_without_training(root, profile, variant, started):
    changed = with_seed(profile, 9)
    run_variant(NAME, changed, root, variant, "fcn32s")
    flipped = changed.model_copy(update={"evaluate": changed.evaluate.model_copy(update={"flip": True})})
    values = run_variant(NAME, flipped, root, variant, "fcn32s")["fcn32s"]
    assert values["averaging"]["flip"]
    assert len(started) == 1


def test_data_of_its_own_are_what_a_variant_is_trained_and_scored_on(root, profile, variant, started):  # noqa: ARG001
    own = root / "own"
    (root / "data" / NAME / "shards").rename(own)
    values = run_variant(
        NAME, profile, root, Variant(variant.name, variant.group, variant.folder, own), "fcn32s"
    )
    assert values["fcn32s"]["num_images"] == 4
    with pytest.raises(UserError, match="missing"):
        run_variant(NAME, profile, root, variant, "fcn16s")
