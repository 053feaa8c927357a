"""The project's shape: imports run down by folder, frameworks stay in their rooms, dvc.yaml fits code and profiles."""

import ast
import re
from collections import defaultdict
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

from pipeline import config, paths
from pipeline.training import prepare
from tests.conftest import ROOT
from tests.project_copy import yaml

# Rooms from the ground floor up. A room imports those below it, and itself.
FLOORS = (
    {"fcn", "pipeline"},  # pipeline: the files directly in it
    {"cache"},
    {"config", "shards", "models", "distributed"},
    {"loading", "download", "cluster", "tracking", "inspection", "export"},
    {"datasets", "monitoring", "evaluation"},
    {"training", "report", "prediction", "importing"},
    {"doctor", "serving", "planning", "experiments"},
    {"stages", "cli"},
)
FLOOR_OF = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
ROOMS_OF = {  # third-party frameworks, and the rooms that may import them
    "ray": {"cluster"},
    "mlflow": {"tracking"},
    "pydantic": {"config"},
    "pyarrow": {"shards", "evaluation", "pipeline"},
    "webdataset": {"shards"},
    "fsspec": {"download", "pipeline"},
    "httpx": {"download"},
    "matplotlib": {"report"},
    "jinja2": {"report", "pipeline"},
    "tabulate": {"pipeline"},
    "onnxruntime": {"models"},
    "safetensors": {"models"},
    "fastapi": {"serving"},
    "starlette": {"serving"},
    "uvicorn": {"serving"},
    "prometheus_client": {"serving"},
}
CODE = sorted(path for top in ("fcn", "pipeline", "stages") for path in (ROOT / top).rglob("*.py"))
PROFILES = sorted(path.stem for path in (ROOT / "profiles").glob("*.yaml"))


def room_of(module: str) -> str:
    """The room of a module's dotted name: "pipeline.shards.read" -> "shards", "pipeline.files" -> "pipeline"."""
    top, *inner = module.split(".")
    return inner[0] if top == "pipeline" and inner and inner[0] in FLOOR_OF else top


def imported(path: Path) -> set[str]:
    """The dotted names that a file imports, wherever in it the statement stands."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def imports_of_rooms() -> dict[str, set[str]]:
    names: dict[str, set[str]] = defaultdict(set)
    for path in CODE:
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        names[room_of(module)] |= imported(path)
    return names


def test_every_folder_of_the_pipeline_has_a_floor():
    folders = {
        path.parent.relative_to(ROOT / "pipeline").parts[:1] for path in (ROOT / "pipeline").rglob("*.py")
    }
    assert {folder[0] for folder in folders if folder} <= FLOOR_OF.keys()
    assert len(list((ROOT / "pipeline").glob("*.py"))) <= 10


def test_imports_run_down_only():
    upward = {
        (room, name)
        for room, names in imports_of_rooms().items()
        for name in names
        if name.partition(".")[0] in ("fcn", "pipeline", "stages", "tests", "bench")
        and (target := room_of(name)) != room
        and FLOOR_OF.get(target, len(FLOORS)) >= FLOOR_OF[room]
        and not (room == "pipeline" and target == "fcn")
    }
    assert upward == set()


def test_each_framework_stays_in_its_rooms():
    strays = {
        (room, name)
        for room, names in imports_of_rooms().items()
        for name in names
        if room not in ROOMS_OF.get(name.partition(".")[0], {room})
    }
    assert strays == set()


def test_fcn_needs_torch_and_the_standard_library_alone():
    tops = {name.partition(".")[0] for name in imports_of_rooms()["fcn"]}
    others = {
        top
        for top in tops
        if (ROOT / ".venv").exists() and top in ("numpy", "PIL", "torchvision", "pipeline")
    }
    assert others == set()


# dvc.yaml


def filled(value: Any, values: dict[str, str]) -> Any:
    """The value with ${...} replaced, as DVC does it."""
    if isinstance(value, str):
        return re.sub(r"\$\{(\w+)\}", lambda match: values[match[1]], value)
    if isinstance(value, dict):
        return {filled(key, values): filled(inner, values) for key, inner in value.items()}
    if isinstance(value, list):
        return [filled(inner, values) for inner in value]
    return value


def stages(profile: str = "sample") -> dict[str, dict[str, Any]]:
    """By name, e.g. "train@fcn8s", each stage as DVC runs it for a profile."""
    text = yaml.load((ROOT / "dvc.yaml").read_text("utf-8"))
    known = {"profile": profile} | {key: value for entry in text["vars"] for key, value in entry.items()}
    return {
        f"{name}@{key}" if key else name: filled(stage.get("do", stage), known | {"key": key, "item": item})
        for name, stage in text["stages"].items()
        for key, item in stage.get("foreach", {"": ""}).items()
    }


def outs_of(stage: dict[str, Any]) -> set[str]:
    entries = [entry for kind in ("outs", "metrics", "plots") for entry in stage.get(kind, [])]
    return {entry if isinstance(entry, str) else next(iter(entry)) for entry in entries}


def params_of(stage: dict[str, Any]) -> set[str]:
    return {key for entry in stage.get("params", []) for keys in entry.values() for key in keys}


def code_of(stage: dict[str, Any]) -> list[str]:
    return [dep for dep in stage["deps"] if dep.partition("/")[0] in ("fcn", "pipeline", "stages")]


def test_stages_depend_on_few_folders_of_code_that_are_there():
    for name, stage in stages().items():
        code = code_of(stage)
        assert len(code) <= (10 if name.startswith("train") else 6), name
        assert all((ROOT / dep).exists() for dep in code), name
        assert stage["cmd"].split()[-2 if "@" in name else -1] == f"stages.{name.partition('@')[0]}"


def test_a_runs_identity_covers_the_folders_that_train_depends_on():
    code = set(code_of(stages()["train@fcn8s"])) - {"stages/train.py"}
    assert code == set(prepare.code_that_decides())
    assert {"fcn", "pipeline/loading", "pipeline/training"} < code


def leaves(values: dict[str, Any], prefix: str = "") -> list[str]:
    nested = [
        leaves(value, f"{prefix}{key}.") if isinstance(value, dict) and value else [f"{prefix}{key}"]
        for key, value in values.items()
    ]
    return list(chain.from_iterable(nested))


@pytest.mark.parametrize("profile", PROFILES)
def test_every_param_of_dvc_is_in_every_profile_and_every_value_is_a_param(profile):
    values = yaml.load((ROOT / "profiles" / f"{profile}.yaml").read_text("utf-8"))
    params = set(chain.from_iterable(map(params_of, stages(profile).values())))
    keys = [leaf for leaf in leaves(values) if not leaf.startswith("run.")]  # `run` decides no result
    for param in params:
        assert any(f"{key}.".startswith(f"{param}.") for key in keys), param
    for key in keys:
        assert any(f"{key}.".startswith(f"{param}.") for param in params), key


def test_the_outs_are_where_paths_puts_the_results():
    outs = {name: outs_of(stage) for name, stage in stages().items()}
    assert outs["source"] == {str(path("sample")) for path in (paths.source, paths.start, paths.choice)}
    assert outs["download"] == {str(paths.raw_record("sample"))}
    assert outs["shard"] == {
        str(paths.shards("sample", split).parent) for split in config.Splits.model_fields
    }
    assert outs["inspect"] == {str(paths.inspection("sample"))}
    assert outs["backbone"] == {str(paths.model("sample", "backbone"))}
    assert outs["report"] == {str(paths.report("sample"))}
    for net in config.CHAIN:
        assert outs[f"train@{net}"] == {str(path("sample", net)) for path in (paths.model, paths.curve)}
        results = (paths.metrics, paths.per_image, paths.figures)
        assert outs[f"evaluate@{net}"] == {str(path("sample", net)) for path in results}


def test_each_net_is_trained_from_the_one_before_it_and_scored_on_its_own_split():
    by_name = stages()
    for before, net in zip(("backbone", *config.CHAIN), config.CHAIN, strict=False):
        train, evaluate = by_name[f"train@{net}"], by_name[f"evaluate@{net}"]
        data = {str(paths.shards("sample", "train")), str(paths.model("sample", before))}
        assert data < set(train["deps"])
        assert f"nets.{net}" in params_of(train)
        # Another validation split must not train a net again.
        inspected = {dep for dep in train["deps"] if "inspection" in dep}
        assert inspected == {str(paths.inspection("sample") / "verdict.json")}
        assert {str(paths.shards("sample", "val")), str(paths.model("sample", net))} < set(evaluate["deps"])


def test_working_files_lie_outside_every_out():
    """DVC empties a stage's outs before it runs: half a download or a checkpoint would be gone."""
    for kept in (paths.DOWNLOADS, paths.RUNS, paths.raw("sample"), paths.sharding("sample", "train")):
        for out in chain.from_iterable(map(outs_of, stages().values())):
            assert not kept.is_relative_to(out)
            assert not Path(out).is_relative_to(kept)
