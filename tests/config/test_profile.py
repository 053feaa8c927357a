"""pipeline/config: what a profile may say, and what a mistake in it is answered with."""

import copy
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError
from ruamel.yaml import YAML

from pipeline import config
from pipeline.config import data, training
from pipeline.datasets import published, splits
from pipeline.errors import USER_MISTAKE, ConfigError
from pipeline.loading import transforms
from tests.conftest import ROOT

yaml = YAML(typ="safe", pure=True)
PROFILES = sorted(path.stem for path in (ROOT / "profiles").glob("*.yaml"))
SAMPLE = (ROOT / "profiles" / "sample.yaml").read_text(encoding="utf-8")
ARCHIVE = {"urls": ["https://example.org/a.tar"], "checksum": "md5:" + "0" * 32}
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
    """Sets one key of the profile, given with dots, or deletes it."""
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


def complaint(project: Path) -> str:
    """What load says of the project, paths as a user in that folder would see them."""
    with pytest.raises(ConfigError) as caught:
        config.load(project)
    return str(caught.value).replace(f"{project}/", "")


# --- what is accepted


@pytest.mark.parametrize("name", PROFILES)
def test_every_committed_profile_loads(name: str, tmp_path: Path):
    (tmp_path / "profiles").symlink_to(ROOT / "profiles")
    (tmp_path / "params.yaml").write_text(f"profile: {name}\n")
    loaded, profile = config.load(tmp_path)
    assert loaded == name
    assert profile.net("fcn8s").iterations > 0


@pytest.mark.parametrize("name", PROFILES)
def test_the_archives_of_a_profile_have_the_published_checksums(name: str):
    source = yaml.load((ROOT / "profiles" / f"{name}.yaml").read_text("utf-8"))["data"]["source"]
    for archive in source.get("archives", {}).values():
        for url in archive["urls"]:
            assert archive["checksum"] == published.CHECKSUMS[url.rpartition("/")[2]]


def test_the_committed_params_name_a_committed_profile():
    assert config.load(ROOT)[0] in PROFILES


def test_a_profile_says_what_its_file_says(project: Path):
    name, profile = config.load(project)
    assert name == "voc"
    assert profile.model_dump(mode="json", exclude_unset=True) == yaml.load(SAMPLE)


def test_the_default_is_the_present_folder(project: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(project)
    assert config.load() == config.load(project)


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


def test_every_data_set_that_is_read_may_be_named_and_no_other(project: Path):
    for name in splits.DATASETS:
        edit(project, "data.splits.train.include", [f"{name}/train"])
        assert config.load(project)[1].data.splits.train.include == [f"{name}/train"]
    edit(project, "data.splits.train.include", ["coco/train"])
    assert "data.splits.train.include.0 must match" in complaint(project)


def sections(value: BaseModel) -> list[BaseModel]:
    """The value and every section in it."""
    return [value] + [
        deeper
        for name in type(value).model_fields
        if isinstance(inner := getattr(value, name), BaseModel)
        for deeper in sections(inner)
    ]


def test_no_key_of_any_section_can_be_set_once_loaded(project: Path):
    _, profile = config.load(project)
    found = sections(profile)
    assert {type(section).__name__ for section in found} >= {
        "Profile",
        "Train",
        "Optimizer",
        "Net",
        "Drawing",
    }
    for section in found:
        for name in type(section).model_fields:
            with pytest.raises(ValidationError, match="frozen"):
                setattr(section, name, getattr(section, name))


def test_the_chain_names_the_nets_of_a_profile_and_their_strides():
    assert tuple(training.Nets.model_fields) == config.CHAIN == tuple(config.STRIDE)
    assert [f"fcn{stride}s" for stride in config.STRIDE.values()] == list(config.CHAIN)


# --- a wrong value: file, key, what it must be, what it is

SOURCE = "data.source"
WRONG: list[tuple[str, Any, str]] = [
    ("nets.fcn32s.lr", "1e-1O", "must be a number, got '1e-1O'"),
    ("nets.fcn32s.lr", True, "must be a number, got True"),
    ("nets.fcn32s.lr", None, "must be a number, got None"),
    ("nets.fcn32s.lr", 0, "must be greater than 0, got 0"),
    ("nets.fcn16s.lr", -1e-3, "must be greater than 0, got -0.001"),
    ("nets.fcn8s.lr", float("inf"), "must be a finite number, got inf"),
    ("nets.fcn8s.lr", float("nan"), "must be a finite number, got nan"),
    ("nets.fcn8s.iterations", "400", "must be a whole number, got '400'"),
    ("nets.fcn8s.iterations", 4.5, "must be a whole number, got 4.5"),
    ("nets.fcn8s.iterations", 400.0, "must be a whole number, got 400.0"),
    ("nets.fcn8s.iterations", 0, "must be greater than 0, got 0"),
    ("nets.fcn8s", 3, "must be a section of keys and values, got 3"),
    ("model.width", 0, "must be greater than 0, got 0"),
    ("model.padding", "same", "must be 'reference' or 'tight', got 'same'"),
    ("model.pixels", 255, "must be 'caffe', 'torchvision' or 'inception', got 255"),
    ("model.batch_norm", "yes", "must be true or false, got 'yes'"),
    ("model.batch_norm", 1, "must be true or false, got 1"),
    ("model.dropout", 1, "must be less than 1, got 1"),
    ("model.dropout", -0.1, "must be greater than or equal to 0, got -0.1"),
    ("model.fc6_kernel", 16, "must be less than 16, got 16"),
    ("model.backbone", 16, "must be text, got 16"),
    ("train.loss", "man", "must be 'sum', 'mean' or 'image_mean', got 'man'"),
    ("train.optimizer.name", "adam", "must be 'sgd' or 'adamw', got 'adam'"),
    ("train.optimizer.weight_decay", "none", "must be a number, got 'none'"),
    ("train.optimizer.momentum", 1.0, "must be less than 1, got 1.0"),
    ("train.schedule", "step", "must be 'fixed' or 'poly', got 'step'"),
    ("train.sampling", "random", "must be 'epochs' or 'replacement', got 'random'"),
    ("train.precision", "float16", "must be 'float32', 'bfloat16' or 'auto', got 'float16'"),
    ("train.transforms", {"jitter": 33}, "must be less than or equal to 32, got 33"),
    ("train.transforms", {"mirror": 1}, "must be true or false, got 1"),
    ("train.transforms", {"hue": 0.6}, "must be less than or equal to 0.5, got 0.6"),
    ("train.transforms", {"scale": [0, 2]}, "scale.0 must be greater than or equal to 0.1, got 0"),
    ("train.transforms", {"scale": [2.0, 0.5]}, "scale must be [least, greatest], got [2.0, 0.5]"),
    ("train.transforms", {"scale": [0.5]}, "train.transforms.scale.1 is missing; add it"),
    ("train.transforms", {"crop": 320}, "must be a list, got 320"),
    ("train.transforms", {"crop": [320, 0]}, "crop.1 must be greater than 0, got 0"),
    ("train.seed", -1, "must be greater than or equal to 0, got -1"),
    ("train.seed", 2**63, f"must be less than {2**63}, got {2**63}"),
    ("train.exchange", {"compression": "fp8"}, "must be 'none', 'bf16' or 'powersgd', got 'fp8'"),
    ("train.exchange", {"powersgd_after": 1}, "must be greater than or equal to 2, got 1"),
    ("run.min_workers", 0, "must be greater than 0, got 0"),
    ("train.num_workers", 0, "must be greater than 0, got 0"),
    ("run.max_failures", -1, "must be greater than or equal to 0, got -1"),
    ("run.loader_workers", 0.5, "must be a whole number, got 0.5"),
    ("run.shard_workers", 0, "must be greater than 0, got 0"),
    ("run.verify_shards", "never", "must be 'cached' or 'full', got 'never'"),
    ("shards.samples_per_shard", 0, "must be greater than 0, got 0"),
    ("shards", [], "must be a section of keys and values, got []"),
    ("evaluate.num_figures", 0, "must be greater than 0, got 0"),
    ("evaluate.num_gallery", 61, "must be less than or equal to 60, got 61"),
    ("evaluate.border_width", 0, "must be greater than 0, got 0"),
    ("evaluate.num_resamples", 10, "must be greater than or equal to 100, got 10"),
    ("evaluate.scales", [], "must have at least 1 item, got []"),
    ("evaluate.scales", [1.0, 0], ".1 must be greater than or equal to 0.1, got 0"),
    ("evaluate.scales", [1.0, 1], "must differ from each other, got [1.0, 1.0]"),
    ("evaluate.flip", "yes", "must be true or false, got 'yes'"),
    ("evaluate.level", 95, "must be less than 1, got 95"),
    ("data.allow_partial", "false", "must be true or false, got 'false'"),
    ("data.allow_leak", "On purpose, to measure it.", "must be a list, got 'On purpose, to measure it.'"),
    (
        "data.allow_leak",
        ["yes"],
        "allow_leak.0: must be a sentence that says why images may be trained and evaluated on, got 'yes'",
    ),
    ("data.classes", "background", "must be a list, got 'background'"),
    ("data.classes", ["background"], "must have at least 2 items, got ['background']"),
    ("data.splits.train.include", [], "must have at least 1 item, got []"),
    ("data.splits.train.include", "sbd/train", "must be a list, got 'sbd/train'"),
    ("data.splits.val.count", 0, "must be greater than 0, got 0"),
    ("data.source.sample.image_size", 47, "must be greater than or equal to 48, got 47"),
    ("data.source.sample.image_size", 1025, "must be less than or equal to 1024, got 1025"),
    ("data.source.local", ["x"], "must be text, got ['x']"),
    ("backbone.weights", ARCHIVE | {"urls": []}, "backbone.weights.urls must have at least 1 item, got []"),
    (SOURCE, {"archives": {"a": ARCHIVE | {"max_size_gb": 0}}}, "max_size_gb must be greater than 0, got 0"),
    (
        SOURCE,
        {"archives": {"a": {"urls": ["https://example.org/x"]}}},
        "data.source.archives.a.checksum is missing; add it",
    ),
    (
        SOURCE,
        {"archives": {"a": ARCHIVE | {"urls": ["https://me:secret@example.org/x"]}}},
        "archives.a.urls.0: must be a URL of https, http, file, s3, gs, az, hdfs, without user:password@",
    ),
    (
        SOURCE,
        {"archives": {"a": ARCHIVE | {"checksum": "md5:123"}}},
        r"must match ^(md5:[0-9a-f]{32}|sha256:[0-9a-f]{8,64})$, got 'md5:123'",
    ),
    (SOURCE, {"archives": {"../a": ARCHIVE}}, "must match ^[A-Za-z0-9_-]+$, got '../a'"),
]


@pytest.mark.parametrize(("where", "value", "expected"), WRONG)
def test_a_wrong_value_is_named_with_file_key_and_what_it_must_be(
    project: Path, where: str, value: Any, expected: str
):
    edit(project, where, value)
    message = complaint(project)
    assert message.startswith(f"profiles/voc.yaml: {where}")
    assert message.endswith(expected)
    assert "\n" not in message


@pytest.mark.parametrize("transform", [{"crop": [64, 64]}, {"scale": [0.5, 2.0]}])
def test_size_buckets_are_refused_where_the_manifests_sizes_are_not_those_of_a_batch(
    project: Path, transform: dict[str, Any]
):
    edit(project, "train", yaml.load(SAMPLE)["train"] | {"size_buckets": True, "transforms": transform})
    message = complaint(project)
    assert message.startswith("profiles/voc.yaml: train: size_buckets are of no use with transforms.crop")
    assert message.endswith("leave out one of them")


@pytest.mark.parametrize(
    "given", ["sbd", "sbd/", "/train", "sbd/../x", "sbd/train/x", "voc2010/train", "sbd/tr ain"]
)
def test_a_split_is_named_by_data_set_and_list(project: Path, given: str):
    edit(project, "data.splits.val.exclude", [given])
    assert re.search(
        rf"voc.yaml: data.splits.val.exclude.0 must match .*, got {given!r}$", complaint(project)
    )


@pytest.mark.parametrize(
    ("destination", "place"),
    [
        ("s3://shelf", "s3://shelf/voc/train"),
        ("s3://shelf/a/b/", "s3://shelf/a/b/voc/train"),
        ("/mnt/large", Path("/mnt/large/voc/train")),
    ],
)
def test_a_destination_of_shards_is_a_bucket_or_a_folder(project: Path, destination: str, place: Path | str):
    edit(project, "shards.destination", destination)
    assert config.load(project)[1].shards.place("voc", "train") == place


@pytest.mark.parametrize(
    "destination",
    [
        "s3://key:secret@shelf/a",
        "s3://shelf/a?secret_key=b",
        "gs://shelf",
        "pipe://cat",
        "s3://",
        "s3://Shelf/a",
    ],
)
def test_another_store_or_a_password_in_a_destination_is_refused_unrepeated(project: Path, destination: str):
    edit(project, "shards.destination", destination)
    assert complaint(project) == (
        "profiles/voc.yaml: shards.destination: must be a folder or s3://bucket/prefix; "
        "keys and endpoint come from the environment (AWS_...)"
    )


def test_every_mistake_is_told_at_once_a_line_each(project: Path):
    write(
        project,
        SAMPLE.replace("lr: 2.0e-3", "lr: x").replace("loss: mean", "loss: y").replace("seed: 0", "sed: 0"),
    )
    assert complaint(project).splitlines() == [
        "profiles/voc.yaml: shards.seed is missing; add it",
        "profiles/voc.yaml: unknown key shards.sed; known there: samples_per_shard, seed, destination",
        "profiles/voc.yaml: train.loss must be 'sum', 'mean' or 'image_mean', got 'y'",
        "profiles/voc.yaml: nets.fcn32s.lr must be a number, got 'x'",
    ]


# --- keys that are too many or too few

NESTED = [
    "",
    "data.",
    "data.source.",
    "data.source.sample.",
    "data.splits.",
    "data.splits.val.",
    "shards.",
    "model.",
]
NESTED += ["backbone.", "train.", "train.optimizer.", "nets.", "nets.fcn16s.", "evaluate."]


@pytest.mark.parametrize("section", NESTED)
def test_an_unknown_key_is_refused_at_every_level_with_those_known_there(project: Path, section: str):
    edit(project, f"{section}Ir", 3)
    message = complaint(project)
    assert message.startswith(f"profiles/voc.yaml: unknown key {section}Ir; known there: ")
    assert "\n" not in message
    values: Any = yaml.load(SAMPLE)
    for name in section.split(".")[:-1]:
        values = values[name]
    assert set(message.rpartition(": ")[2].split(", ")) >= set(values)


def test_an_unknown_key_of_an_archive_is_refused_with_those_known_there(project: Path):
    edit(project, "data.source", {"archives": {"voc": ARCHIVE | {"url": "x"}}})
    assert complaint(project) == (
        "profiles/voc.yaml: unknown key data.source.archives.voc.url; known there: urls, checksum, "
        "max_size_gb, allowed_hosts"
    )


def test_a_key_that_is_no_word_is_unknown(project: Path):
    write(project, SAMPLE + "7: 8\n")
    assert complaint(project).startswith("profiles/voc.yaml: unknown key 7; known there: data, shards, ")


@pytest.mark.parametrize("section", config.Profile.model_fields)
def test_a_missing_section_is_named(project: Path, section: str):
    edit(project, section, DELETED)
    assert complaint(project) == f"profiles/voc.yaml: {section} is missing; add it"


@pytest.mark.parametrize(
    "key", ["nets.fcn16s", "nets.fcn16s.lr", "train.batch_size", "data.source.sample.seed"]
)
def test_a_missing_key_is_named(project: Path, key: str):
    edit(project, key, DELETED)
    assert complaint(project) == f"profiles/voc.yaml: {key} is missing; add it"


# --- keys that do not fit each other


def test_the_batch_must_divide_evenly_over_the_workers(project: Path):
    edit(project, "train.batch_size", 7)
    assert complaint(project) == (
        "profiles/voc.yaml: train: batch_size 7 must be a multiple of num_workers 2 times "
        "accumulation 1, so that every worker takes as many images at a time"
    )


def test_the_batch_rule_is_one_of_sgd(project: Path):
    edit(project, "train.batch_rule", True)
    assert complaint(project) == (
        "profiles/voc.yaml: train: batch_rule is one of sgd with momentum; optimizer.name is adamw"
    )


def test_training_begins_with_no_more_workers_than_there_are(project: Path):
    edit(project, "run.min_workers", 3)
    assert complaint(project) == (
        "profiles/voc.yaml: the file: run.min_workers 3 is more than train.num_workers 2"
    )


DRAWING = {"num_train": 1, "num_val": 1, "image_size": 48, "seed": 0}


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ({}, "none"),
        ({"local": ""}, "none"),
        ({"archives": {}}, "none"),
        ({"sample": DRAWING, "local": "/data"}, "sample and local"),
        ({"archives": {"a": ARCHIVE}, "local": "/data"}, "archives and local"),
        ({"local": "/data", "own": "/data"}, "local and own"),
        (
            {"sample": DRAWING, "archives": {"a": ARCHIVE}, "local": "/data"},
            "sample and archives and local",
        ),
    ],
)
def test_there_is_exactly_one_source(project: Path, source: dict[str, Any], found: str):
    edit(project, "data.source", source)
    assert complaint(project) == (
        "profiles/voc.yaml: data.source: exactly one of sample, archives, local and own must be given, "
        f"found {found}"
    )


@pytest.mark.parametrize("kind", data.URL_KINDS)
def test_a_mirror_may_be_a_url_of_any_kind_that_is_read(project: Path, kind: str):
    url = f"{kind}://bucket/folder/a.tar"
    edit(project, "data.source", {"archives": {"a": ARCHIVE | {"urls": [url]}}})
    assert config.load(project)[1].data.source.archives["a"].urls == [url]


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("htps://example.org/a.tar", "must be a URL of https, http, file, s3"),
        ("example.org/a.tar", "must be a URL of https, http, file, s3"),
        ("https://example.org/", "must end in the name of a file"),
        ("s3://bucket", "must end in the name of a file"),
        ("https://example.org/a.tar?token=hunter2", "must not hold a token or signature"),
        ("https://example.org/a.tar?x=1&X-Amz-Signature=hunter2", "must not hold a token or signature"),
        ("https://example.org/a.tar?sv=1&sig=hunter2", "must not hold a token or signature"),
        ("s3://AKIA:hunter2@bucket/a.tar", "without user:password@"),
    ],
)
def test_a_url_that_cannot_be_used_or_holds_a_secret_is_refused_without_repeating_it(
    project: Path, url: str, reason: str
):
    edit(project, "data.source", {"archives": {"a": ARCHIVE | {"urls": [url]}}})
    message = complaint(project)
    assert message.startswith("profiles/voc.yaml: data.source.archives.a.urls.0: ")
    assert reason in message
    assert "hunter2" not in message


def test_two_archives_of_one_file_name_are_refused(project: Path):
    other = ARCHIVE | {"urls": ["https://elsewhere.org/b/a.tar"]}
    edit(project, "data.source", {"archives": {"a": ARCHIVE, "b": other}})
    assert complaint(project) == (
        "profiles/voc.yaml: data.source: archives: a.tar, a.tar: the first URLs must end in different file names"
    )


def test_two_classes_of_one_name_are_refused(project: Path):
    edit(project, "data.classes", ["background", "cat", "cat"])
    assert complaint(project) == "profiles/voc.yaml: data: classes must differ from each other"


# --- files that are not what they should be


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda text: text.replace("lr: 2.0e-3", "lr: 2, lr: 3"), r'line \d+: found duplicate key "lr"'),
        (lambda text: text + "data: {}\n", r'line \d+: found duplicate key "data"'),
        (lambda _: "data: [1, 2\n", "line 2: "),
        (lambda _: "a: b: c\n", "line 1: mapping values are not allowed"),
        (lambda _: "a: !!python/object/apply:os.getcwd []\n", "line 1: could not determine a constructor"),
        (lambda _: "a: *nowhere\n", "line 1: found undefined alias"),
        (lambda text: f"{text}---\n{text}", r"line \d+: but found another document"),
        (lambda _: "a: 2026-99-99\n", "month must be in 1..12"),
        (lambda _: "a: \0\n", "unacceptable character"),
        (lambda _: b"\xff\xfe\xff", "can't decode byte 0xff"),
    ],
)
def test_what_is_not_yaml_is_named_with_its_line(
    project: Path, change: Callable[[str], str | bytes], expected: str
):
    write(project, change(SAMPLE))
    message = complaint(project)
    assert re.match(rf"profiles/voc.yaml is not YAML: .*{expected}", message), message
    assert "\n" not in message


@pytest.mark.parametrize("text", ["", "# nothing yet\n", "---\n"])
def test_an_empty_profile_is_told_what_it_must_give(project: Path, text: str):
    write(project, text)
    assert complaint(project) == (
        "profiles/voc.yaml is empty; it must give data, shards, model, backbone, train, run, nets, evaluate"
    )


@pytest.mark.parametrize(("text", "given"), [("- 1\n", "[1]"), ("3\n", "3"), ("voc\n", "'voc'")])
def test_a_profile_without_keys_is_refused(project: Path, text: str, given: str):
    write(project, text)
    assert complaint(project) == (
        f"profiles/voc.yaml: the file must be a section of keys and values, got {given}"
    )


def test_missing_params_say_where_to_run(project: Path):
    (project / "params.yaml").unlink()
    assert complaint(project) == (
        "params.yaml is missing; run from the project's root, where params.yaml lies"
    )


def test_a_folder_in_the_place_of_a_file_is_named(project: Path):
    (project / "profiles" / "voc.yaml").unlink()
    (project / "profiles" / "voc.yaml").mkdir()
    assert complaint(project) == "profiles/voc.yaml cannot be read: Is a directory"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "params.yaml is empty; it must give profile"),
        ("profile:\n", "params.yaml: profile must be text, got None"),
        ("profile: 3\n", "params.yaml: profile must be text, got 3"),
        ("profile: ../voc\n", "params.yaml: profile must match ^[A-Za-z0-9_-]+$, got '../voc'"),
        ('profile: "voc\\n"\n', "params.yaml: profile must match ^[A-Za-z0-9_-]+$, got 'voc\\n'"),
        ("profile: voc\nlr: 3\n", "params.yaml: unknown key lr; known there: profile"),
        ("profile: voc\nprofile: voc\n", 'params.yaml is not YAML: line 2: found duplicate key "profile"'),
    ],
)
def test_params_hold_the_name_of_a_profile_and_nothing_else(project: Path, text: str, expected: str):
    (project / "params.yaml").write_text(text)
    assert complaint(project).startswith(expected)


def test_an_unknown_profile_is_answered_with_the_known(project: Path):
    (project / "params.yaml").write_text("profile: vco\n")
    (project / "profiles" / "sample.yaml").write_text(SAMPLE)
    assert complaint(project) == "params.yaml: unknown profile 'vco'; known: sample, voc"


def test_no_profile_at_all_is_said(project: Path):
    (project / "profiles" / "voc.yaml").unlink()
    assert complaint(project) == "params.yaml: unknown profile 'voc'; known: none"


# --- what DVC cannot see


def test_the_defaults_are_those_that_results_so_far_were_made_with():
    """dvc.yaml tracks what a profile says, not what it leaves out: after a change here, say `dvc repro -f`."""
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
    defaults = {
        f"{name}.{key}": value
        for name in ("model", "backbone", "train", "run", "evaluate")
        for section in [getattr(profile, name)]
        for key, value in section
        if key not in section.model_fields_set
    }
    # None of these may change quietly; max_failures, the cpus and the loaders do not reach a result
    assert (
        defaults
        == {
            "model.padding": "reference",
            "model.learn_upscore": False,
            "model.at_once": False,
            "model.fusion": "sum",
            "model.score_init": "zero",
            "model.fixed_trunk": False,
            "model.width": None,  # None: the backbone's own
            "model.batch_norm": None,
            "model.fc6_kernel": None,
            "model.dropout": None,
            "model.pixels": None,
            "backbone.weights": None,
            "backbone.seed": 0,
            "train.use_gpu": False,
            "train.accumulation": 1,
            "train.batch_rule": False,
            "train.batch_norm": "local",
            "run.cpus_per_worker": 1,
            "run.loader_workers": 0,
            "run.log_every_s": 5.0,
            "run.validate_every": 0,
            "run.validate_images": 100,
            "train.schedule": "fixed",
            "train.sampling": "epochs",
            "train.size_buckets": False,
            "train.transforms": training.Transforms(),  # none; its own defaults are held by loading/test_transforms.py
            "train.precision": "float32",
            "train.class_balancing": False,
            "train.sample_pixels": 1.0,
            "train.exchange": training.Exchange(
                compression="none", bucket_mb=25, powersgd_rank=2, powersgd_after=1000
            ),
            "run.min_workers": None,
            "run.max_failures": 2,
            "run.shard_workers": 1,
            "run.verify_shards": "cached",
            "evaluate.num_figures": 6,
            "evaluate.num_gallery": 24,
            "evaluate.num_workers": 1,
            "evaluate.use_gpu": False,
            "evaluate.border_width": 5,
            "evaluate.num_resamples": 10_000,
            "evaluate.scales": [1.0],
            "evaluate.flip": False,
            "evaluate.level": 0.95,
            "evaluate.seed": 0,
        }
    )
    assert transforms.Transforms(**dict(training.Transforms())) == transforms.Transforms()
    assert profile.train.optimizer.momentum == 0.9
    assert profile.data.splits.train.exclude == []
    assert profile.data.allow_leak == []


# --- as a person meets it


def test_a_stage_ends_with_one_message_and_exit_code_2(project: Path):
    write(project, SAMPLE.replace("lr: 2.0e-3", "lr: 1e-1O"))
    done = subprocess.run(
        [sys.executable, "-m", "stages.shard"], cwd=project, capture_output=True, text=True, check=False
    )
    assert done.returncode == USER_MISTAKE == 2
    assert done.stderr == "error: profiles/voc.yaml: nets.fcn32s.lr must be a number, got '1e-1O'\n"
    assert done.stdout == ""
