"""Starts a node of a Ray cluster on this machine, for those whose cluster nobody else starts.

Ray takes whoever reaches its ports for its owner, so every node and client must show the same token. It is not
encrypted: the ports belong behind a firewall, and the dashboard, with the job server, answers this machine alone.
"""

import os
import secrets
import sys
from collections.abc import Sequence
from pathlib import Path

from pipeline.errors import UserError

PORT = 6379
JOB_SERVER = "http://127.0.0.1:8265"  # here, or at this end of a tunnel
ENVIRONMENT = {
    "RAY_AUTH_MODE": "token",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    # Metrics would be served on every interface, without the token; a port that cannot be is how to say no
    "RAY_enable_metrics_collection": "0",
    "AUTOSCALER_METRIC_PORT": "-1",
    "DASHBOARD_METRIC_PORT": "-1",
}


def start_head(port: int, options: Sequence[str]) -> None:
    """Becomes the head of a new cluster, until Ctrl-C. options: more of `ray start`."""
    token = ensure_token()
    print(
        f"token: {token} (whoever has it can run programs here; copy it to each node and client, with mode 600)\n"
        f"another node:          fcn cluster join THIS_HOST:{port}\n"
        "a job, from this host: fcn cluster submit --folder FOLDER\n"
        "from elsewhere:        ssh -L 8265:127.0.0.1:8265 THIS_HOST, then the same there",
        flush=True,
    )
    _become_ray(["--head", f"--port={port}", "--dashboard-host=127.0.0.1", *options], token)


def join(address: str, options: Sequence[str]) -> None:
    """Becomes a node of the cluster whose head is at HOST:PORT, until Ctrl-C."""
    require_token()
    _become_ray([f"--address={address}", *options], token_file())


def token_file() -> Path:
    """Where Ray looks for the token."""
    given = os.environ.get("RAY_AUTH_TOKEN_PATH")
    return Path(given).expanduser() if given else Path.home() / ".ray" / "auth_token"


def ensure_token() -> Path:
    """The token's file, made if there is none; for its owner's eyes only, which Ray's own is not."""
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
    """UserError if there is no token to show to a cluster, which ends Ray's own code with a crash."""
    path = token_file()
    if os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_MODE") == "disabled":
        return
    try:
        is_there = bool(path.read_text("utf-8").strip())
    except OSError:
        is_there = False
    if not is_there:
        raise UserError(
            f"the cluster's token is missing from {path}: copy the file ~/.ray/auth_token of the cluster's head there, "
            "with mode 600, or name yours in RAY_AUTH_TOKEN_PATH"
        )


def _become_ray(arguments: Sequence[str], token: Path) -> None:
    bin = Path(sys.executable).parent  # jobs find this environment's `python`
    environment = os.environ | ENVIRONMENT | {"PATH": f"{bin}{os.pathsep}{os.environ.get('PATH', '')}"}
    if "RAY_AUTH_TOKEN" not in environment:
        environment["RAY_AUTH_TOKEN_PATH"] = str(token)
    sys.stdout.flush()
    os.execve(bin / "ray", ["ray", "start", "--block", *arguments], environment)
