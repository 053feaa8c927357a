"""Checks that take milliseconds. The first stage of `dvc repro` runs them too."""

import os
import re
import resource
import shutil
import socket
import sys
import tempfile
import tomllib
from importlib import metadata
from pathlib import Path

from pipeline.cluster import nodes
from pipeline.doctor.findings import AdviceError, Checks, Setting
from pipeline.errors import UserError
from pipeline.files import and_more
from pipeline.git import find_commit
from pipeline.monitoring.machine import available_memory, num_cores
from pipeline.surroundings import refuse_path, refuse_read_only

PYTHONS = ((3, 11), (3, 14))  # the oldest and the newest of pyproject.toml's requires-python
LOCK = "requirements.lock"
LOCKED = re.compile(r"^([a-z0-9._-]+)==(\S+)(?: ; (.*?))? \\$", re.MULTILINE)
LEAST_ROOM, ENOUGH_ROOM = 5e8, 5e9  # bytes of the disk: for a small net's files; for most nets'
LEAST_TEMP = 1e8  # bytes that Ray's logs and sockets need
# Bytes of their own (RssAnon) after imports: driver 0.54e9, Ray Train's controller 0.40e9, Ray 0.2e9; a worker 0.40e9
DRIVER_BYTES, WORKER_BYTES = 1.1e9, 0.4e9
LEAST_OPEN_FILES = 256


def python(_: Setting) -> str:
    version, (oldest, newest) = sys.version_info[:2], PYTHONS
    if not oldest <= version <= newest:
        allowed = " to ".join(f"{major}.{minor}" for major, minor in PYTHONS)
        raise UserError(
            f"Python {allowed} is expected, this is {sys.version.split()[0]}; make clean, then make PYTHON=... setup"
        )
    return f"{sys.version.split()[0]} in {sys.prefix}"


def packages(setting: Setting) -> str:
    lock = setting.root / LOCK
    if not lock.exists():
        return f"no {LOCK} here to compare with"
    wanted: dict[str, list[str]] = {}  # a package may have a version for each Python
    conditional = set()
    for name, version, marker in LOCKED.findall(lock.read_text("utf-8")):
        wanted.setdefault(name, []).append(version)
        if marker:
            conditional.add(name)
    installed = {name: _version(name) for name in wanted}
    absent = {name for name, version in installed.items() if version is None}
    if missing := sorted(absent & _dependencies(setting.root)):
        raise UserError(f"packages of {LOCK} are missing: {and_more(missing)}; run make setup")
    other = sorted(absent - conditional)
    other += [
        f"{name} {version} instead of {' or '.join(wanted[name])}"
        for name, version in installed.items()
        if version and version not in wanted[name]
    ]
    if other:
        raise AdviceError(
            f"{len(other)} packages are missing or differ from {LOCK}: {and_more(other)}; run make setup"
        )
    return f"{len(wanted)} as in {LOCK}"


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _dependencies(root: Path) -> set[str]:
    """Return the packages that runs import; the lock has others, of tests and tools."""
    project = tomllib.loads((root / "pyproject.toml").read_text("utf-8"))["project"]
    return {re.split(r"[^A-Za-z0-9._-]", text)[0].lower() for text in project["dependencies"]}


def project_folder(setting: Setting) -> str:
    refuse_path(setting.root)
    refuse_read_only(setting.root)
    return str(setting.root)


def git_and_dvc(setting: Setting) -> str:
    if commit := find_commit(setting.root):
        return f"commit {commit.sha[:7]}" + (" with changes" if commit.is_dirty else "")
    local = setting.root / ".dvc" / "config.local"
    if local.exists() and "no_scm" in local.read_text("utf-8"):
        raise AdviceError(
            "no git checkout: results do not name their code, and `dvc exp` and `fcn cluster submit` do not work; "
            "run git init, commit, and make setup"
        )
    raise UserError(
        f"{setting.root} is not a git checkout that this user's git can read, and DVC expects one; run make setup, "
        "which lets DVC work without, or git init and a commit"
    )


def cores(setting: Setting) -> str:
    wanted = setting.profile.train.num_workers * setting.profile.run.cpus_per_worker
    if num_cores() < wanted and not nodes.cluster_address():
        raise AdviceError(
            f"{num_cores()}, and {setting.name} has {wanted} cores' worth of workers: they take turns, which is slower "
            "than fewer workers (train.num_workers)"
        )
    return str(num_cores())


def memory(setting: Setting) -> str:
    free = available_memory()
    needed = DRIVER_BYTES + setting.profile.train.num_workers * WORKER_BYTES
    if free < needed and not nodes.cluster_address():
        raise UserError(
            f"{free / 1e9:.1f} GB of memory are free, and {setting.name}'s {setting.profile.train.num_workers} workers "
            f"need {needed / 1e9:.1f} GB before the first image; end other programs, raise the container's limit, or "
            "lower train.num_workers"
        )
    return f"{free / 1e9:.1f} GB free" if free < float("inf") else "unknown"


def disk(setting: Setting) -> str:
    free = shutil.disk_usage(setting.root).free
    if free < LEAST_ROOM:
        raise UserError(
            f"{setting.root}: {free / 1e9:.2f} GB are free, at least {LEAST_ROOM / 1e9:.1f} GB are needed for shards, "
            "checkpoints and models; make room, such as by `dvc gc --workspace` or in runs/"
        )
    if free < ENOUGH_ROOM:
        raise AdviceError(f"{free / 1e9:.1f} GB free in {setting.root}: enough for small nets alone")
    return f"{free / 1e9:.0f} GB free in {setting.root}"


def temporary_folder(_: Setting) -> str:
    folder = os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()
    free = shutil.disk_usage(folder).free
    if free < LEAST_TEMP:
        raise UserError(
            f"{folder}: {free / 1e6:.0f} MB are free, and Ray needs {LEAST_TEMP / 1e6:.0f} MB for its session; make "
            "room, or set TMPDIR to another folder"
        )
    target = Path(folder).resolve()
    return f"{folder}, {free / 1e9:.0f} GB free" + (f" ({target})" if target != Path(folder) else "")


def open_files(_: Setting) -> str:
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if limit != resource.RLIM_INFINITY and limit < LEAST_OPEN_FILES:
        raise UserError(
            f"{limit} files may be open at once, and Ray needs {LEAST_OPEN_FILES}; raise the limit: ulimit -n 4096"
        )
    return "no limit" if limit == resource.RLIM_INFINITY else f"at most {limit}"


def network(_: Setting) -> str:
    try:
        with socket.create_server(("127.0.0.1", 0)) as server:
            socket.create_connection(server.getsockname(), timeout=5).close()
    except OSError as error:
        raise UserError(
            f"this machine does not reach itself at 127.0.0.1 ({error.strerror or error}), and Ray's processes talk "
            "there; bring the loopback interface up: ip link set lo up"
        ) from None
    return "127.0.0.1 answers"


CHECKS: Checks = {
    "Python": python,
    "packages": packages,
    "project": project_folder,
    "git and DVC": git_and_dvc,
    "cores": cores,
    "memory": memory,
    "disk": disk,
    "temporary folder": temporary_folder,
    "open files": open_files,
    "network": network,
}
BEFORE_A_RUN = {name: check for name, check in CHECKS.items() if check is not git_and_dvc}  # DVC runs already
