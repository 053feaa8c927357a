"""Nodes of a Ray cluster: their settings and their token; start.py starts one on this machine.

Anyone who reaches Ray's ports can run programs, so all nodes and clients must have the same token. Ray does not encrypt
it: a firewall must protect the ports. The dashboard with its job server listens on loopback only.
"""

import os
import re
import secrets
import socket
import tempfile
from contextlib import suppress
from pathlib import Path

from pipeline.errors import UserError

PORT = 6379  # of the head, where other nodes join
JOB_PORT = 8265  # of its job server
JOB_SERVER = f"http://127.0.0.1:{JOB_PORT}"  # of a head on this machine, or at this end of a tunnel
CONNECT_TIMEOUT_S = 10.0
TOKEN_REMEDY = (
    "copy the file ~/.ray/auth_token of the cluster's head there, with mode 600, or name yours in "
    "RAY_AUTH_TOKEN_PATH"
)
SEPARATIONS = (  # Ray's words, on the node and on the head
    "GCS consider this node to be dead",
    "marked as dead by the GCS",
    "has been marked dead because the detector has missed too many heartbeats",
    "gcs_placement_group_scheduler.cc",  # cannot take back what a lost node held
    "Raylet is terminated",  # for a reason that only the node itself knows, and tells there
)
# glibc returns freed tensors above 32 MiB to the system, and from threads, as a worker's, also smaller ones. Clearing
# their pages for the next ones takes 10 to 20% of a CPU step
MALLOC = {
    "MALLOC_MMAP_THRESHOLD_": str(2**30),
    "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1),
    "MALLOC_ARENA_MAX": "1",
}
EVERYWHERE = MALLOC | {
    "RAY_AUTH_MODE": "token",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",  # under `uv run`, each worker would get its own environment
    "RAY_enable_metrics_collection": "0",  # metrics would be served on every interface, without the token
    "TORCH_CPP_LOG_LEVEL": "ERROR",  # else workers warn of nameless addresses and gradients.py's option
}
ENVIRONMENT = EVERYWHERE | {  # of a node
    "RAY_worker_register_timeout_seconds": "300",  # to start workers on a busy machine; default 60
    "AUTOSCALER_METRIC_PORT": "-1",  # metrics as well; an invalid port switches them off
    "DASHBOARD_METRIC_PORT": "-1",
}
CLIENT = EVERYWHERE | {  # of a process that connects to them, such as a driver
    "RAY_DEDUP_LOGS": "0",  # else lines that differ in their numbers alone are dropped
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",  # else every line of a worker is shown twice
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # delay at the end of a run; default 2
    "RAY_gcs_server_port_wait_time_s": "120",  # to start on a busy machine; default 20
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "300",  # the same for workers; default 60
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # the coming default, which Ray warns about
}


def cluster_address() -> str | None:
    """Return RAY_ADDRESS, or None if work runs on a cluster of this machine alone."""
    return os.environ.get("RAY_ADDRESS") or None


def reach(address: str) -> None:
    """Connect to HOST:PORT and hang up. Raises OSError if nothing listens there."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_TIMEOUT_S).close()
    except (OverflowError, ValueError) as error:
        raise OSError(f"not HOST:PORT: {error}") from None


def unknown_errors(words: str) -> list[str]:
    """Return the errors among Ray's words, but for those of a head and a node that gave each other up."""
    errors = re.findall(r"^.* [CE] \d+ \d+\] .*$", words, re.MULTILINE)
    return [error for error in errors if not any(each in error for each in SEPARATIONS)]


def token_file() -> Path:
    """Return where Ray looks for the token."""
    path = os.environ.get("RAY_AUTH_TOKEN_PATH")
    return Path(path).expanduser() if path else Path.home() / ".ray" / "auth_token"


def ensure_token() -> Path:
    """Return the token's file; create it if it is missing or empty.

    Only its owner can read it, unlike a file that Ray creates. A file of another user, as a team's, stays as it is.

    Raises UserError if it cannot be created.
    """
    path = token_file()
    if _has_token(path):
        status = path.stat()
        if status.st_mode & 0o077 and status.st_uid == os.geteuid():
            path.chmod(0o600)
        return path
    try:
        return _make_token(path)
    except OSError as error:
        raise UserError(
            f"the token of this machine's cluster cannot be written to {path}: {error.strerror}; name a file of yours "
            "in RAY_AUTH_TOKEN_PATH"
        ) from None


def _make_token(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    # The file gets its name when it is whole. A link, unlike a renamed file, never replaces another process's token
    with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=f"{path.name}.") as file:  # of mode 600
        file.write(secrets.token_hex(32))
        file.flush()
        with suppress(FileExistsError):
            os.link(file.name, path)
    return path


def require_token() -> None:
    """Raise UserError if this machine has no token. Ray would crash without it."""
    if os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_MODE") == "disabled":
        return
    path = token_file()
    if not _has_token(path):
        raise UserError(f"the cluster's token is missing from {path}: {TOKEN_REMEDY}")


def _has_token(path: Path) -> bool:
    try:
        return bool(path.read_text("utf-8").strip())
    except (OSError, UnicodeDecodeError):
        return False
