"""Names of runs: the net, how its profile differs from the last commit, and the DVC experiment.

Experiments of one profile differ in a few values. Their rows in MLflow are told apart by these.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from pipeline import git, paths
from pipeline.config import PROFILES
from pipeline.files import and_more

NUM_NAMED = 3  # changed values in a name; the tag `changed` has all of them
DATA = "data"  # the name of the run of a profile's images
MAX_LENGTH = 40  # of a value in a name
EXPERIMENT = "DVC_EXP_NAME"  # DVC sets it for the stages of `dvc exp run` and the queue


def run_name(name: str, profile: str, workspace: Path) -> tuple[str, dict[str, str]]:
    """Return the run's name, such as "fcn8s lr=0.002, train.seed=2 (rooky-gaur)", and tags with all of it.

    name: of the net, "data", or a name that stays as it is: of a group, or "fcn8s seed 1338" of its member.
    workspace: the checkout whose profile is compared with that of its commit.
    """
    changes = {key: value for key, value in changed(profile, workspace).items() if _concerns(key, name)}
    experiment = os.environ.get(EXPERIMENT, "")
    shown = [
        f"{key.removeprefix(f'nets.{name}.').removeprefix('nets.')}={_short(value)}"
        for key, value in changes.items()
    ]
    title = name
    if name in (DATA, *paths.CHAIN):
        title = " ".join(filter(None, [name, and_more(shown, NUM_NAMED), experiment and f"({experiment})"]))
    tags = {"dvc_exp": experiment, "changed": "; ".join(f"{key}={value}" for key, value in changes.items())}
    return title, {key: value for key, value in tags.items() if value}


def changed(profile: str, workspace: Path) -> dict[str, str]:
    """Return the profile's values, by dotted key, that differ from those of the last commit; none without one."""
    path = PROFILES / f"{profile}.yaml"
    committed = git.read_committed(workspace, path)
    if committed is None:
        return {}
    yaml = YAML(typ="safe", pure=True)
    try:
        before, now = flat(yaml.load(committed)), flat(yaml.load((workspace / path).read_text("utf-8")))
    except (OSError, ValueError, AttributeError, YAMLError):  # the commit's, or a test's; ours was validated
        return {}
    missing = {key: "none" for key in before if key not in now}
    return {key: str(value) for key, value in now.items() if before.get(key, missing) != value} | missing


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}"""
    items: dict[str, Any] = {}
    for key, value in values.items():
        items |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return items


def _concerns(key: str, name: str) -> bool:
    """Return whether a value of the profile can change the results of this net, of "data", or of a group."""
    section, _, rest = key.partition(".")
    if name == DATA:
        return section in ("data", "shards")
    net = name.partition(" ")[0]
    later = paths.CHAIN[paths.CHAIN.index(net) + 1 :] if net in paths.CHAIN else ()
    return section != "run" and not (section == "nets" and rest.partition(".")[0] in later)


def _short(value: str) -> str:
    return value if len(value) <= MAX_LENGTH else f"{value[: MAX_LENGTH - 3]}..."
