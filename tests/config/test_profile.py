"""pipeline/config: valid profiles, and the message for each kind of mistake."""

import copy
import pickle
import re
import subprocess
import sys
from inspect import signature
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from pydantic import BaseModel, ValidationError
from ruamel.yaml import YAML

from fcn.model import BACKBONES, FCN
from pipeline import config
from pipeline.config import data, training
from pipeline.config.model import Model
from pipeline.datasets import published, splits
from pipeline.errors import USER_MISTAKE, ConfigError
from tests.conftest import ROOT

yaml = YAML(typ="safe", pure=True)
PROFILES = sorted(path.stem for path in (ROOT / "profiles").glob("*.yaml"))
SAMPLE = (ROOT / "profiles" / "sample.yaml").read_text(encoding="utf-8")
ARCHIVE = {"urls": ["https://example.org/a.tar"], "checksum": "md5:" + "0" * 32}
DRAWING = {"num_train": 1, "num_val": 1, "image_size": 48, "seed": 0}
DELETED = object()


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder with params.yaml and a profile voc, which is the sample profile under another name."""
    (tmp_path / "profiles").mkdir()
    (tmp_path / "params.yaml").write_text("profile: voc\n")
    (tmp_path / "profiles" / "voc.yaml").write_text(SAMPLE)
    return tmp_path


def write(project: Path, text: str | bytes) -> None:
    (project / "profiles" / "voc.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())


def edit(project: Path, where: str, value: Any) -> None:
    """Set one key of the profile, given with dots, or delete it."""
    values: Any = yaml.load(SAMPLE)
    *sections, key = where.split(".")
    section = values
    for name in sections:
        section = section[name]
    if value is DELETED:
        del section[key]
    else:
        section[key] = copy.deepcopy(value)
    with (project / "profiles" / "voc.yaml").open("w") as file:
        yaml.dump(values, file)


def message(project: Path) -> str:
    """The error of loading the project, with paths as in a user's terminal in that folder."""
    with pytest.raises(ConfigError) as caught:
        config.load(project)
    return str(caught.value).replace(f"{project}/", "")


# --- valid profiles


@pytest.mark.parametrize("name", PROFILES)
def test_every_committed_profile_loads_with_the_published_checksums(name: str, tmp_path: Path):
    (tmp_path / "profiles").symlink_to(ROOT / "profiles")
    (tmp_path / "params.yaml").write_text(f"profile: {name}\n")
    loaded, profile = config.load(tmp_path)
    assert loaded == name
    for archive in profile.data.source.archives.values():
        for url in archive.urls:
            assert archive.checksum == published.CHECKSUMS[url.rpartition("/")[2]]


def test_the_committed_params_name_a_committed_profile():
    assert config.load(ROOT)[0] in PROFILES


def test_a_profile_has_the_values_of_its_file(project: Path, monkeypatch: pytest.MonkeyPatch):
    name, profile = config.load(project)
    assert name == "voc"
    assert profile.model_dump(mode="json", exclude_unset=True) == yaml.load(SAMPLE)
    monkeypatch.chdir(project)
    assert config.load() == (name, profile)


@pytest.mark.parametrize(
    ("text", "number"), [("1e-10", 1e-10), ("1E-10", 1e-10), ("1.0e-10", 1e-10), ("1", 1.0)]
)
def test_a_number_without_a_dot_is_a_number_as_in_yaml_1_2(project: Path, text: str, number: float):
    write(project, SAMPLE.replace("lr: 2.0e-3", f"lr: {text}"))
    lr = config.load(project)[1].nets.fcn32s.lr
    assert (type(lr), lr) == (float, number)


def test_no_is_a_word_as_in_yaml_1_2(project: Path):
    write(project, SAMPLE.replace("cross]", "no]"))
    assert config.load(project)[1].data.classes[-1] == "no"


def test_every_data_set_that_is_read_may_be_named(project: Path):
    names = [f"{name}/train" for name in splits.DATASETS]
    edit(project, "data.splits.train.include", names)
    assert config.load(project)[1].data.splits.train.include == names


@pytest.mark.parametrize("kind", data.URL_KINDS)
def test_a_mirror_may_be_a_url_of_any_kind_that_is_read(project: Path, kind: str):
    url = f"{kind}://bucket/folder/a.tar"
    edit(project, "data.source", {"archives": {"a": ARCHIVE | {"urls": [url]}}})
    assert config.load(project)[1].data.source.archives["a"].urls == [url]


@pytest.mark.parametrize(
    ("destination", "location"),
    [
        ("s3://shelf", "s3://shelf/voc/train"),
        ("s3://shelf/a/b/", "s3://shelf/a/b/voc/train"),
        ("/mnt/large", Path("/mnt/large/voc/train")),
    ],
)
def test_shards_go_below_a_bucket_or_a_folder(project: Path, destination: str, location: Path | str):
    edit(project, "shards.destination", destination)
    assert config.load(project)[1].shards.location("voc", "train") == location


def sections(value: BaseModel) -> list[BaseModel]:
    """The value and every section in it."""
    inner = [getattr(value, name) for name in type(value).model_fields]
    return [value] + [deeper for one in inner if isinstance(one, BaseModel) for deeper in sections(one)]


def test_no_key_of_any_section_can_be_set_once_loaded(project: Path):
    loaded = sections(config.load(project)[1])
    assert {"Profile", "Train", "Optimizer", "Net", "Drawing"} <= {type(one).__name__ for one in loaded}
    for section in loaded:
        for name in type(section).model_fields:
            with pytest.raises(ValidationError, match="frozen"):
                setattr(section, name, getattr(section, name))


def test_transforms_compare_and_hash_by_value_and_travel_to_other_processes():
    transforms = config.Transforms(mirror=True, scale=(0.5, 2.0), crop=(48, 64))
    same = config.Transforms.model_validate({"mirror": True, "scale": [0.5, 2.0], "crop": [48, 64]})
    assert {transforms, same, pickle.loads(pickle.dumps(same))} == {transforms}
    assert transforms != config.Transforms()


def test_the_chain_names_the_nets_of_a_profile_and_their_strides():
    assert tuple(training.Nets.model_fields) == config.CHAIN == tuple(config.STRIDE)
    assert [f"fcn{stride}s" for stride in config.STRIDE.values()] == list(config.CHAIN)


@pytest.mark.parametrize(("name", "fact"), [("disc", ""), ("disk", "iu/disk; known: background, disc")])
def test_the_best_net_is_best_by_a_class_of_the_profile(project: Path, name: str, fact: str):
    choice = {"keep": "best", "validate_every": 10, "best_by": f"iu/{name}"}
    edit(project, "train", yaml.load(SAMPLE)["train"] | choice)
    if fact:
        assert fact in message(project)
    else:
        assert config.load(project)[1].train.chooses


# --- a wrong value

SOURCE = "data.source"
SECRET = "hunter2"


@pytest.mark.parametrize(
    ("where", "value", "expected"),
    [
        # one of each type and limit
        ("nets.fcn32s.lr", "1e-1O", "a number, got '1e-1O'"),
        ("nets.fcn32s.lr", True, "a number, got True"),
        ("nets.fcn32s.lr", None, "a number, got None"),
        ("nets.fcn32s.lr", 0, "greater than 0, got 0"),
        ("nets.fcn8s.lr", float("nan"), "finite number, got nan"),
        ("nets.fcn8s.iterations", 400.0, "a whole number, got 400.0"),
        ("nets.fcn8s", 3, "a section of keys and values, got 3"),
        ("model.padding", "same", "'reference' or 'tight', got 'same'"),
        ("model.batch_norm", 1, "true or false, got 1"),
        ("model.backbone", 16, "'resnet50' or 'vgg16', got 16"),
        ("model.backbone", "vgg61", "'resnet50' or 'vgg16', got 'vgg61'"),
        ("train.optimizer.momentum", 1.0, "less than 1, got 1.0"),
        ("train.seed", 2**63, f"less than {2**63}, got {2**63}"),
        ("train.exchange", {"compression": "powersgd"}, "'none' or 'bf16', got 'powersgd'"),
        ("data.classes", "background", "a list, got 'background'"),
        ("data.classes", ["background"], "at least 2 items, got ['background']"),
        ("evaluate.scales", [1.0, 1], "differ from each other, got [1.0, 1.0]"),
        ("train.transforms", {"scale": [2.0, 0.5]}, "[least, greatest], got [2.0, 0.5]"),
        ("train.transforms", {"scale": [0.5]}, "train.transforms.scale.1 is missing; add it"),
        ("train.transforms", {"crop": 320}, "a list, got 320"),
        ("data.allow_leak", ["yes"], "got 'yes'"),
        ("train.start", "", "train.start: must not be empty; leave it out instead"),
        ("shards.destination", " ", "shards.destination: must not be empty; leave it out instead"),
        ("run.cache", {"folder": "cache"}, "than the command that started it"),
        ("run.cache", {"folder": ""}, "run.cache.folder: must not be empty; leave it out instead"),
        (
            SOURCE,
            {"shards": {"train": "", "val": "v"}},
            "shards.train: must not be empty; leave it out instead",
        ),
        # names and checksums
        ("data.splits.val.exclude", ["sbd"], "got 'sbd'"),
        ("data.splits.val.exclude", ["sbd/../x"], "got 'sbd/../x'"),
        ("data.splits.val.exclude", ["coco/train"], "got 'coco/train'"),
        (SOURCE, {"archives": {"../a": ARCHIVE}}, "got '../a'"),
        (SOURCE, {"archives": {"a": ARCHIVE | {"checksum": "md5:123"}}}, "got 'md5:123'"),
        (SOURCE, {"archives": {"a": {"urls": ARCHIVE["urls"]}}}, "archives.a.checksum is missing; add it"),
        # keys that do not fit each other
        ("data.classes", ["background", "cat", "cat"], "differ from each other"),
        ("data.classes", ["background", ""], "outer spaces"),
        ("data.classes", ["background", "cat "], "outer spaces"),
        ("data.classes", ["background", "cat\u2028dog"], "outer spaces"),
        (
            "data.map",
            {"cat": "dog"},
            "map is for data.source.own; the labels of other sources have the published classes",
        ),
        (SOURCE, {}, "sample, archives, local, own and shards must be given, found none"),
        (SOURCE, {"local": "", "archives": {}}, "found none"),
        (
            "data.splits",
            None,
            "splits must be null with source.shards, and lists of ids with any other source",
        ),
        (SOURCE, {"sample": DRAWING, "local": "/data"}, "found sample and local"),
        (SOURCE, {"local": "/data", "own": "/data"}, "found local and own"),
        (
            SOURCE,
            {"archives": {"a": ARCHIVE, "b": ARCHIVE | {"urls": ["https://elsewhere.org/b/a.tar"]}}},
            "a.tar, a.tar: the first URLs must end in different file names",
        ),
        ("run.min_workers", 3, "run.min_workers 3 is more than train.num_workers 2"),
    ],
)
def test_a_wrong_value_is_named_with_file_key_and_what_it_must_be(
    project: Path, where: str, value: Any, expected: str
):
    edit(project, where, value)
    text = message(project)
    assert text.startswith("profiles/voc.yaml: ")
    assert where.partition(".")[0] in text
    assert text.endswith(expected)
    assert "\n" not in text


OPTIONS = {
    "width": 0.5,
    "batch_norm": True,
    "fc6_kernel": 3,
    "dropout": 0.1,
    "pixels": "torchvision",
    "padding": "tight",
}


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("option", [*OPTIONS.items(), ("fc6_kernel", 4)])
def test_a_model_section_is_refused_if_and_only_if_there_is_no_such_net(backbone, option):
    arguments = {"backbone": backbone, **dict([option])}
    try:
        with torch.device("meta"):
            FCN(**arguments)
    except ValueError:
        with pytest.raises(ValidationError, match=option[0]):
            Model.model_validate(arguments)
    else:
        assert Model.model_validate(arguments).arguments().items() >= arguments.items()


def test_every_backbone_may_stand_in_a_profile():
    assert set(get_args(Model.model_fields["backbone"].annotation)) == set(BACKBONES)
    tested = {*OPTIONS, "backbone", *signature(FCN).parameters}
    assert set(Model.model_fields) <= tested


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"batch_size": 7}, ["batch_size 7", "num_workers 2", "accumulation 1"]),
        ({"batch_rule": True}, ["batch_rule", "optimizer.name", "sgd", "adamw"]),
        ({"size_buckets": True, "transforms": {"crop": [64, 64]}}, ["size_buckets", "transforms.crop"]),
        ({"order": "blocks", "sampling": "replacement"}, ["order blocks", "sampling"]),
        ({"order": "blocks", "size_buckets": True}, ["order blocks", "size_buckets"]),
        ({"size_buckets": True, "transforms": {"scale": [0.5, 2.0]}}, ["size_buckets", "transforms.scale"]),
        ({"schedule": "cooldown"}, ["schedule cooldown", "cooldown None"]),
        ({"cooldown": 0.2}, ["cooldown 0.2", "schedule poly"]),
        ({"batch_norm": "sync"}, ["batch_norm sync", "use_gpu", "local or frozen"]),
        ({"keep": "best"}, ["keep best", "validate_every", "run.validate_every"]),
        ({"patience": 3}, ["patience", "validate_every", "run.validate_every"]),
        ({"validate_every": 10}, ["validate_every", "keep best", "patience"]),
        ({"best_by": "loss"}, ["best_by", "keep best", "patience"]),
        ({"validate_images": 7}, ["validate_images", "keep best", "patience"]),
        (
            {"optimizer": {"name": "adamw", "momentum": 0.5, "weight_decay": 0.0}},
            ["optimizer.momentum", "adamw"],
        ),
    ],
)
def test_keys_of_train_that_do_not_fit_each_other_are_both_named(
    project: Path, change: dict[str, Any], words: list[str]
):
    edit(project, "train", yaml.load(SAMPLE)["train"] | change)
    text = message(project)
    assert text.startswith("profiles/voc.yaml: train: ")
    assert all(word in text for word in words), text
    assert "\n" not in text


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("htps://example.org/a.tar", "must be a URL of https, http, file, s3"),
        ("example.org/a.tar", "must be a URL of https, http, file, s3"),
        ("https://example.org/", "must end in the name of a file"),
        ("s3://bucket", "must end in the name of a file"),
        (f"https://example.org/a.tar?token={SECRET}", "token or signature"),
        (f"https://example.org/a.tar?x=1&X-Amz-Signature={SECRET}", "token or signature"),
        (f"https://example.org/a.tar?sv=1&sig={SECRET}", "token or signature"),
        (f"s3://AKIA:{SECRET}@bucket/a.tar", "without user:password@"),
        (f"https://me:{SECRET}@example.org/x", "without user:password@"),
    ],
)
def test_a_url_that_cannot_be_used_or_holds_a_secret_is_refused_without_repeating_it(
    project: Path, url: str, reason: str
):
    edit(project, "data.source", {"archives": {"a": ARCHIVE | {"urls": [url]}}})
    text = message(project)
    assert text.startswith("profiles/voc.yaml: data.source.archives.a.urls.0: ")
    assert reason in text
    assert SECRET not in text


def test_a_url_in_place_of_a_list_is_not_shown_because_it_may_hold_a_password(project: Path):
    edit(
        project, "data.source", {"archives": {"a": ARCHIVE | {"urls": "https://me:secret@example.org/a.tar"}}}
    )
    text = message(project)
    assert "data.source.archives.a.urls must be a list" in text
    assert "secret" not in text


@pytest.mark.parametrize(
    "destination",
    [
        f"s3://key:{SECRET}@shelf/a",
        f"s3://shelf/a?key={SECRET}",
        "gs://shelf",
        "pipe://cat",
        "s3://",
        "s3://Shelf/a",
    ],
)
def test_another_store_or_a_password_in_a_destination_is_refused_unrepeated(project: Path, destination: str):
    edit(project, "shards.destination", destination)
    text = message(project)
    assert text.startswith("profiles/voc.yaml: shards.destination: ")
    assert "s3://bucket/prefix" in text
    assert destination not in text.replace("s3://bucket/prefix", "")


def test_all_mistakes_are_reported_together_a_line_each(project: Path):
    write(
        project,
        SAMPLE.replace("lr: 2.0e-3", "lr: x").replace("loss: mean", "loss: y").replace("seed: 0", "sed: 0"),
    )
    assert message(project).splitlines() == [
        "profiles/voc.yaml: shards.seed is missing; add it",
        "profiles/voc.yaml: unknown key shards.sed; known there: samples_per_shard, seed, destination",
        "profiles/voc.yaml: train.loss must be 'sum', 'mean' or 'image_mean', got 'y'",
        "profiles/voc.yaml: nets.fcn32s.lr must be a number, got 'x'",
    ]


# --- unknown and missing keys


@pytest.mark.parametrize(
    "section",
    [
        *("", "data.", "data.source.", "data.source.sample.", "data.splits.", "data.splits.val.", "shards."),
        *("model.", "backbone.", "train.", "train.optimizer.", "nets.", "nets.fcn16s.", "evaluate."),
    ],
)
def test_an_unknown_key_is_refused_at_every_level_with_those_known_there(project: Path, section: str):
    edit(project, f"{section}Ir", 3)
    text = message(project)
    assert text.startswith(f"profiles/voc.yaml: unknown key {section}Ir; known there: ")
    assert "\n" not in text
    values: Any = yaml.load(SAMPLE)
    for name in section.split(".")[:-1]:
        values = values[name]
    assert set(text.rpartition(": ")[2].split(", ")) >= set(values)


def test_an_unknown_key_of_an_archive_is_refused_with_those_known_there(project: Path):
    edit(project, "data.source", {"archives": {"voc": ARCHIVE | {"url": "x"}}})
    assert message(project).endswith(
        "data.source.archives.voc.url; known there: urls, checksum, allowed_hosts"
    )


def test_a_key_that_is_a_number_is_unknown(project: Path):
    write(project, SAMPLE + "7: 8\n")
    assert message(project).startswith("profiles/voc.yaml: unknown key 7; known there: data, shards, ")


@pytest.mark.parametrize(
    "key", [*config.Profile.model_fields, "nets.fcn16s.lr", "train.batch_size", "data.source.sample.seed"]
)
def test_a_missing_section_or_key_is_named(project: Path, key: str):
    edit(project, key, DELETED)
    assert message(project) == f"profiles/voc.yaml: {key} is missing; add it"


# --- damaged and missing files


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (SAMPLE.replace("lr: 2.0e-3", "lr: 2, lr: 3"), r'line \d+: found duplicate key "lr"'),
        ("data: [1, 2\n", "line 2: "),
        ("a: !!python/object/apply:os.getcwd []\n", "line 1: could not determine a constructor"),
        (f"{SAMPLE}---\n{SAMPLE}", r"line \d+: "),
        ("a: 2026-99-99\n", "month"),
        ("a: \0\n", "character"),
        (b"\xff\xfe\xff", "0xff"),
    ],
)
def test_a_file_that_is_not_yaml_is_named_with_the_line(project: Path, text: str | bytes, expected: str):
    write(project, text)
    assert re.fullmatch(rf"profiles/voc.yaml is not YAML: .*{expected}.*", message(project))


@pytest.mark.parametrize("text", ["", "# nothing yet\n", "---\n"])
def test_an_empty_profile_is_named_with_the_sections_it_must_give(project: Path, text: str):
    write(project, text)
    assert re.match(f"profiles/voc.yaml .*{', '.join(config.Profile.model_fields)}$", message(project))


@pytest.mark.parametrize(("text", "given"), [("- 1\n", "[1]"), ("3\n", "3"), ("voc\n", "'voc'")])
def test_a_profile_without_keys_is_refused(project: Path, text: str, given: str):
    write(project, text)
    assert message(project).endswith(f"a section of keys and values, got {given}")


def test_missing_params_and_a_folder_in_place_of_a_file_are_named(project: Path):
    (project / "profiles" / "voc.yaml").unlink()
    (project / "profiles" / "voc.yaml").mkdir()
    assert message(project) == "profiles/voc.yaml cannot be read: Is a directory"
    (project / "params.yaml").unlink()
    assert message(project).startswith("params.yaml is missing; run from the project's root")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "params.yaml is empty"),
        ("profile:\n", "params.yaml: profile must be text, got None"),
        ("profile: ../voc\n", "params.yaml: profile must match ^[A-Za-z0-9_-]+$, got '../voc'"),
        ('profile: "voc\\n"\n', "params.yaml: profile must match ^[A-Za-z0-9_-]+$, got 'voc\\n'"),
        ("profile: voc\nlr: 3\n", "params.yaml: unknown key lr; known there: profile"),
        ("profile: voc\nprofile: voc\n", "params.yaml is not YAML: line 2: "),
        ("profile: vco\n", "params.yaml: unknown profile 'vco'; known: voc"),
    ],
)
def test_params_hold_the_name_of_a_profile_and_nothing_else(project: Path, text: str, expected: str):
    (project / "params.yaml").write_text(text)
    assert message(project).startswith(expected)


@pytest.mark.parametrize(
    ("mapping", "fact"),
    [
        ({"disk": "disc", "square": "void"}, ""),
        ({"disk": "disk", "a": "disc"}, "map leads to disk; known: background"),
    ],
)
def test_a_map_leads_to_a_class_or_to_void(project: Path, mapping: dict[str, str], fact: str):
    values = yaml.load(SAMPLE)
    edit(project, "data", values["data"] | {"source": {"own": "../my-data"}, "map": mapping})
    if fact:
        assert fact in message(project)
    else:
        assert config.load(project)[1].data.map == mapping


@pytest.mark.parametrize(
    ("train", "fact"),
    [
        ({"terms": {"focal": 1.0}, "focal_gamma": 0.5, "class_weights": "inverse"}, ""),
        ({"terms": {"cross_entropy": 1, "dice": 0.5}, "label_smoothing": 0.1}, ""),
        ({"class_weights": {"disc": 2, "cross": 0.5}}, ""),
        ({"terms": {}}, "train.terms: one of cross_entropy, focal, dice"),
        ({"terms": {"cross_entropy": 0.0}}, "train.terms: one of cross_entropy, focal, dice"),
        ({"terms": {"cross_entropy": -1.0}}, "train.terms.cross_entropy must be greater than or equal to 0"),
        (
            {"terms": {"lovasz": 1.0}},
            "unknown key train.terms.lovasz; known there: cross_entropy, focal, dice",
        ),
        ({"label_smoothing": 1.0}, "train.label_smoothing must be less than 1"),
        ({"terms": {"dice": 1.0}, "label_smoothing": 0.1}, "without terms.cross_entropy"),
        ({"focal_gamma": 1.0}, "without terms.focal"),
        ({"terms": {"dice": 1.0}, "class_weights": "inverse"}, "class_weights has no effect"),
        ({"class_weights": "balanced"}, "train.class_weights: must be none, inverse, or"),
        ({"class_weights": True}, "train.class_weights: must be none, inverse, or"),
        ({"class_weights": {"disc": 0}}, "train.class_weights: must be none, inverse, or"),
        ({"class_weights": {"disc": "2"}}, "train.class_weights: must be none, inverse, or"),
        ({"class_weights": {"disk": 2.0, "disc": 2.0}}, "train.class_weights names disk; known: background"),
    ],
)
def test_a_loss_has_terms_and_weights_that_take_effect(project: Path, train: dict[str, Any], fact: str):
    edit(project, "train", yaml.load(SAMPLE)["train"] | train)
    if fact:
        assert fact in message(project)
    else:
        loaded = config.load(project)[1].train.model_dump(exclude_unset=True)
        assert {key: loaded[key] for key in train} == train


# --- defaults, which DVC does not track


def test_the_defaults_are_those_of_all_results_so_far():
    """dvc.yaml tracks the keys of a profile, not those it leaves out: after a change here, run `dvc repro -f`."""
    profile = config.Profile.model_validate(
        {
            "data": {
                "source": {"local": "/data"},
                "allow_partial": False,
                "classes": ["a", "b"],
                "splits": {split: {"include": ["sbd/train"]} for split in ("train", "val")},
            },
            "shards": {"samples_per_shard": 1, "seed": 0},
            "model": {"backbone": "vgg16"},
            "backbone": {},
            "train": {
                "num_workers": 1,
                "batch_size": 1,
                "loss": "sum",
                "optimizer": {"name": "sgd", "weight_decay": 0},
                "seed": 0,
            },
            "run": {"log_every": 1, "checkpoint_every": 1},
            "nets": {net: {"lr": 1, "iterations": 1} for net in config.CHAIN},
            "evaluate": {},
        }
    )
    expected = {
        "model": {
            **{"padding": "reference", "learn_upscore": False, "at_once": False, "fusion": "sum"},
            **{"score_init": "zero", "fixed_trunk": False},
            # None: the backbone's own
            **dict.fromkeys(("width", "batch_norm", "fc6_kernel", "dropout", "pixels")),
        },
        "backbone": {"weights": None, "seed": 0},
        "train": {
            **{"use_gpu": False, "accumulation": 1, "batch_rule": False, "schedule": "fixed"},
            "order": "samples",
            **{"sampling": "epochs", "size_buckets": False, "precision": "float32", "batch_norm": "local"},
            **{"ema": 0.0, "keep": "last", "best_by": "mean_iu", "patience": 0},
            **{"validate_every": None, "validate_images": 100},
            **{"start": None, "warmup": 0, "cooldown": None},
            **{"focal_gamma": 2.0, "label_smoothing": 0.0, "class_weights": "none", "sample_pixels": 1.0},
            "terms": {"cross_entropy": 1.0, "focal": 0.0, "dice": 0.0},
            "transforms": {
                **{"mirror": False, "jitter": 0, "scale": (1.0, 1.0), "crop": None},
                **{"brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.0},
            },
            "exchange": {"compression": "none", "bucket_mb": 25},
        },
        "run": {
            **{"cpus_per_worker": 1, "min_workers": None, "loader_workers": 0, "log_every_s": 5.0},
            **{"validate_every": 0, "validate_images": 100, "max_failures": 2, "shard_workers": 1},
            "verify_shards": "cached",
            "cache": {"folder": None, "gigabytes": 50.0, "connections": 16, "patience_s": 180.0},
        },
        "evaluate": {
            **{"num_figures": 6, "num_gallery": 24, "num_workers": 1, "use_gpu": False, "border_width": 5},
            **{"scales": [1.0], "flip": False, "num_resamples": 10_000, "level": 0.95, "seed": 0},
        },
    }
    for name, defaults in expected.items():
        section = getattr(profile, name)
        assert section.model_dump(exclude=section.model_fields_set) == defaults, name
    assert profile.train.optimizer.model_dump(exclude={"name", "weight_decay"}) == {
        "momentum": 0.9,
        "trunk_lr_factor": 1.0,
    }
    assert (profile.data.splits.train.exclude, profile.data.allow_leak) == ([], [])
    assert profile.data.near_duplicates == "warn"


def test_a_stage_ends_with_one_message_and_exit_code_2(project: Path):
    write(project, SAMPLE.replace("lr: 2.0e-3", "lr: 1e-1O"))
    done = subprocess.run(
        [sys.executable, "-m", "stages.shard"], cwd=project, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (USER_MISTAKE, "")
    assert done.stderr == "error: profiles/voc.yaml: nets.fcn32s.lr must be a number, got '1e-1O'\n"
