"""The project's shape: who imports whom, what dvc.yaml depends on, and that both say the same."""

import ast
import sys
from collections.abc import Iterator
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from ruamel.yaml import YAML

import fcn
from pipeline import config, paths
from tests.conftest import ROOT

LAYERS = ("fcn", "pipeline", "stages")  # each may import itself and those before it
MAX_LINES = 300
FRAMEWORKS = {
    "ray": "pipeline/cluster/ray_workers.py pipeline/cluster/jobs.py",  # workers of a run; jobs, whose client wants no torch
    "mlflow": " ".join(
        f"pipeline/tracking/{name}.py" for name in ("lookup", "models", "outage", "points", "tracker")
    ),
    "pydantic": " ".join(
        f"pipeline/config/{name}.py" for name in ("__init__", "data", "section", "training")
    ),
    "pyarrow": "pipeline/shards/manifest.py pipeline/evaluation/per_image.py",  # tables of two kinds, which have no columns in common
    "pyarrow.fs": "pipeline/storage.py",  # two libraries under one name: tables, and places files lie in
    "fsspec": "pipeline/download/remote.py",
    "httpx": "pipeline/download/http.py",
    "matplotlib": "pipeline/report/plots.py",
    "onnxruntime": "pipeline/models/onnx_file.py",
    "safetensors": "pipeline/models/checkpoint.py",
    "fastapi": "pipeline/serving/app.py",
    "starlette": "pipeline/serving/app.py",
    "uvicorn": "pipeline/serving/app.py",
}
# Modules a stage imports and does not depend on, because no change of them changes what the stage writes
HARMLESS = {
    "pipeline/errors.py": "words and exit codes",
    "pipeline/config/complaints.py": "words",
    "pipeline/progress.py": "what is shown while one waits",
    "pipeline/paths.py": "where results lie; held against the outs by a test below",
    **{
        f"pipeline/config/{name}.py": "what it reads is tracked as params; its defaults are held by config/test_profile.py"
        for name in ("__init__", "data", "section", "training")
    },
    **{
        f"pipeline/tracking/{name}.py": "tells MLflow of results that are written without it"
        for name in (
            "__init__",
            "follower",
            "lookup",
            "models",
            "outage",
            "points",
            "record",
            "replay",
            "tracker",
        )
    },
    "pipeline/spool.py": "curves for MLflow",
    "pipeline/curves.py": "the same curves as a file, for which no net is trained again",
    "pipeline/cluster/ray_workers.py": "starts processes; what they do is in train.py and sharding.py",
    "pipeline/cluster/nodes.py": "the token of a cluster",
    "pipeline/git.py": "what MLflow is told of the code",
    "pipeline/storage.py": "moves bytes that the manifest knows by their sha256",
    "pipeline/shards/verify.py": "says whether shards are whole, or ends the stage",
    "pipeline/config/job.py": "names the values; what they are is tracked as params",
    "pipeline/lock.py": "waits for another process",
    "pipeline/monitoring/meter.py": "what is shown while one waits, and curves",
    "pipeline/models/saver.py": "when working checkpoints are written",
    "pipeline/training/preflight.py": "refuses, or leaves no trace",
    "pipeline/monitoring/validation.py": "looks, and changes nothing of what is learned",
    "pipeline/datasets/__init__.py": "names the fields of a sample",
    "fcn/__init__.py": "names, and IGNORE_LABEL, which the published labels fix; held to 255 below",
}
DOWNLOAD = ("fetch", "http", "remote", "part", "checksum", "limits", "urls")
HARMLESS_TO = {  # a stage, without what it is repeated for: modules
    "backbone": {
        f"pipeline/download/{name}.py": "the checksum in the profile decides which bytes arrive"
        for name in DOWNLOAD
    },
    "shard": {"pipeline/distributed/rank.py": "trains; the cluster's tasks know nothing of it"},
    "evaluate": {
        f"pipeline/{name}.py": "gives the weights whose sha256 the file holds, or an error"
        for name in ("checkpoint", "model_file")
    },
    "train": {"fcn/metrics.py": "scores while training, which nothing follows from"},
}
yaml = YAML(typ="safe", pure=True)


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


FILES = sorted(name_of(path) for layer in LAYERS for path in (ROOT / layer).rglob("*.py"))
PROFILES = sorted(path.stem for path in (ROOT / "profiles").glob("*.yaml"))


# --- reading imports


class Import(NamedTuple):
    """`from module import name`, or `import module` with name None."""

    module: str
    name: str | None


@cache
def tree(file: str) -> ast.Module:
    return ast.parse((ROOT / file).read_text(encoding="utf-8"))


@cache
def imports(file: str) -> frozenset[Import]:
    """All of a file's, wherever in it they stand."""
    found = set()
    for node in ast.walk(tree(file)):
        if isinstance(node, ast.Import):
            found |= {Import(alias.name, None) for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: a relative import"
            found |= {Import(node.module or "", alias.name) for alias in node.names}
    return frozenset(found)


def packages(file: str) -> set[str]:
    """The top-level names a file imports."""
    return {one.module.partition(".")[0] for one in imports(file)}


def frameworks(file: str) -> set[str]:
    """As FRAMEWORKS names them: packages, but for a module of one that it names by itself."""
    names = {f"{one.module}.{one.name}" for one in imports(file)}
    own = {
        name
        for name in FRAMEWORKS
        if "." in name and any(f"{full}.".startswith(f"{name}.") for full in names)
    }
    rest = {
        full.partition(".")[0] for full in names if not any(f"{full}.".startswith(f"{name}.") for name in own)
    }
    return own | rest


def assigned(file: str, variable: str) -> Any:
    """The literal a variable is set to at the top of a file."""
    for node in tree(file).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == variable:
            return ast.literal_eval(node.value)
    raise AssertionError(f"{file} sets no {variable}")


def home(module: str) -> str | None:
    """The file of a module of this project."""
    path = ROOT / module.replace(".", "/")
    for candidate in (path.with_suffix(".py"), path / "__init__.py"):
        if candidate.is_file():
            return name_of(candidate)
    return None


def project_files(one: Import) -> Iterator[str]:
    """The files of this project that one import runs, apart from theirs."""
    if one.module.partition(".")[0] not in LAYERS:
        return
    parts = one.module.split(".")
    for length in range(1, len(parts) + 1):  # to import a.b.c is to import a and a.b as well
        file = home(".".join(parts[:length]))
        assert file is not None, one
        yield file
    if one.name and (file := home(f"{one.module}.{one.name}")):
        yield file
    if one.module == "fcn" and (lazy := assigned("fcn/__init__.py", "_HOME").get(one.name)):
        yield home(lazy) or ""


def reached(file: str) -> set[str]:
    """The file and every file of this project that running it runs."""
    seen, waiting = set(), [file]
    while waiting:
        here = waiting.pop()
        if here not in seen:
            seen.add(here)
            waiting += chain.from_iterable(map(project_files, imports(here)))
    return seen


# --- reading dvc.yaml


class Stage(NamedTuple):
    """One stage as DVC runs it, for one profile."""

    name: str
    cmd: str
    deps: set[str]
    params: set[str]
    outs: set[str]


def filled(value: Any, values: dict[str, str]) -> Any:
    """The value with ${...} replaced, as DVC does it."""
    if isinstance(value, str):
        for name, given in values.items():
            value = value.replace(f"${{{name}}}", given)
        return value
    if isinstance(value, dict):
        return {filled(key, values): filled(inner, values) for key, inner in value.items()}
    if isinstance(value, list):
        return [filled(inner, values) for inner in value]
    return value


def stages(profile: str) -> list[Stage]:
    text = yaml.load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))
    known = {"profile": profile} | {key: value for entry in text["vars"] for key, value in entry.items()}
    found = []
    for name, stage in text["stages"].items():
        each = stage.get("foreach", {"": ""})
        for key, item in each.items() if isinstance(each, dict) else zip(each, each, strict=True):
            one = filled(stage.get("do", stage), {"key": key, "item": item} | known)
            assert "${" not in str(one), one
            files = [entry for kind in ("outs", "metrics", "plots") for entry in one.get(kind, [])]
            params = {
                key
                for entry in one.get("params", [])
                for file, keys in entry.items()
                for key in keys
                if file == f"profiles/{profile}.yaml"
            }
            outs = {entry if isinstance(entry, str) else next(iter(entry)) for entry in files}
            found.append(Stage(name, one["cmd"], set(one["deps"]), params, outs))
    return found


def code_of(stage: Stage) -> str:
    """The file a stage runs."""
    words = stage.cmd.split()
    return words[words.index("-m") + 1].replace(".", "/") + ".py"


STAGES = stages("sample")
ids = [stage.cmd.rpartition("stages.")[2] for stage in STAGES]


# --- the layers


@pytest.mark.parametrize("file", FILES)
def test_imports_run_from_stages_to_pipeline_to_fcn_and_never_back(file: str):
    layer = file.partition("/")[0]
    above = set(LAYERS[LAYERS.index(layer) + 1 :])
    assert not packages(file) & (above | {"tests", "bench"})


@pytest.mark.parametrize("file", [file for file in FILES if file.startswith("stages/")])
def test_no_stage_imports_another(file: str):
    assert "stages" not in packages(file)


@pytest.mark.parametrize("file", [file for file in FILES if file.startswith("fcn/")])
def test_fcn_needs_nothing_but_torch_and_the_standard_library(file: str):
    assert packages(file) <= sys.stdlib_module_names | {"fcn", "torch", "torchvision"}


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_each_framework_sits_behind_the_module_that_says_so(framework: str):
    assert [file for file in FILES if framework in frameworks(file)] == FRAMEWORKS[framework].split()


def test_modules_are_imported_by_statements_that_this_test_can_read():
    """But for fcn's own names, which its __init__ imports when they are first used."""
    dynamic = {
        file
        for file in FILES
        for node in ast.walk(tree(file))
        if isinstance(node, ast.Call)
        and ast.unparse(node.func)
        in ("import_module", "importlib.import_module", "__import__", "exec", "eval")
    }
    assert dynamic == {"fcn/__init__.py"}
    for name, module in fcn._HOME.items():
        assert name in {getattr(node, "name", None) for node in tree(home(module) or "").body}


@pytest.mark.parametrize("file", FILES)
def test_no_file_is_too_long_to_read(file: str):
    assert len((ROOT / file).read_text(encoding="utf-8").splitlines()) <= MAX_LINES


# --- what dvc.yaml knows of the code


def covers(dep: str, file: str) -> bool:
    return file == dep or file.startswith(f"{dep}/")


def holds_a_docstring_alone(file: str) -> bool:
    body = tree(file).body
    return len(body) == 1 and ast.get_docstring(tree(file)) is not None


@pytest.mark.parametrize("stage", STAGES, ids=ids)
def test_a_stage_depends_on_every_module_that_can_change_what_it_writes(stage: Stage):
    harmless = HARMLESS | HARMLESS_TO.get(stage.name, {})
    unknown = {
        file
        for file in reached(code_of(stage))
        if not any(covers(dep, file) for dep in stage.deps)
        and file not in harmless
        and not holds_a_docstring_alone(file)
    }
    assert unknown == set(), f"add to the deps of {stage.name} in dvc.yaml, or say above why not"


@pytest.mark.parametrize("stage", STAGES, ids=ids)
def test_a_stage_depends_on_no_code_that_it_does_not_run(stage: Stage):
    code = {dep for dep in stage.deps if dep.partition("/")[0] in LAYERS}
    assert code
    for dep in code:
        assert (ROOT / dep).exists(), dep
        assert any(covers(dep, file) for file in reached(code_of(stage))), dep


def test_every_excuse_is_needed():
    run = {file for stage in STAGES for file in reached(code_of(stage))}
    assert set(HARMLESS) <= run
    for name, excused in HARMLESS_TO.items():
        for stage in STAGES:
            if stage.name == name:
                assert set(excused) <= reached(code_of(stage))
                assert not any(covers(dep, file) for dep in stage.deps for file in excused)


def test_a_void_pixel_is_255_as_in_every_published_label():
    assert fcn.IGNORE_LABEL == 255


def test_the_code_that_names_a_run_is_the_code_its_worker_runs():
    """A run's identity covers what dvc.yaml makes the stage depend on, or a resume would mix two versions."""
    files = assigned("pipeline/training/driver.py", "DECIDES_RESULT")
    keeps = {"pipeline/models/checkpoint.py"}  # saves and loads the same numbers, or fails
    run = reached("pipeline/training/loop.py") - set(HARMLESS) - set(HARMLESS_TO["train"]) - keeps
    assert {file for file in run if not holds_a_docstring_alone(file)} == set(files)
    assert {dep for dep in STAGES[ids.index("train fcn32s")].deps if dep in FILES} - set(files) == keeps | {
        "stages/train.py",
        "pipeline/training/driver.py",
    }


def test_every_file_of_stages_is_run_by_dvc():
    assert {code_of(stage) for stage in STAGES} == {
        file for file in FILES if file.startswith("stages/") and not file.endswith("__init__.py")
    }


# --- what dvc.yaml knows of the profiles


def leaves(values: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in values.items():
        yield from leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else [f"{prefix}{key}"]


@pytest.mark.parametrize("profile", PROFILES)
def test_every_param_of_dvc_is_in_every_profile_and_every_value_is_a_param(profile: str):
    values = yaml.load((ROOT / "profiles" / f"{profile}.yaml").read_text(encoding="utf-8"))
    params = {param for stage in stages(profile) for param in stage.params}
    for param in params:
        section = values
        for key in param.split("."):
            assert key in section, param
            section = section[key]
    for leaf in leaves({key: value for key, value in values.items() if key != "run"}):  # it decides no result
        assert any(f"{leaf}.".startswith(f"{param}.") for param in params), leaf


@pytest.mark.parametrize("profile", PROFILES)
def test_the_outs_are_where_paths_puts_the_results(profile: str):
    outs: dict[str, set[str]] = {}
    for stage in stages(profile):
        outs.setdefault(stage.name, set()).update(stage.outs)
    splits = {paths.shards(profile, split).parent.as_posix() for split in config.Splits.model_fields}
    assert outs == {
        "download": {paths.raw(profile).as_posix()},
        "shard": splits,
        "inspect": {paths.inspection(profile).as_posix()},
        "backbone": {paths.model(profile, "backbone").as_posix()},
        "train": {
            path(profile, net).as_posix() for net in config.CHAIN for path in (paths.model, paths.curve)
        },
        "evaluate": {
            path(profile, net).as_posix()
            for net in config.CHAIN
            for path in (paths.metrics, paths.per_image, paths.figures)
        },
        "report": {paths.report(profile).as_posix()},
    }


def test_each_net_is_trained_from_the_one_before_it_and_scored_on_its_own_split():
    by_command = dict(zip(ids, STAGES, strict=True))
    before = "backbone"
    for net in config.CHAIN:
        train, evaluate = by_command[f"train {net}"], by_command[f"evaluate {net}"]
        assert train.deps > {
            paths.shards("sample", "train").as_posix(),
            paths.model("sample", before).as_posix(),
        }
        assert evaluate.deps > {
            paths.shards("sample", "val").as_posix(),
            paths.model("sample", net).as_posix(),
        }
        assert f"nets.{net}" in train.params
        verdict = (paths.inspection("sample") / "verdict.json").as_posix()
        assert {dep for dep in train.deps if "inspection" in dep} == {
            verdict
        }  # another val trains nothing anew
        before = net


def test_what_must_outlive_a_stage_lies_outside_every_out():
    """DVC empties a stage's outs before it runs: half a download or a checkpoint would be gone."""
    for kept in (paths.DOWNLOADS, paths.RUNS, paths.sharding("sample", "train")):
        for out in chain.from_iterable(stage.outs for stage in STAGES):
            assert not kept.is_relative_to(out)
            assert not Path(out).is_relative_to(kept)
