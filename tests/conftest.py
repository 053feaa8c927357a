"""What several tests need: the project's root and, where it is there, real data that is never committed."""

import os
import signal
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import settings

# Ray looks at it once, when it is first imported, which a test may do before pipeline.cluster.ray_workers says so
os.environ.setdefault("RAY_AUTH_MODE", "token")
# One thread in each process that a test starts, and in this one: nets are tiny, and other tests run beside
os.environ.setdefault("OMP_NUM_THREADS", "1")
torch.set_num_threads(1)
settings.register_profile("any machine", deadline=None)  # the first call imports, and other tests run beside
settings.load_profile("any machine")

ROOT = Path(__file__).parent.parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long tests begin first, or one process would work on them alone at the end."""
    items.sort(key=lambda item: item.get_closest_marker("early") is None)


@pytest.fixture(autouse=True)
def stoppable() -> None:
    """Ctrl-C has its usual effect, whatever an earlier test's Ray Tune does at it.

    A shell has what it runs in the background ignore it, and every process a test starts would inherit that.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def activated() -> None:
    """`dvc` and others are those of this environment, also where nobody has activated it."""
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Blocks of stores are not kept in the user's cache."""
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def root() -> Path:
    """The project's root."""
    return ROOT


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Photos of PASCAL VOC with their labels, at FCN_TEST_DATA or ../shared/data; skips where there are none."""
    folder = Path(os.environ.get("FCN_TEST_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real images at {folder}; set FCN_TEST_DATA to a folder that has them")
    return folder


def run_fcn(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str
) -> tuple[int, str, str]:
    """Run the command in this process; return exit code, standard output and standard error."""
    from pipeline.cli.main import main

    monkeypatch.setattr("sys.argv", ["fcn", *arguments])
    capsys.readouterr()
    code = 0
    try:
        main()
    except SystemExit as exit_:
        code = exit_.code
    return code, *capsys.readouterr()
