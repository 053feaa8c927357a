"""Every profile loads, and takes its first steps: of a stand-in, narrower and with drawn images."""

import math

import pytest
import torch
from ruamel.yaml import YAML

from pipeline.config import CHAIN, Profile
from pipeline.curves import read_points
from pipeline.distributed.rank import SINGLE
from pipeline.models import backbone
from pipeline.training import prepare
from pipeline.training.loop import start_model, train_worker
from tests.conftest import ROOT
from tests.training.conftest import as_before  # noqa: F401  # a fixture
from tests.training.test_driver import write_data

PROFILES = sorted(path.stem for path in (ROOT / "profiles").glob("*.yaml"))
yaml = YAML(typ="safe", pure=True)


def stand_in(name: str) -> Profile:
    """The profile for one CPU worker with a narrow net and the sample's classes; its recipe stays."""
    values = yaml.load((ROOT / "profiles" / f"{name}.yaml").read_text("utf-8"))
    values["data"]["classes"] = ["background", "disc", "square", "triangle", "cross"]
    values["model"] |= {"width": 1 / 32}
    if values["model"]["backbone"] in ("vgg16", "alexnet", "caffenet"):  # others have one padding only
        values["model"]["padding"] = "tight"
    values["train"] |= {"num_workers": 1, "use_gpu": False}
    values["run"] |= {"loader_workers": 0, "log_every": 1}
    return Profile.model_validate(values)


@pytest.mark.parametrize("name", PROFILES)
def test_a_profiles_first_two_steps_train(tmp_path, name):
    profile = stand_in(name)
    write_data(tmp_path, seed=1, profile=name)
    write_data(tmp_path, seed=2, profile=name, split="val")
    trunk = tmp_path / "models" / name / "backbone.pt"
    backbone.write_random(trunk, profile.model.arguments(), seed=1)
    net = "fcn8s" if profile.model.at_once else "fcn32s"
    values = profile.model_dump()
    values["nets"][net]["iterations"] = 2 * (profile.train.batch_size if profile.train.batch_rule else 1)
    job = prepare.make_job(name, Profile.model_validate(values), net, tmp_path)
    job.folder.mkdir(parents=True)
    before = start_model(job).state_dict()
    train_worker(job, SINGLE)
    first, second = read_points(job.folder / "curves.jsonl", -1)
    terms = profile.train.terms
    at_zero = terms.cross_entropy * math.log(5)  # scores begin at zero
    assert 0.99 * at_zero < first.values["loss"] < 1.01 * at_zero + terms.dice  # the Dice term is in 0..1
    assert math.isfinite(second.values["loss"])
    after = torch.load(job.folder / "final.pt", weights_only=True)["content"]["state_dict"]
    assert not torch.equal(after["score_fr.bias"], before["score_fr.bias"])


@pytest.mark.parametrize("name", PROFILES)
def test_a_profile_begins_with_command_hardware_hours_and_expected_score(name):
    text = (ROOT / "profiles" / f"{name}.yaml").read_text("utf-8")
    header = text[: text.index("data:\n")]
    assert all(f"\n# {what}" in header for what in ("command:", "hardware:", "hours:", "expected:"))
    assert "@" not in header


def test_the_reference_releases_recipes_are_to_the_letter():
    """fcn-berkeley's solver.prototxt of each net."""

    def load(name: str) -> Profile:
        return Profile.model_validate(yaml.load((ROOT / "profiles" / f"{name}.yaml").read_text("utf-8")))

    heavy, at_once, alexnet = load("paper"), load("paper-at-once"), load("paper-alexnet")
    assert [heavy.net(net).lr for net in CHAIN] == [1e-10, 1e-12, 1e-14]
    assert [heavy.net(net).iterations for net in CHAIN] == [100_000] * 3
    assert (at_once.net("fcn8s").lr, at_once.net("fcn8s").iterations) == (1e-10, 300_000)
    for profile in (heavy, at_once):
        train = profile.train
        assert (train.batch_size, train.loss, train.schedule) == (1, "sum", "fixed")
        assert (train.optimizer.momentum, train.optimizer.weight_decay) == (0.99, 5e-4)
    assert at_once.model.at_once
    assert (alexnet.net("fcn32s").lr, alexnet.net("fcn32s").iterations) == (1e-4, 100_000)
    assert (alexnet.train.batch_size, alexnet.train.accumulation, alexnet.train.loss) == (
        20,
        20,
        "image_mean",
    )
    assert alexnet.train.optimizer.momentum == 0.9
    for profile in (heavy, at_once, alexnet):
        assert profile.train.sampling == "replacement"
        assert profile.run.validate_every == profile.run.checkpoint_every == 4000
