"""The surroundings of a process: user, home, paths, proxies and limits; adapted, or refused in one sentence.

Each stage and command runs by `run_command`. `make setup` runs this file before there is an environment, so it needs
the standard library alone.
"""

import io
import os
import pwd
import re
import resource
import shlex
import sys
import tempfile
from collections.abc import Callable, Mapping
from hashlib import sha256
from pathlib import Path
from unicodedata import category

from pipeline.errors import UserError, exit_cleanly

# Ray adds /ray/session_<date>_<time>_<process>/sockets/plasma_store, and a socket's path has 107 bytes at most
MAX_TEMP_BYTES = 39
SHORT_TEMP = ("/tmp", "/var/tmp")
PLAIN = re.compile(r"[A-Za-z0-9_./+@=,-]*")
LOOPBACK = ("localhost", "127.0.0.1", "::1")
OPEN_FILES = 65536  # as many as Ray asks for


def adapt() -> None:
    """Adapt this process and its children to what they find; start it again if the environment's path is not plain.

    Raises UserError if something cannot work here.
    """
    _name_user()
    _shorten_temp()
    _give_home()
    _spare_loopback_the_proxy()
    _allow_open_files()
    for stream in (sys.stdout, sys.stderr):  # a name may have letters that the terminal's encoding lacks
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    _restart_in_plain_environment()


def refuse_path(project: Path) -> None:
    """Raise UserError if the path of the project has characters with which the packages cannot work."""
    text = str(project)
    # PATH takes no colon, DVC's progress lines no braces, and scripts of the environment no ends of lines
    wrong = sorted({ascii(each) for each in text if each in ":{}" or category(each) in ("Cc", "Cs")})
    if "'" in text and '"' in text:  # MLflow would write SQL that is not valid
        wrong += ["both kinds of quotes"]
    if wrong:
        raise UserError(
            f"the project's path {text!a} has {', '.join(wrong)}, with which PATH, DVC or MLflow do not work; "
            "move the project to another folder (spaces and letters of any alphabet are fine)"
        )


def refuse_read_only(project: Path) -> None:
    """Raise UserError if the project's folder cannot be written."""
    if not os.access(project, os.W_OK):
        raise UserError(
            f"{project} cannot be written by user {os.getuid()}, and the environment, DVC's records and all results "
            "are kept in it; copy the project to a folder of yours: "
            f"git clone {shlex.quote(str(project))} fcn, or cp -r"
        )


def own_temp_folder() -> Path:
    """Return a folder for this user's sockets and links: its path is short and plain, and no other user can write it.

    Raises UserError if there is none.
    """
    temp = Path(_temp())
    base = temp if _is_short(temp) else _short_temp(temp)
    folder = base / f"fcn-{os.getuid()}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        owner = folder.lstat().st_uid
    except OSError as error:
        raise UserError(
            f"{folder} cannot be made: {error.strerror}; set TMPDIR to a folder of your own"
        ) from None
    if owner != os.getuid():
        raise UserError(f"{folder} belongs to another user; set TMPDIR to a folder of your own")
    return folder


def plain(path: Path) -> Path:
    """Return a path to the same folder that shells, URLs and programs take as it is: itself, or a link to it."""
    if PLAIN.fullmatch(str(path)):
        return path
    return _link(path)


def _link(path: Path) -> Path:
    link = own_temp_folder() / sha256(os.fsencode(path)).hexdigest()[:8]
    if not (link.is_symlink() and link.readlink() == path):
        new = link.with_name(f"{link.name}.{os.getpid()}")
        new.symlink_to(path)
        new.replace(link)
    return link


def _temp() -> str:
    try:
        return tempfile.gettempdir()
    except FileNotFoundError as error:
        raise UserError(
            f"no temporary folder can be written ({error.strerror}): make room in /tmp, or set TMPDIR to a folder with "
            "some GB of room"
        ) from None


def _is_short(temp: Path) -> bool:
    return len(os.fsencode(temp)) <= MAX_TEMP_BYTES and bool(PLAIN.fullmatch(str(temp)))


def _short_temp(temp: Path) -> Path:
    for path in map(Path, SHORT_TEMP):
        if path.is_dir() and os.access(path, os.W_OK):
            return path
    raise UserError(
        f"TMPDIR={temp} is too long for the paths of sockets, and {' and '.join(SHORT_TEMP)} cannot be written; set "
        f"TMPDIR to a folder whose path has at most {MAX_TEMP_BYTES} bytes, of plain letters"
    )


def _shorten_temp() -> None:
    """Reach the temporary folder through a link where its path is too long for sockets, as Slurm's often are.

    Makes the folder that RAY_TMPDIR names.
    """
    if not _is_short(Path(_temp())):
        os.environ["TMPDIR"] = str(_link(Path(_temp())))
        tempfile.tempdir = None  # to be read again
    ray = os.environ.get("RAY_TMPDIR")
    if not ray:
        return
    try:
        Path(ray).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"RAY_TMPDIR={ray} cannot be made ({error.strerror}); set it to a folder that this user can write"
        ) from None
    if not _is_short(Path(ray)):
        os.environ["RAY_TMPDIR"] = str(_link(Path(ray).absolute()))


def _name_user() -> None:
    """Name a user whom the system does not know, such as a container's; many packages ask for the name."""
    try:
        pwd.getpwuid(os.getuid())
    except KeyError:
        for name in ("USER", "LOGNAME"):
            if not os.environ.get(name):
                os.environ[name] = f"uid{os.getuid()}"


def _give_home() -> None:
    """Keep caches and the token of Ray elsewhere if the user's home is missing or cannot be written."""
    home = os.path.expanduser("~")
    if os.path.isdir(home) and os.access(home, os.W_OK | os.X_OK):
        return
    folder = own_temp_folder()
    if not os.path.isdir(home):
        os.environ["HOME"] = str(folder)
    elif not os.access(os.path.join(home, ".ray", "auth_token"), os.R_OK):
        os.environ.setdefault("RAY_AUTH_TOKEN_PATH", str(folder / "auth_token"))
    for name, below in (("XDG_CACHE_HOME", "cache"), ("MPLCONFIGDIR", "matplotlib")):
        if name not in os.environ:
            (folder / below).mkdir(exist_ok=True)
            os.environ[name] = str(folder / below)


def _spare_loopback_the_proxy() -> None:
    """Reach this machine's own servers directly where the environment names a proxy."""
    if not any(name.lower().endswith("_proxy") for name in os.environ):
        return
    from urllib.request import getproxies_environment  # takes longer than the rest of a start

    proxies = getproxies_environment()
    if set(proxies) <= {"no"}:
        return
    spared = [host.strip() for host in proxies.get("no", "").split(",") if host.strip()]
    if "*" not in spared:
        hosts = ",".join(dict.fromkeys([*spared, *LOOPBACK]))
        os.environ["NO_PROXY"] = os.environ["no_proxy"] = hosts


def _allow_open_files() -> None:
    """Raise the limit of open files as far as this user may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def _restart_in_plain_environment() -> None:
    """Run this command by the Python of a link to its environment, if the environment's own path is not plain.

    Ray starts workers by lines for bash in which the path is not quoted, and MLflow writes it into a file of settings.
    """
    prefix, num_given = Path(sys.prefix), len(sys.argv) - 1
    tail = sys.orig_argv[len(sys.orig_argv) - num_given :]
    if (
        PLAIN.fullmatch(str(prefix)) or tail != sys.argv[1:]
    ):  # or this command runs within another, as in a test
        return
    python = plain(prefix) / "bin" / Path(sys.executable).name
    os.execve(python, [str(python), *sys.orig_argv[1:]], os.environ)


def run_command(command: Callable[[], object]) -> None:
    """Adapt this process, run a stage or command in it, and end it as `exit_cleanly` does."""

    def run() -> None:
        adapt()
        command()

    exit_cleanly(run)


def mlflow_settings() -> dict[str, str]:
    """Return the environment's settings of MLflow; a cluster's processes have the environment of their node."""
    return {name: value for name, value in os.environ.items() if name.startswith("MLFLOW_")}


def enter_project(root: Path, settings: Mapping[str, str]) -> None:
    """Let a process of a cluster work in the project's folder, with the settings that `mlflow_settings` gave."""
    os.environ.update(settings)
    os.chdir(root)  # a profile may name files relative to it


def check_project() -> None:
    """Raise UserError if the environment and results cannot be in the current folder."""
    refuse_path(Path.cwd())
    refuse_read_only(Path.cwd())


if __name__ == "__main__":
    run_command(check_project)
