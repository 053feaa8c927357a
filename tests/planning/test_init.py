"""`fcn init` from a drawn folder to the first steps of training."""

import math
import shutil
from itertools import chain

import pytest
import torch
from PIL import Image
from ruamel.yaml import YAML

from pipeline import config
from pipeline.cli.main import parser
from pipeline.curves import read_points
from pipeline.distributed.rank import SINGLE
from pipeline.errors import ConfigError, DatasetError, UserError
from pipeline.files import sha256_file
from pipeline.models import backbone
from pipeline.planning import fingerprint, init, machine, plan, trial
from pipeline.planning.machine import Machine
from pipeline.planning.trial import Trial
from pipeline.training import prepare
from pipeline.training.loop import train_worker
from tests.conftest import ROOT
from tests.planning.conftest import MISSING, label
from tests.test_structure import leaves, params_of, stages

LAPTOP = Machine(num_cores=2, memory=16e9)


def fcn(*arguments: object) -> None:
    parsed = parser().parse_args(list(map(str, arguments)))
    parsed.run(parsed)


def test_a_planned_profile_names_itself_and_its_first_two_steps_train(project, draw, capsys, monkeypatch):
    here = machine.read()._replace(num_cores=1, num_gpus=0, gpu_memory=0, has_bfloat16=False)
    monkeypatch.setattr(machine, "read", lambda: here)
    folder = draw(
        [label(48, 64, 1, 1, 2), label(64, 48, 1), label(48, 64), label(40, 40)], val=[label(40, 40)]
    )
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    fcn("init", folder, "mine")
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    output = capsys.readouterr().out
    assert output.endswith("dvc repro\n")
    assert all(f"{net}: " in output for net in config.CHAIN)
    assert f"pip install {MISSING}" in output

    name, profile = config.load()
    assert name == "mine"
    assert profile.data.source.own == str(folder)
    assert profile.data.classes == ["background", "cat", "dog"]
    assert profile.train.batch_size == 4
    text = (project / "profiles" / "mine.yaml").read_text("utf-8")
    head = text[: text.index("data:\n")]
    assert all(f"\n# {what}" in head for what in ("command:", "hardware:", "hours:", "expected:"))
    written = YAML(typ="safe", pure=True).load(text)
    assert set(written) == set(config.Profile.model_fields)
    keys = leaves(written)
    for param in chain.from_iterable(map(params_of, stages("mine").values())):
        assert any(f"{key}.".startswith(f"{param}.") for key in keys), f"dvc.yaml reads {param}"

    data = fingerprint.read(folder)
    trial.write_photos(data.pairs, data.classes, project / "data" / "mine" / "shards" / "train")
    backbone.write_random(project / "models" / "mine" / "backbone.pt", profile.model.arguments(), seed=1)
    values = profile.model_dump()
    values["nets"]["fcn32s"]["iterations"] = 2
    values["run"]["log_every"] = 1
    job = prepare.make_job("mine", config.Profile.model_validate(values), "fcn32s", project)
    job.folder.mkdir(parents=True)
    train_worker(job, SINGLE)
    losses = [point.values["loss"] for point in read_points(job.folder / "curves.jsonl", -1)]
    assert len(losses) == 2
    assert all(map(math.isfinite, losses))


def snapshot(project) -> dict[str, str]:
    return {str(path): path.read_text("utf-8") for path in project.rglob("*") if path.is_file()}


def test_a_profile_that_is_there_is_refused_before_any_work_and_replaced_with_force(
    project, draw, monkeypatch
):
    folder = draw([label(16, 16, 1, 2)] * 2)
    before = snapshot(project)
    with pytest.raises(ConfigError, match=r"profiles/sample\.yaml exists.*--force"):
        fcn("init", folder, "sample")
    assert snapshot(project) == before
    monkeypatch.setattr(trial, "measure", lambda _, nets, *__: [Trial(0.5, 1e9) for _ in nets])
    fcn("init", folder, "sample", "--force")
    assert config.load()[1].data.source.own == str(folder)


@pytest.mark.usefixtures("project")
def test_an_export_is_imported_first(tmp_path, monkeypatch):
    export = tmp_path / "coco.zip"
    shutil.copy(ROOT / "tests" / "importing" / "fixtures" / "coco.zip", export)
    monkeypatch.setattr(trial, "measure", lambda _, nets, *__: [Trial(0.5, 1e9) for _ in nets])
    fcn("init", export, "mine")
    _, profile = config.load()
    folder = tmp_path / "coco-imported"
    assert profile.data.source.own == str(folder)
    assert profile.data.classes == (folder / "classes.txt").read_text("utf-8").split("\n")[:-1]


@pytest.mark.parametrize("damage", ["mask", "class", "list", "folder"])
def test_a_folder_that_is_refused_leaves_the_project_as_it_was(project, draw, damage):
    folder = draw(
        [label(16, 16, 1, 2)] * 2, classes=["background", "cat", "dog", *["bird"] * (damage == "class")]
    )
    if damage == "mask":
        (folder / "masks" / "train1.png").unlink()
    if damage == "list":
        (folder / "splits" / "train.txt").unlink()
    if damage == "folder":
        shutil.rmtree(folder)
    before = snapshot(project)
    with pytest.raises(DatasetError):
        fcn("init", folder, "mine")
    assert snapshot(project) == before


def write_weights(project, path) -> None:
    """Make the weights of the profile laptop a file, with its checksum."""
    torch.save({}, path)
    profile = project / "profiles" / "laptop.yaml"
    yaml = YAML()
    values = yaml.load(profile.read_text("utf-8"))
    values["backbone"]["weights"] = {"urls": [path.as_uri()], "checksum": f"sha256:{sha256_file(path)}"}
    yaml.dump(values, profile)


def test_published_weights_are_used_where_they_can_be_had(project, tmp_path, monkeypatch):
    dest = tmp_path / "backbone.pt"
    without = init.choose_start(LAPTOP, project, dest)
    assert (without.template, without.is_pretrained, dest.exists()) == ("own", False, False)
    assert MISSING in without.cost
    write_weights(project, tmp_path / "weights.pth")
    taken = []
    monkeypatch.setattr(backbone, "write_pretrained", lambda _, model, file: taken.append((model, file.name)))
    start = init.choose_start(LAPTOP, project, dest)
    assert (start.template, start.is_pretrained, start.cost) == ("laptop", True, "")
    assert taken == [(config.read("laptop").model.arguments(), "weights.pth")]


@pytest.mark.parametrize(
    ("largest", "batch_size", "workers"), [(16, 16, 2), (15, 8, 1), (3, 2, 1), (1, 1, 1)]
)
def test_the_batch_is_halved_until_a_step_fits_into_memory(
    project, draw, tmp_path, monkeypatch, largest, batch_size, workers
):
    tried = []

    def measure(profile, nets, _, __, limit):
        tried.append(profile.train.batch_size)
        assert limit == 0.6 * LAPTOP.memory
        return [Trial(1.0, 1e9) for _ in nets] if profile.train.batch_size <= largest else None

    monkeypatch.setattr(trial, "measure", measure)
    data = fingerprint.read(draw([label(16, 16, 1, 2)] * 16))
    start = init.choose_start(LAPTOP, project, tmp_path / "backbone.pt")
    values = plan.values(init.fitting_plan(data, LAPTOP, start, tmp_path)[0])
    assert (values["train"]["batch_size"], values["train"]["num_workers"]) == (batch_size, workers)
    assert tried == [16 // 2**i for i in range(len(tried))]
    assert tried[-1] == batch_size


def test_photos_of_which_not_one_fits_into_memory_are_refused(project, draw, tmp_path, monkeypatch):
    monkeypatch.setattr(trial, "measure", lambda *_: None)
    data = fingerprint.read(draw([label(16, 16, 1, 2)] * 2))
    start = init.choose_start(LAPTOP, project, tmp_path / "backbone.pt")
    with pytest.raises(UserError, match=r"9\.6 GB"):
        init.fitting_plan(data, LAPTOP, start, tmp_path)


@pytest.mark.parametrize(("bfloat16_s", "precision"), [(0.5, "auto"), (0.9, "float32"), (2.0, "float32")])
def test_bfloat16_is_chosen_on_a_cpu_that_is_faster_with_it(
    project, draw, tmp_path, monkeypatch, bfloat16_s, precision
):
    def measure(profile, nets, *_):
        return [Trial(bfloat16_s if profile.train.precision == "auto" else 1.0, 1e9) for _ in nets]

    monkeypatch.setattr(trial, "measure", measure)
    data = fingerprint.read(draw([label(16, 16, 1, 2)] * 2))
    start = init.choose_start(LAPTOP, project, tmp_path / "backbone.pt")
    values = plan.values(init.fitting_plan(data, LAPTOP._replace(has_bfloat16=True), start, tmp_path)[0])
    assert values["train"]["precision"] == precision


def test_the_net_without_weights_is_the_projects_whatever_the_user_wrote_into_own_yaml(project, tmp_path):
    shipped = config.read("own", project)
    shutil.copy(project / "profiles" / "voc.yaml", project / "profiles" / "own.yaml")
    start = init.choose_start(LAPTOP, project, tmp_path / "backbone.pt")
    assert (start.template, start.is_pretrained) == ("own", False)
    for section in ("model", "backbone", "train", "nets"):
        assert getattr(start.profile, section) == getattr(shipped, section)


@pytest.mark.parametrize("damage", ["another size", "a mask cut off", "a photo cut off"])
def test_a_damaged_file_is_named_with_a_remedy_that_exists_before_the_first_run(project, draw, damage):
    folder = draw([label(16, 16, 1, 2)] * 2)
    path = folder / ("images/train0.jpg" if damage == "a photo cut off" else "masks/train0.png")
    if damage == "another size":
        Image.fromarray(label(5, 5)).save(path)
    else:
        path.write_bytes(path.read_bytes()[:-30])
    before = snapshot(project)
    with pytest.raises(DatasetError, match=rf"{path.name}.*fcn init") as error:
        fcn("init", folder, "mine")
    assert "dvc" not in str(error.value)
    assert "data.source" not in str(error.value)
    assert snapshot(project) == before
