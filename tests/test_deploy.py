"""The files of deploy/: the schemas they are read by, and that nobody else gets in."""

import copy
import re
from typing import Any

import jsonschema
import pytest
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


def test_ray_up_takes_the_cluster(cluster):
    validate_config(prepare_config(copy.deepcopy(cluster)))
    with pytest.raises(jsonschema.ValidationError):
        validate_config(prepare_config(copy.deepcopy(cluster)) | {"worker_ips": []})


def test_every_node_of_the_cluster_asks_for_the_token_as_those_of_fcn_cluster_do(cluster):
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


def section(required: str = "", **properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": required.split(),
        "additionalProperties": False,
    }


def many(item: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": item}


TEXT, COUNT, FLAG = {"type": "string"}, {"type": "integer", "minimum": 0}, {"type": "boolean"}
TEXTS = {"type": "object", "additionalProperties": TEXT}
POD = section(
    "containers",
    automountServiceAccountToken=FLAG,
    securityContext=section(runAsNonRoot=FLAG, runAsUser=COUNT, fsGroup=COUNT),
    containers=many(
        section(
            "name image",
            name=TEXT,
            image=TEXT,
            workingDir=TEXT,
            env=many(section("name value", name=TEXT, value=TEXT)),
            envFrom=many(section(secretRef=section("name", name=TEXT, optional=FLAG))),
            resources=section(requests=TEXTS, limits=TEXTS),
            securityContext=section(allowPrivilegeEscalation=FLAG, capabilities=section(drop=many(TEXT))),
            volumeMounts=many(section("name mountPath", name=TEXT, mountPath=TEXT)),
        )
    ),
    volumes=many(
        section(
            "name",
            name=TEXT,
            persistentVolumeClaim=section("claimName", claimName=TEXT),
            emptyDir=section(medium=TEXT, sizeLimit=TEXT),
        )
    ),
)
# Those fields of KubeRay's custom resource definition (ray.io_rayjobs.yaml) that the file uses, and no others
RAYJOB = section(
    "apiVersion kind metadata spec",
    apiVersion={"const": "ray.io/v1"},
    kind={"const": "RayJob"},
    metadata=section("name", name=TEXT),
    spec=section(
        "entrypoint rayClusterSpec",
        entrypoint=TEXT,
        runtimeEnvYAML=TEXT,
        submissionMode={"enum": ["K8sJobMode", "HTTPMode", "SidecarMode", "InteractiveMode"]},
        backoffLimit=COUNT,
        shutdownAfterJobFinishes=FLAG,
        ttlSecondsAfterFinished=COUNT,
        rayClusterSpec=section(
            "headGroupSpec",
            rayVersion=TEXT,
            authOptions=section(mode={"enum": ["disabled", "token"]}),
            headGroupSpec=section(
                "template", serviceType=TEXT, rayStartParams=TEXTS, template=section("spec", spec=POD)
            ),
            workerGroupSpecs=many(
                section(
                    "groupName minReplicas maxReplicas template",
                    groupName=TEXT,
                    replicas=COUNT,
                    minReplicas=COUNT,
                    maxReplicas=COUNT,
                    rayStartParams=TEXTS,
                    template=section("spec", spec=POD),
                )
            ),
        ),
    ),
)


def containers(rayjob: dict[str, Any]) -> list[dict[str, Any]]:
    spec = rayjob["spec"]["rayClusterSpec"]
    groups = [spec["headGroupSpec"], *spec["workerGroupSpecs"]]
    return [one for group in groups for one in group["template"]["spec"]["containers"]]


def test_kuberay_takes_the_job(rayjob):
    jsonschema.validate(rayjob, RAYJOB)
    rayjob["spec"]["shutDownAfterJobFinishes"] = True
    with pytest.raises(jsonschema.ValidationError, match="shutDownAfterJobFinishes"):
        jsonschema.validate(rayjob, RAYJOB)


def test_the_job_wants_a_token_and_no_door_to_the_outside(rayjob):
    spec = rayjob["spec"]["rayClusterSpec"]
    assert spec["authOptions"] == {"mode": "token"}
    assert spec["headGroupSpec"]["serviceType"] == "ClusterIP"
    for container in containers(rayjob):
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        assert not [one for one in container["env"] if re.search("TOKEN|PASSWORD|SECRET|KEY", one["name"])]


def test_every_pod_sees_the_storage_that_the_job_works_on(rayjob):
    folder = rayjob["spec"]["entrypoint"].split('"')[1].split()[-1]
    for container in containers(rayjob):
        assert any(folder.startswith(f"{one['mountPath']}/") for one in container["volumeMounts"])


def test_the_cluster_runs_the_ray_of_the_lock(rayjob):
    (locked,) = re.findall(
        r"^ray(?:\[[^]]*\])?==(\S+)", (ROOT / "requirements.lock").read_text("utf-8"), re.M
    )
    assert rayjob["spec"]["rayClusterSpec"]["rayVersion"] == locked


# --- the image


def test_no_result_and_no_secret_gets_into_the_image():
    ignored = (ROOT / ".dockerignore").read_text("utf-8").split()
    results = [line.strip("/") for line in (ROOT / ".gitignore").read_text("utf-8").split() if line[0] == "/"]
    assert {".git", ".dvc/config.local"} <= set(ignored)
    assert set(results) - {"mlruns"} <= set(ignored) | {".venv"}
