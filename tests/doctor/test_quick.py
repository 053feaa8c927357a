"""What a run needs of its surroundings: each check passes here, and names what is missing where it is not met."""

import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest

from pipeline import config
from pipeline.doctor import quick
from pipeline.doctor.findings import AdviceError, Setting, find, refuse
from pipeline.errors import UserError
from pipeline.monitoring import machine
from tests.conftest import ROOT
from tests.stage_runs import NAME, run_stage, sample_profile, write_profile


@pytest.fixture
def setting(tmp_path: Path) -> Setting:
    write_profile(tmp_path, sample_profile())
    return Setting(tmp_path, *config.load(tmp_path))


def locked(name: str, version: str, marker: str = "") -> str:
    return f"{name}=={version}{marker} \\\n    --hash=sha256:00\n    # via x\n"


def lock_of(setting: Setting, *dependencies: str) -> Path:
    """The lock of a project that depends on these packages."""
    needs = [f"{name}[extra]>=1,<2" for name in dependencies]
    (setting.root / "pyproject.toml").write_text(f"[project]\ndependencies = {needs}\n")
    return setting.root / quick.LOCK


def test_all_checks_hold_in_this_environment(setting):
    states = {finding.check: finding.state for finding in find(quick.BEFORE_A_RUN, setting)}
    assert "fail" not in states.values()
    refuse(quick.BEFORE_A_RUN, setting)


def test_the_checks_before_a_run_import_no_framework(tmp_path):
    write_profile(tmp_path, sample_profile())
    for name in (quick.LOCK, "pyproject.toml"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    code = """
import sys
from pathlib import Path
from pipeline import config
from pipeline.doctor import findings, quick
root = Path(sys.argv[1])
findings.refuse(quick.BEFORE_A_RUN, findings.Setting(root, *config.load(root)))
sys.exit(sorted({"torch", "ray", "mlflow", "dvc", "pyarrow"} & set(sys.modules)) or None)
"""
    ended = subprocess.run([sys.executable, "-c", code, tmp_path], cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr


@pytest.mark.parametrize("version", [(3, 10, 1), (3, 15, 0)])
def test_another_python_is_refused_with_those_that_work(setting, monkeypatch, version):
    monkeypatch.setattr(quick, "sys", SimpleNamespace(version_info=version, version="x y", prefix=""))
    with pytest.raises(UserError, match=r"3\.11 to 3\.14"):
        quick.python(setting)


def test_the_pythons_are_those_of_the_package():
    text = (ROOT / "pyproject.toml").read_text("utf-8")
    (_, oldest), (_, newest) = quick.PYTHONS
    assert f'requires-python = ">=3.{oldest},<3.{newest + 1}"' in text


def test_a_missing_package_is_refused_and_another_version_is_a_warning(setting):
    lock, numpy = lock_of(setting, "numpy", "not-to-be-had"), metadata.version("numpy")
    lock.write_text(locked("numpy", numpy) + locked("pywin32-none", "1", " ; sys_platform == 'win32'"))
    assert quick.LOCK in quick.packages(setting)
    lock.write_text(locked("numpy", "0.1", " ; a") + locked("numpy", numpy, " ; b"))
    quick.packages(setting)
    lock.write_text(locked("numpy", "0.1"))
    with pytest.raises(AdviceError, match=f"numpy {numpy}.*0\\.1"):
        quick.packages(setting)
    lock.write_text(locked("numpy", "0.1") + locked("not-to-be-had", "1"))
    with pytest.raises(UserError, match="not-to-be-had"):
        quick.packages(setting)
    lock_of(setting, "numpy")  # now a package of tests or tools alone
    with pytest.raises(AdviceError, match="not-to-be-had"):
        quick.packages(setting)


def test_a_folder_without_git_is_refused_unless_dvc_knows(setting):
    with pytest.raises(UserError, match="make setup"):
        quick.git_and_dvc(setting)
    (setting.root / ".dvc").mkdir()
    (setting.root / ".dvc" / "config.local").write_text("[core]\n    no_scm = true\n")
    with pytest.raises(AdviceError, match="git init"):
        quick.git_and_dvc(setting)


def test_too_little_memory_for_the_workers_is_refused_with_both_numbers(setting, monkeypatch):
    monkeypatch.setattr(quick, "available_memory", lambda: 5e8)
    with pytest.raises(UserError, match=r"0\.5 GB.*num_workers"):
        quick.memory(setting)
    monkeypatch.setenv("RAY_ADDRESS", "elsewhere:6379")  # the workers' memory is that of other machines
    assert quick.memory(setting)


@pytest.mark.parametrize(
    ("line", "file"),
    [
        ("0::/a/b", "a/b/memory.max"),
        ("0::/a/b", "a/memory.max"),
        ("0::/a", "memory.max"),
        ("4:memory:/a", "memory/a/memory.limit_in_bytes"),
        ("4:memory:/a", "memory/memory.limit_in_bytes"),
    ],
)
def test_the_memory_limit_of_a_container_counts(tmp_path, monkeypatch, line, file):
    groups = tmp_path / "groups"
    groups.write_text(f"3:cpu:/\n{line}\n")
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).write_text("1000\n")
    monkeypatch.setattr(machine, "GROUPS", groups)
    monkeypatch.setattr(machine, "CGROUPS", tmp_path)
    assert machine.available_memory() == 1000
    (tmp_path / file).write_text("max\n")
    assert machine.available_memory() > 1000


@pytest.mark.parametrize(
    ("line", "folder", "limit", "usage", "cache"),
    [
        ("0::/a", "a", "memory.max", "memory.current", "inactive_file"),
        ("4:memory:/a", "memory/a", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ],
)
def test_what_a_container_uses_is_not_free_but_its_cached_files_are(
    tmp_path, monkeypatch, line, folder, limit, usage, cache
):
    (tmp_path / folder).mkdir(parents=True)
    for name, text in (
        (limit, "4000"),
        (usage, "3900"),
        ("memory.stat", f"anon 7\n{cache} 500\nactive_file 11\n"),
    ):
        (tmp_path / folder / name).write_text(f"{text}\n")
    (tmp_path / "groups").write_text(f"{line}\n")
    monkeypatch.setattr(machine, "GROUPS", tmp_path / "groups")
    monkeypatch.setattr(machine, "CGROUPS", tmp_path)
    assert machine.available_memory() == 600
    (tmp_path / folder / usage).write_text("4600\n")  # a limit lowered since
    assert machine.available_memory() == 0


@pytest.mark.parametrize(("free", "error"), [(1e8, UserError), (2e9, AdviceError)])
def test_a_full_disk_is_refused_and_a_small_one_is_a_warning(setting, monkeypatch, free, error):
    monkeypatch.setattr(quick.shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    with pytest.raises(error, match=str(setting.root)):
        quick.disk(setting)


def test_a_machine_that_does_not_reach_itself_is_refused():
    code = (
        "import sys; from pipeline.doctor import quick; from pipeline.errors import UserError\n"
        "try: quick.network(None)\n"
        "except UserError as error: print(error); sys.exit(2)"
    )
    in_namespace = ["unshare", "-n", sys.executable, "-c", code]
    if os.getuid() or subprocess.run(["unshare", "-n", "true"], check=False).returncode:
        pytest.skip("needs root and network namespaces")
    done = subprocess.run(in_namespace, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert "ip link set lo up" in done.stdout


def test_too_few_open_files_are_refused(setting, monkeypatch):
    monkeypatch.setattr(quick.resource, "getrlimit", lambda _: (64, 64))
    with pytest.raises(UserError, match="ulimit"):
        quick.open_files(setting)


def test_the_first_stage_refuses_before_any_work_with_a_sentence_for_each_reason(setting):
    lock = lock_of(setting, "not-to-be-had")
    lock.write_text(locked("not-to-be-had", "1"))
    done = run_stage(setting.root, "stages.source")
    assert done.returncode == 2
    assert "not-to-be-had" in done.stderr
    assert not (setting.root / "data" / NAME / "source.json").exists()
    lock.unlink()
    assert run_stage(setting.root, "stages.source").returncode == 0
