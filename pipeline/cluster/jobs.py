"""The pipeline as a job of a Ray cluster, from a checkout on any machine that reaches the cluster's job server."""

import asyncio
import ipaddress
import os
import shlex
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

# Token authentication unless somebody has chosen otherwise
os.environ.setdefault("RAY_AUTH_MODE", "token")

import ray
from aiohttp import ClientError
from ray.exceptions import AuthenticationError
from ray.job_submission import JobStatus, JobSubmissionClient

from pipeline import config, git
from pipeline.cluster import nodes
from pipeline.errors import UserError

TIMEOUT_S = 10.0  # for the job server's first answer
MAX_UPLOAD_MB = 100  # code is under 2; more is data that git should ignore
PATIENCE_S = 120.0  # with a job server that went away while a log was followed
STOP_WAIT_S = 60  # between SIGTERM and SIGKILL: enough to write a checkpoint
FOLDER = "fcn_folder"  # metadata of a job


def connect(address: str) -> JobSubmissionClient:
    """The cluster's job server. UserError if there is none, or it must not be trusted with a job."""
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):  # they would override the address
        os.environ.pop(name, None)
    if urlsplit(address).scheme not in ("http", "https"):
        raise UserError(
            f"{address!r} is no address of a job server, such as {nodes.JOB_SERVER} or https://ray.example.org"
        )
    _refuse_open_road(address)
    _refuse_open_door(address)
    nodes.require_token()
    try:
        client = JobSubmissionClient(address)
    except AuthenticationError:
        raise UserError(
            f"{address} refuses the token in {nodes.token_file()}: copy the file ~/.ray/auth_token of the cluster's "
            "head there, with mode 600, or name yours in RAY_AUTH_TOKEN_PATH"
        ) from None
    if client._server_ray_version != ray.__version__:
        raise UserError(
            f"{address} runs Ray {client._server_ray_version}, this checkout {ray.__version__}: give the cluster's "
            "nodes the packages of requirements.lock"
        )
    return client


def submit(client: JobSubmissionClient, folder: str, nets: Sequence[str], root: Path) -> str:
    """Starts `dvc repro` with the code of the checkout `root`, in `folder`; the job's id.

    folder: absolute, on storage that all nodes share, where data and results stay; see workspace.py.
    nets: of config.CHAIN, what to train and score with all they need; empty for the whole pipeline.
    """
    folder = str(PurePosixPath(folder))
    if not folder.startswith("/") or ".." in folder.split("/"):
        raise UserError(
            f"--folder must be an absolute path, since it is on the cluster's nodes; got {folder!r}"
        )
    config.load(root)  # a mistake shows here rather than in a queue
    for job in client.list_jobs():
        if (job.metadata or {}).get(FOLDER) == folder and not JobStatus(job.status).is_terminal():
            name = job.submission_id
            raise UserError(
                f"job {name} is at work in {folder}; watch it: fcn cluster follow {name}, "
                f"or end it: fcn cluster stop {name}"
            )
    with tempfile.TemporaryDirectory() as scratch:
        package = Path(scratch, "code.zip")
        pack(root, package)
        return client.submit_job(
            entrypoint=shlex.join(["python", "-m", "pipeline.cluster.job_main", folder, *nets]),
            runtime_env={"working_dir": str(package), "env_vars": environment(root)},
            metadata={FOLDER: folder},
        )


def pack(root: Path, dest: Path) -> None:
    """Writes a zip of the checkout's files that git tracks or would track: the code without data, models and .git.

    The same files give the same bytes, which Ray recognises and does not send again.
    """
    listing = ["git", "-C", str(root), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(listing, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        raise UserError(
            f"{root.resolve()} is no git checkout; git says what is code and what is data"
        ) from None
    names = sorted({name for name in listed.split("\0") if name and (root / name).is_file()})
    sizes = {name: (root / name).stat().st_size for name in names}
    if sum(sizes.values()) > MAX_UPLOAD_MB * 2**20:
        largest = sorted(names, key=lambda name: -sizes[name])[:3]
        raise UserError(
            f"the checkout's files come to {sum(sizes.values()) >> 20} MiB, and {MAX_UPLOAD_MB} at most go to a "
            f"cluster: add data to .gitignore; the largest are {', '.join(largest)}"
        )
    with zipfile.ZipFile(dest, "w", zipfile.ZIP_DEFLATED) as package:
        for name in names:
            package.writestr(zipfile.ZipInfo(name), (root / name).read_bytes(), zipfile.ZIP_DEFLATED)


def environment(root: Path) -> dict[str, str]:
    """The variables of the job. Ray shows them to everybody who sees its dashboard, so no secret is among them."""
    found = git.find_commit(root)
    variables = {
        "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
        "RAY_JOB_STOP_WAIT_TIME_S": str(STOP_WAIT_S),
        "RAY_AUTH_MODE": os.environ["RAY_AUTH_MODE"],
    } | (found.environment() if found else {})
    tracking = urlsplit(os.environ.get("MLFLOW_TRACKING_URI", ""))
    if tracking.scheme in ("http", "https"):  # a database's path is one of this machine
        if "@" in tracking.netloc:
            raise UserError(
                "MLFLOW_TRACKING_URI holds a password, and Ray shows a job's variables to everybody: set "
                "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD on the cluster's nodes instead"
            )
        variables["MLFLOW_TRACKING_URI"] = tracking.geturl()
    return variables


def follow(client: JobSubmissionClient, job: str) -> bool:
    """Shows a job's log from its beginning until it has ended; whether it succeeded. Ctrl-C leaves the job alone."""
    shown, last_seen = 0, time.monotonic()
    while True:
        try:
            shown = asyncio.run(_show_log(client, job, shown))
            status = client.get_job_status(job)
            last_seen = time.monotonic()
            if status.is_terminal():
                print(f"job {job}: {status.lower()}", flush=True)
                return status == JobStatus.SUCCEEDED
        except OSError as error:  # of requests: the network, a tunnel, or the head is away
            if time.monotonic() - last_seen > PATIENCE_S:
                raise UserError(
                    f"job {job} is out of sight ({error}), it may well go on: fcn cluster follow {job}"
                ) from None
        except RuntimeError as error:
            raise UserError(f"job {job}: {error}") from None
        time.sleep(1)


def stop(client: JobSubmissionClient, job: str) -> None:
    """Ends a job, giving its workers time for a checkpoint; submitted again, it goes on from there."""
    try:
        client.stop_job(job)
        while not client.get_job_status(job).is_terminal():
            time.sleep(1)
    except RuntimeError as error:
        raise UserError(f"job {job}: {error}") from None


async def _show_log(client: JobSubmissionClient, job: str, shown: int) -> int:
    """Prints what follows the first `shown` characters, until the connection ends; the number of them then."""
    seen = 0
    try:
        async for text in client.tail_job_logs(job):
            fresh = text[max(shown - seen, 0) :]
            print(fresh, end="", flush=True)
            seen += len(text)
            shown = max(shown, seen)
    except (ClientError, OSError, RuntimeError):
        pass  # the caller finds out what became of the job
    return shown


def _refuse_open_road(address: str) -> None:
    """UserError for a plain connection over the internet, where anybody on the way could read the token."""
    parts = urlsplit(address)
    try:
        found = socket.getaddrinfo(parts.hostname, parts.port or 80, type=socket.SOCK_STREAM)
    except OSError as error:
        raise UserError(f"{address}: no such host ({error.strerror})") from None
    is_public = any(ipaddress.ip_address(one[4][0]).is_global for one in found)
    if parts.scheme == "http" and is_public:
        raise UserError(
            f"{address} is on the internet and not encrypted: keep the job server off it, and go through a tunnel "
            f"(ssh -L 8265:127.0.0.1:8265 {parts.hostname}) to {nodes.JOB_SERVER}"
        )


def _refuse_open_door(address: str) -> None:
    """UserError if nobody answers, or if anybody who reaches the job server may run programs there."""
    try:
        urllib.request.urlopen(f"{address.rstrip('/')}/api/jobs/", timeout=TIMEOUT_S).close()
    except urllib.error.HTTPError as error:
        if error.code in (401, 403):
            return
        raise UserError(f"{address} is no job server of Ray's: it answers {error.code}") from None
    except OSError as error:
        raise UserError(
            f"no job server answers at {address} ({getattr(error, 'reason', error)}): start a cluster with `fcn "
            "cluster head`, or bring one's here (ssh -L 8265:127.0.0.1:8265 HEAD, or kubectl port-forward "
            "service/NAME 8265)"
        ) from None
    if os.environ["RAY_AUTH_MODE"] == "token":
        raise UserError(
            f"{address} answers without a token, so whoever reaches it can run programs on that cluster: start it with "
            "RAY_AUTH_MODE=token on every node (as `fcn cluster head` does), or set RAY_AUTH_MODE=disabled here to "
            "use it as it is"
        )
