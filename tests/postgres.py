"""A real PostgreSQL in a temporary folder, on a socket and a port of loopback."""

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

PASSWORD = "p@ss/w0rd-of-the-test"
QUOTED = "p%40ss%2Fw0rd-of-the-test"


def _bin() -> Path | None:
    """Where initdb and pg_ctl are: Debian keeps them off the PATH."""
    if found := shutil.which("initdb"):
        return Path(found).parent
    versions = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    return versions[-1].parent if versions else None


BIN = _bin()
needs_postgres = pytest.mark.skipif(BIN is None, reason="PostgreSQL is not installed (.ci/run does it)")


@contextmanager
def postgres() -> Iterator[str]:
    """Yield the URI of an empty database, with user and password."""
    assert BIN is not None
    # Not below pytest's folder, which another user may not enter: PostgreSQL refuses to run as root
    with tempfile.TemporaryDirectory(prefix="pg-", dir="/tmp") as name:
        folder, user = Path(name), []
        if os.geteuid() == 0:
            user = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"]
            shutil.chown(folder, "postgres", "postgres")
        (folder / "password").write_text(PASSWORD)
        (folder / "password").chmod(0o644)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]

        def run(*command: str) -> None:
            done = subprocess.run([*user, *command], cwd=folder, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stdout + done.stderr

        data, log = str(folder / "data"), str(folder / "log")
        initdb = [str(BIN / "initdb"), "-D", data, "-U", "fcn", "-A", "scram-sha-256", "--no-sync"]
        run(*initdb, f"--pwfile={folder / 'password'}")
        options = f"-c listen_addresses=127.0.0.1 -p {port} -k {folder} -c fsync=off"
        # Its output into a file: the server inherits the pipe, which would never end
        run("sh", "-c", f"exec {BIN / 'pg_ctl'} -D {data} -l {log} -o '{options}' -w start >/dev/null 2>&1")
        try:
            yield f"postgresql+psycopg2://fcn:{QUOTED}@127.0.0.1:{port}/postgres"
        finally:
            run(str(BIN / "pg_ctl"), "-D", data, "-m", "immediate", "-w", "stop")
