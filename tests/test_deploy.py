"""The files of deploy/ and workflows: their systems accept them, nodes require the token, and no secret leaks."""

import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest
from packaging.specifiers import SpecifierSet
from ray.autoscaler._private.util import prepare_config, validate_config
from ruamel.yaml import YAML

from pipeline.cluster.nodes import ENVIRONMENT
from tests.conftest import ROOT


def read(name: str) -> dict[str, Any]:
    return YAML(typ="safe", pure=True).load((ROOT / "deploy" / name).read_text(encoding="utf-8"))


@pytest.fixture
def cluster() -> dict[str, Any]:
    return read("ray-cluster.yaml")


@pytest.fixture
def rayjob() -> dict[str, Any]:
    return read("rayjob.yaml")


# --- ray-cluster.yaml


def test_ray_up_accepts_the_cluster(cluster):
    validate_config(prepare_config(cluster))


def test_every_node_has_the_settings_of_fcn_cluster(cluster):
    (head,) = [command for command in cluster["head_start_ray_commands"] if "--head" in command]
    (node,) = [command for command in cluster["worker_start_ray_commands"] if "--address" in command]
    set_by_option = {"RAY_USAGE_STATS_ENABLED": "--disable-usage-stats"}
    for name, value in ENVIRONMENT.items():
        assert set_by_option.get(name, f"{name}={value} ") in f"{head} "
        assert set_by_option.get(name, f"{name}={value} ") in f"{node} " or name.endswith("_METRIC_PORT")
    assert "--dashboard-host=127.0.0.1" in head.split()
    assert cluster["file_mounts"] == {"~/.ray/auth_token": "~/.ray/auth_token"}
    assert "chmod 600 ~/.ray/auth_token" in cluster["setup_commands"]


# --- rayjob.yaml


def containers(rayjob: dict[str, Any]) -> list[dict[str, Any]]:
    spec = rayjob["spec"]["rayClusterSpec"]
    groups = [spec["headGroupSpec"], *spec["workerGroupSpecs"]]
    return [container for group in groups for container in group["template"]["spec"]["containers"]]


def test_the_job_requires_a_token_and_has_no_port_outside_and_no_secret_in_the_file(rayjob):
    spec = rayjob["spec"]["rayClusterSpec"]
    assert spec["authOptions"] == {"mode": "token"}
    assert spec["headGroupSpec"]["serviceType"] == "ClusterIP"
    for container in containers(rayjob):
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        names = [variable["name"] for variable in container["env"]]
        assert not [name for name in names if re.search("TOKEN|PASSWORD|SECRET|KEY", name)]


def test_every_pod_has_the_settings_of_fcn_cluster(rayjob):
    for container in containers(rayjob):
        settings = {variable["name"]: variable["value"] for variable in container["env"]}
        assert (
            settings | {"RAY_AUTH_MODE": rayjob["spec"]["rayClusterSpec"]["authOptions"]["mode"]}
            == ENVIRONMENT
        )


def test_every_pod_mounts_the_storage_that_the_job_works_on(rayjob):
    folder = rayjob["spec"]["entrypoint"].split('"')[1].split()[-1]
    for container in containers(rayjob):
        assert any(folder.startswith(f"{mount['mountPath']}/") for mount in container["volumeMounts"])


def test_the_cluster_runs_the_locked_version_of_ray(rayjob):
    (locked,) = re.findall(
        r"^ray(?:\[[^]]*\])?==(\S+)", (ROOT / "requirements.lock").read_text("utf-8"), re.M
    )
    assert rayjob["spec"]["rayClusterSpec"]["rayVersion"] == locked


# --- a release


def test_version_changelog_and_citation_agree():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["version"]
    assert f"## {version}\n" in (ROOT / "CHANGELOG.md").read_text("utf-8")
    assert f"version: {version}\n" in (ROOT / "CITATION.cff").read_text("utf-8")


def test_the_wheel_holds_every_file_of_its_packages(tmp_path):
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        packed = set(archive.namelist())
    tracked = subprocess.run(
        ["git", "ls-files", "fcn", "pipeline", "stages"], cwd=ROOT, check=True, capture_output=True, text=True
    )
    assert set(tracked.stdout.split()) <= packed


# --- the image


def test_a_linter_finds_nothing_wrong_with_the_image():
    done = subprocess.run(
        [Path(sys.executable).with_name("hadolint"), ROOT / "deploy/Dockerfile"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout


def test_no_result_and_no_secret_gets_into_the_image():
    ignored = (ROOT / ".dockerignore").read_text("utf-8").split()
    results = [line.strip("/") for line in (ROOT / ".gitignore").read_text("utf-8").split() if line[0] == "/"]
    assert {".git", ".dvc/config.local"} <= set(ignored)
    assert set(results) - {"mlruns"} <= set(ignored) | {".venv"}


# --- workflows of GitHub


@pytest.mark.parametrize(
    ("name", "schema"),
    [
        (".github/workflows/checks.yml", "github-workflows"),
        ("deploy/results.yml", "github-workflows"),
        (".github/ISSUE_TEMPLATE/bug.yml", "github-issue-forms"),
        (".github/ISSUE_TEMPLATE/result.yml", "github-issue-forms"),
        (".github/ISSUE_TEMPLATE/config.yml", "github-issue-config"),
        ("CITATION.cff", "citation-file-format"),
    ],
)
def test_a_file_fits_the_schema_of_its_reader(name, schema):
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", f"vendor.{schema}"]
    done = subprocess.run([*command, str(ROOT / name)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_the_checks_run_on_every_python_that_the_project_allows():
    checks = YAML(typ="safe", pure=True).load((ROOT / ".github/workflows/checks.yml").read_text("utf-8"))
    allowed = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["requires-python"]
    minors = [f"3.{minor}" for minor in range(30) if f"3.{minor}" in SpecifierSet(allowed)]
    assert checks["jobs"]["checks"]["strategy"]["matrix"]["python"] == minors
