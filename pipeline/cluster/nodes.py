"""Nodes of a Ray cluster: their settings, their token, and how to start one on this machine.

Anyone who reaches Ray's ports can run programs, so all nodes and clients must have the same token. Ray does not encrypt
it: a firewall must protect the ports. The dashboard with its job server listens on loopback only.
"""

import os
import secrets
import sys
from collections.abc import Sequence
from pathlib import Path

from pipeline.errors import UserError

PORT = 6379
JOB_SERVER = "http://127.0.0.1:8265"  # of a head on this machine, or at this end of a tunnel
ENVIRONMENT = {
    "RAY_AUTH_MODE": "token",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",  # under `uv run`, each worker would get its own environment
    # Metrics would be served on every interface, without the token. An invalid port switches the last two off
    "RAY_enable_metrics_collection": "0",
    "AUTOSCALER_METRIC_PORT": "-1",
    "DASHBOARD_METRIC_PORT": "-1",
}


def cluster_address() -> str | None:
    """Return RAY_ADDRESS, or None if work runs on a cluster of this machine alone."""
    return os.environ.get("RAY_ADDRESS") or None


def start_head(port: int, options: Sequence[str]) -> None:
    """Replace this process with the head of a new cluster, which runs until Ctrl-C.

    port: where other nodes join.
    options: further options of `ray start`.
    """
    token = ensure_token()
    print(
        f"token: {token} (it allows to run programs here; copy it to each node and client, with mode 600)\n"
        f"another node:          fcn cluster join THIS_HOST:{port}\n"
        "a job, from this host: fcn cluster submit --folder FOLDER\n"
        "from elsewhere:        ssh -L 8265:127.0.0.1:8265 THIS_HOST, then the same there",
        flush=True,
    )
    _exec_ray(["--head", f"--port={port}", "--dashboard-host=127.0.0.1", *options], token)


def join(address: str, options: Sequence[str]) -> None:
    """Replace this process with a node of a cluster, which runs until Ctrl-C.

    address: HOST:PORT of the cluster's head.
    options: further options of `ray start`.
    """
    require_token()
    _exec_ray([f"--address={address}", *options], token_file())


def token_file() -> Path:
    """Return where Ray looks for the token."""
    path = os.environ.get("RAY_AUTH_TOKEN_PATH")
    return Path(path).expanduser() if path else Path.home() / ".ray" / "auth_token"


def ensure_token() -> Path:
    """Return the token's file; create it if it is missing.

    Only its owner can read it, unlike a file that Ray creates.
    """
    path = token_file()
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        if path.stat().st_mode & 0o077:
            path.chmod(0o600)
        return path
    with os.fdopen(descriptor, "w") as file:
        file.write(secrets.token_hex(32))
    return path


def require_token() -> None:
    """Raise UserError if this machine has no token. Ray would crash without it."""
    if os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_MODE") == "disabled":
        return
    path = token_file()
    try:
        is_present = bool(path.read_text("utf-8").strip())
    except OSError:
        is_present = False
    if not is_present:
        raise UserError(
            f"the cluster's token is missing from {path}: copy the file ~/.ray/auth_token of the cluster's head there, "
            "with mode 600, or name yours in RAY_AUTH_TOKEN_PATH"
        )


def _exec_ray(arguments: Sequence[str], token: Path) -> None:
    bin = Path(sys.executable).parent  # first on the PATH, so that jobs run this environment's `python`
    environment = os.environ | ENVIRONMENT | {"PATH": f"{bin}{os.pathsep}{os.environ.get('PATH', '')}"}
    if "RAY_AUTH_TOKEN" not in environment:
        environment["RAY_AUTH_TOKEN_PATH"] = str(token)
    sys.stdout.flush()
    os.execve(bin / "ray", ["ray", "start", "--block", *arguments], environment)
