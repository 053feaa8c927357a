"""Jobs: runs of the pipeline on a Ray cluster, from a checkout on any machine that reaches the cluster's job server."""

import asyncio
import http.client
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
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

os.environ.setdefault("RAY_AUTH_MODE", "token")  # Ray reads it when it is imported

import ray
from aiohttp import ClientError
from ray.exceptions import AuthenticationError
from ray.job_submission import JobStatus, JobSubmissionClient

from pipeline import config, files, git
from pipeline.cluster import nodes
from pipeline.errors import UserError

TIMEOUT_S = 10.0  # for the job server's first answer
MAX_UPLOAD_MB = 100  # the code is under 2; more is data that git should ignore
PATIENCE_S = 120.0  # with a job server that goes away while a log is followed
STOP_WAIT_S = 60  # between SIGTERM and SIGKILL: enough to write a checkpoint
FOLDER = "fcn_folder"  # key in a job's metadata


def connect(address: str) -> JobSubmissionClient:
    """Return a client of a job server.

    address: its http or https URL.

    Raises UserError if there is no job server, if it runs anyone's programs, or if the way to it is not safe.
    """
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):  # Ray prefers them to the address
        os.environ.pop(name, None)
    if not _is_url(address):
        raise UserError(
            f"expected the URL of a job server, such as {nodes.JOB_SERVER} or https://ray.example.org, got {address!r}"
        )
    _refuse_unencrypted(address)
    _refuse_unprotected(address)
    nodes.require_token()
    with _requests(address):
        client = JobSubmissionClient(address)
    if client._server_ray_version != ray.__version__:
        raise UserError(
            f"{address} runs Ray {client._server_ray_version}, this checkout {ray.__version__}: give the cluster's "
            "nodes the packages of requirements.lock"
        )
    return client


def submit(client: JobSubmissionClient, folder: str, nets: Sequence[str], root: Path) -> str:
    """Start `dvc repro` with the code of a checkout, and return the job's id.

    folder: absolute path on storage that all nodes share, where data and results stay; see job_main.py.
    nets: of config.CHAIN, to train and evaluate with all they need. Empty: the whole pipeline.
    root: the checkout.
    """
    folder = str(PurePosixPath(folder))
    if not folder.startswith("/") or ".." in folder.split("/"):
        raise UserError(
            f"--folder must be an absolute path, since it is on the cluster's nodes; got {folder!r}"
        )
    config.load(root)  # raises here rather than in the job
    with _requests("the list of jobs"):
        jobs = client.list_jobs()
    for job in jobs:
        if (job.metadata or {}).get(FOLDER) == folder and not JobStatus(job.status).is_terminal():
            raise UserError(
                f"job {job.submission_id} runs in {folder}; watch it: fcn cluster follow {job.submission_id}, or end "
                f"it: fcn cluster stop {job.submission_id}"
            )
    with tempfile.TemporaryDirectory() as scratch:
        package = Path(scratch, "code.zip")
        pack(root, package)
        with _requests("the new job"):
            return client.submit_job(
                entrypoint=shlex.join(["python", "-m", "pipeline.cluster.job_main", folder, *nets]),
                runtime_env={"working_dir": str(package), "env_vars": environment(root)},
                metadata={FOLDER: folder},
            )


def pack(root: Path, dest: Path) -> None:
    """Write a zip of the files that git tracks or would track: the code without data, models and history.

    The same files give the same bytes, which Ray recognises and does not send again.
    """
    command = ["git", "-C", str(root), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        listing = os.fsdecode(subprocess.run(command, capture_output=True, check=True).stdout)
    except (OSError, subprocess.CalledProcessError):
        raise UserError(
            f"{root.resolve()} is not a git checkout, and git decides which files are code"
        ) from None
    names = sorted({name for name in listing.split("\0") if name and (root / name).is_file()})
    if odd := [ascii(name) for name in names if not name.isprintable()]:
        raise UserError(
            f"names of files are not UTF-8, or have line ends: {files.and_more(odd)}; rename them, or add them to "
            ".gitignore"
        )
    sizes = {name: (root / name).stat().st_size for name in names}
    if sum(sizes.values()) > MAX_UPLOAD_MB * 2**20:
        largest = sorted(names, key=lambda name: -sizes[name])[:3]
        raise UserError(
            f"the checkout's files come to {sum(sizes.values()) >> 20} MiB, and at most {MAX_UPLOAD_MB} go to a "
            f"cluster: add data to .gitignore; the largest are {', '.join(largest)}"
        )
    with zipfile.ZipFile(dest, "w", zipfile.ZIP_DEFLATED) as package:
        for name in names:
            package.writestr(zipfile.ZipInfo(name), (root / name).read_bytes(), zipfile.ZIP_DEFLATED)


def environment(root: Path) -> dict[str, str]:
    """Return the environment variables of a job. Ray's dashboard shows them, so they contain no secret."""
    commit = git.find_commit(root)
    variables = {
        "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
        "RAY_JOB_STOP_WAIT_TIME_S": str(STOP_WAIT_S),
        "RAY_AUTH_MODE": os.environ["RAY_AUTH_MODE"],
    } | (commit.environment() if commit else {})
    tracking = urlsplit(os.environ.get("MLFLOW_TRACKING_URI", ""))
    if tracking.scheme in ("http", "https"):  # the path of a database is valid on this machine only
        if "@" in tracking.netloc:
            raise UserError(
                "MLFLOW_TRACKING_URI contains a password, and Ray's dashboard shows a job's variables: set "
                "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD on the cluster's nodes instead"
            )
        variables["MLFLOW_TRACKING_URI"] = tracking.geturl()
    return variables


def follow(client: JobSubmissionClient, job: str) -> bool:
    """Print a job's log from its beginning until the job ends, and return whether it succeeded."""
    num_printed, last_seen, is_lost = 0, time.monotonic(), False
    while True:
        try:
            with _requests(f"job {job}"):
                num_printed = asyncio.run(_print_log(client, job, num_printed))
                status = client.get_job_status(job)
        except NoAnswerError as error:  # the network, a tunnel or the head is down
            if not is_lost:
                print(f"the job server does not answer; trying for {PATIENCE_S:.0f} s", flush=True)
            is_lost = True
            if time.monotonic() - last_seen > PATIENCE_S:
                raise UserError(
                    f"{error}. If the network or a tunnel broke, the job goes on: fcn cluster follow {job}. If the "
                    "head is gone, start it (fcn cluster head; nodes join it by themselves) and submit the job again: "
                    "it goes on from its last checkpoint"
                ) from None
        else:
            last_seen, is_lost = time.monotonic(), False
            if status.is_terminal():
                print(f"job {job}: {status.lower()}", flush=True)
                return status == JobStatus.SUCCEEDED
        time.sleep(1)


async def _print_log(client: JobSubmissionClient, job: str, num_printed: int) -> int:
    """Print what follows the first num_printed characters until the connection ends, and return the new number."""
    num_read = 0
    try:
        async for text in client.tail_job_logs(job):
            print(text[max(num_printed - num_read, 0) :], end="", flush=True)
            num_read += len(text)
            num_printed = max(num_printed, num_read)
    except (ClientError, OSError, RuntimeError):
        pass  # the caller looks at the job's status
    return num_printed


def stop(client: JobSubmissionClient, job: str) -> None:
    """End a job, with time for its workers to write a checkpoint, from which it continues when submitted again."""
    with _requests(f"job {job}"):
        client.stop_job(job)
        deadline = time.monotonic() + STOP_WAIT_S + PATIENCE_S
        while not client.get_job_status(job).is_terminal():
            if time.monotonic() > deadline:
                raise UserError(
                    f"job {job} still runs {STOP_WAIT_S + PATIENCE_S:.0f} s after it was to end; see that its node "
                    f"answers: fcn cluster follow {job}"
                )
            time.sleep(1)


class NoAnswerError(UserError):
    """The job server cannot be reached."""


@contextmanager
def _requests(what: str) -> Iterator[None]:
    """Raise UserError where a request to the job server fails; NoAnswerError if a repetition may succeed.

    what: is asked for, such as "job raysubmit_1", for the message.
    """
    try:
        yield
    except AuthenticationError:
        raise UserError(
            f"{what}: the job server refuses the token in {nodes.token_file()}: {nodes.TOKEN_REMEDY}"
        ) from None
    except OSError as error:  # requests' errors among them
        raise NoAnswerError(f"{what}: the job server does not answer ({type(error).__name__})") from None
    except RuntimeError as error:  # Ray's word for any other status of HTTP
        if "does not exist" in str(error):
            raise UserError(
                f"the cluster has no {what}; if its head was restarted, submit the job again: training resumes from "
                "its last checkpoint"
            ) from None
        raise UserError(f"{what}: {error}") from None


def _is_url(address: str) -> bool:
    try:
        parts = urlsplit(address)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # the port is not a number, or a bracket is not closed
        return False


def _refuse_unencrypted(address: str) -> None:
    """Raise UserError for plain http over the internet, where others could read the token."""
    parts = urlsplit(address)
    try:
        addresses = socket.getaddrinfo(parts.hostname, parts.port or 80, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:  # UnicodeError: a label of the name is empty or too long
        raise UserError(f"{address}: no such host ({getattr(error, 'strerror', error)})") from None
    is_public = any(ipaddress.ip_address(sockaddr[0]).is_global for *_, sockaddr in addresses)
    if parts.scheme == "http" and is_public:
        raise UserError(
            f"{address} is on the internet and not encrypted: keep the job server off it, and go through a tunnel "
            f"(ssh -L 8265:127.0.0.1:8265 {parts.hostname}) to {nodes.JOB_SERVER}"
        )


def _refuse_unprotected(address: str) -> None:
    """Raise UserError if there is no answer, or a job server answers without a token."""
    try:
        urllib.request.urlopen(f"{address.rstrip('/')}/api/jobs/", timeout=TIMEOUT_S).close()
    except urllib.error.HTTPError as error:
        if error.code in (401, 403):
            return
        raise UserError(f"{address} is not a Ray job server: it answers {error.code}") from None
    except OSError as error:
        raise UserError(
            f"no job server answers at {address} ({getattr(error, 'reason', error)}): start a cluster with `fcn "
            "cluster head`, or bring one's here (ssh -L 8265:127.0.0.1:8265 HEAD, or kubectl port-forward "
            "service/NAME 8265)"
        ) from None
    except http.client.HTTPException as error:  # such as the port where nodes join, which answers in HTTP/2
        raise UserError(
            f"{address} is not a Ray job server ({type(error).__name__}); expected a URL such as {nodes.JOB_SERVER}; "
            f"port {nodes.PORT} is where nodes join"
        ) from None
    if os.environ["RAY_AUTH_MODE"] == "token":
        raise UserError(
            f"{address} answers without a token, so everyone who reaches it can run programs on that cluster: start "
            "it with RAY_AUTH_MODE=token on every node (as `fcn cluster head` does), or set RAY_AUTH_MODE=disabled "
            "here to use it as it is"
        )
