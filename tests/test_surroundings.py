"""A process adapts to odd paths, a long TMPDIR, a nameless user, proxies and limits, or refuses in one sentence."""

import os
import resource
import socket
import subprocess
import sys
import tempfile
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from pipeline import surroundings
from pipeline.errors import UserError
from tests.conftest import ROOT

ODD = ["a b", "a#1", "100%", "what?", "it's", 'a"b', "a$HOME", "a\\b", "a;b&c", "ölé", "背景", "[a]*", "-a"]
NOBODY = 54321


def run_here(
    code: str, *command: str, cwd: Path | None = None, unset: tuple[str, ...] = (), **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run code as a command of this project, in a process of its own."""
    text = f"from pipeline.surroundings import run_command\ndef main():\n    {code}\nrun_command(main)"
    inherited = {name: value for name, value in os.environ.items() if name not in unset}
    return subprocess.run(
        [*(command or [sys.executable]), "-c", text],
        cwd=cwd,
        env=inherited | {"PYTHONPATH": str(ROOT)} | environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def system_python() -> str:
    """A Python that a user without rights can start, for code that needs the standard library alone."""
    python = "/usr/bin/python3"
    if os.getuid() or not os.access(python, os.X_OK):
        pytest.skip("needs root, to become another user, and /usr/bin/python3")
    code = "import sys, pipeline.errors; raise SystemExit(sys.version_info < (3, 11))"
    command = [*as_nobody(python), "-c", code]
    if subprocess.run(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, check=False).returncode:
        pytest.skip("/usr/bin/python3 is older than 3.11, or other users cannot read this project")
    return python


def as_nobody(python: str) -> tuple[str, ...]:
    return ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", python)


# Paths


@pytest.mark.parametrize("name", ODD)
def test_a_plain_path_leads_to_a_folder_of_any_name(tmp_path, name):
    folder = tmp_path / name
    folder.mkdir()
    path = surroundings.plain(folder)
    assert surroundings.PLAIN.fullmatch(str(path))
    assert path.resolve() == folder.resolve()
    assert surroundings.plain(folder) == path


def test_a_plain_path_leads_to_its_folder_though_another_link_was_there(tmp_path):
    path = surroundings.plain(tmp_path / "a b")
    path.unlink()
    path.symlink_to("elsewhere")
    assert surroundings.plain(tmp_path / "a b").readlink() == tmp_path / "a b"


@pytest.mark.parametrize("name", ODD)
def test_a_project_of_any_ordinary_name_is_accepted(name):
    surroundings.refuse_path(Path("/home/me") / name)


@pytest.mark.parametrize("name", ["a:b", "a\nb", "a{b}", "\udcff", "'\""])
def test_a_path_that_cannot_work_is_refused_before_the_environment_is_made(tmp_path, name):
    folder = tmp_path / name
    folder.mkdir()
    with pytest.raises(UserError, match="move the project"):
        surroundings.refuse_path(folder)
    done = subprocess.run(
        [sys.executable, "-m", "pipeline.surroundings"],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("name", ["my proj", "it's #1 100%"])
def test_an_environment_in_an_odd_path_runs_by_a_plain_one_with_its_arguments_and_folder(tmp_path, name):
    environment = tmp_path / name / ".venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    code = "import sys, os; print(sys.prefix, os.getcwd(), sys.argv[1:], sep='|')"
    done = run_here(code, str(environment / "bin" / "python"), cwd=tmp_path / name)
    prefix, cwd, _ = done.stdout.strip().split("|")
    assert surroundings.PLAIN.fullmatch(prefix)
    assert Path(prefix).resolve() == environment.resolve()
    assert cwd == str(tmp_path / name)


def test_a_folder_that_this_user_cannot_write_is_refused_with_a_remedy(system_python):
    done = subprocess.run(
        [*as_nobody(system_python), "-m", "pipeline.surroundings"],
        cwd=ROOT.anchor,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "cp -r" in done.stderr


# The temporary folder


@pytest.mark.parametrize("name", ["a" * 60, "a b"])
def test_sockets_of_ray_fit_into_a_long_or_odd_tmpdir_and_files_stay_on_its_disk(tmp_path, name):
    folder = tmp_path / name
    folder.mkdir()
    code = "import tempfile; print(tempfile.gettempdir())"
    for variable in ("TMPDIR", "RAY_TMPDIR"):
        asked = code if variable == "TMPDIR" else "import os; print(os.environ['RAY_TMPDIR'])"
        temp = Path(run_here(asked, **{variable: str(folder)}).stdout.strip())
        assert temp.resolve() == folder.resolve()
        path = temp / "ray/session_2026-11-27_16-41-14_714000_1234567/sockets/plasma_store"
        path.parent.mkdir(parents=True)
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(path))  # fails if the path is too long
        path.unlink()
        path.parent.rmdir()


def test_a_folder_that_ray_tmpdir_names_is_made_or_refused(tmp_path):
    short = Path(f"/tmp/fcn-ray-{os.getpid()}")
    try:
        run_here("pass", RAY_TMPDIR=str(short))
        assert short.is_dir()
    finally:
        short.rmdir()
    file = tmp_path / "file"
    file.touch()
    done = run_here("pass", RAY_TMPDIR=str(file))
    assert done.returncode == 2
    assert f"RAY_TMPDIR={file}" in done.stderr


def test_a_short_tmpdir_stays_as_it_is():
    assert run_here("import tempfile; print(tempfile.gettempdir())", TMPDIR="/tmp").stdout.strip() == "/tmp"


def test_a_folder_for_sockets_that_another_user_has_made_is_refused(monkeypatch):
    monkeypatch.setattr(surroundings, "_temp", lambda: "/tmp")
    monkeypatch.setattr(surroundings.os, "getuid", lambda: 10**9 + int(os.getpid()))
    folder = Path(f"/tmp/fcn-{10**9 + os.getpid()}")
    folder.mkdir()
    try:
        with pytest.raises(UserError, match="belongs to another user"):
            surroundings.own_temp_folder()
    finally:
        folder.rmdir()


# The user


def test_a_user_without_name_and_home_gets_a_name_and_folders_of_its_own(system_python):
    code = (
        "import os, getpass; print(getpass.getuser(), *[os.environ[name] for name in "
        "('RAY_AUTH_TOKEN_PATH', 'XDG_CACHE_HOME', 'MPLCONFIGDIR')], sep='|')"
    )
    done = run_here(
        code, *as_nobody(system_python), cwd=Path("/"), unset=("USER", "LOGNAME", "XDG_CACHE_HOME"), HOME="/"
    )
    name, *folders = done.stdout.strip().split("|")
    assert str(NOBODY) in name
    for folder in map(Path, folders):
        assert folder.parent.stat().st_uid == NOBODY
        assert folder.parent.stat().st_mode & 0o077 == 0


def test_a_user_without_any_home_gets_one(system_python):
    code = "from pathlib import Path; print(Path.home().stat().st_uid)"
    for home in ({}, {"HOME": "/nonexistent"}):
        done = run_here(code, *as_nobody(system_python), cwd=Path("/"), unset=("HOME",), **home)
        assert done.stdout.strip() == str(NOBODY), done.stderr


def test_a_home_of_another_user_is_left_alone(system_python):
    code = "import os; print(os.environ['RAY_AUTH_TOKEN_PATH'])"
    with tempfile.TemporaryDirectory(dir="/tmp") as home:
        Path(home, ".ray").mkdir(mode=0o700)
        Path(home).chmod(0o755)
        done = run_here(code, *as_nobody(system_python), cwd=Path("/"), unset=("TMPDIR",), HOME=home)
    assert str(NOBODY) in done.stdout, done.stderr


def test_a_home_that_can_be_written_is_used(tmp_path):
    done = run_here(
        "import os; print(os.environ['HOME'], 'MPLCONFIGDIR' in os.environ)",
        unset=("MPLCONFIGDIR",),
        HOME=str(tmp_path),
    )
    assert done.stdout.split() == [str(tmp_path), "False"]


# The network


class Hello(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "5")
        self.end_headers()
        self.wfile.write(b"hello")

    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.parametrize("given", [None, "example.org"])
def test_servers_of_this_machine_are_reached_past_a_proxy_of_the_environment(given):
    with HTTPServer(("127.0.0.1", 0), Hello) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/"
        code = (
            "import httpx, os, requests, urllib.request; "
            f"print(urllib.request.urlopen('{url}').read(), requests.get('{url}').text, httpx.get('{url}').text, "
            "os.environ['NO_PROXY'])"
        )
        proxies = {
            name: "http://127.0.0.1:9" for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "all_proxy")
        }
        done = run_here(
            code, unset=("no_proxy", "NO_PROXY"), **proxies, **({"no_proxy": given} if given else {})
        )
        server.shutdown()
    assert done.stdout.count("hello") == 3, done.stderr[-500:]
    assert not given or given in done.stdout


# Limits and locales


def test_the_limit_of_open_files_is_raised_as_far_as_allowed():
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    code = "import resource; print(*resource.getrlimit(resource.RLIMIT_NOFILE))"
    done = run_here(code, "sh", "-c", f'ulimit -Sn 256; exec {sys.executable} "$@"', "sh")
    soft, still = map(int, done.stdout.split())
    assert soft > 256 or hard == 256
    assert still == hard


@pytest.mark.parametrize(
    "locale", [{"LC_ALL": "C"}, {"LC_ALL": "POSIX"}, {"LANG": "C"}, {"PYTHONIOENCODING": "ascii"}]
)
def test_names_of_any_alphabet_are_printed_in_any_locale(locale):
    done = run_here(
        "import sys; print('背景 é'); print('裂缝', file=sys.stderr)", unset=("LC_ALL", "LANG"), **locale
    )
    assert done.returncode == 0, done.stderr
