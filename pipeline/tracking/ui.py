"""MLflow's own server on this machine, over the project's runs."""

import os
import sys
from pathlib import Path

from pipeline.errors import ResultError
from pipeline.surroundings import plain
from pipeline.tracking.moved import ARTIFACTS
from pipeline.tracking.outage import OUTAGE, one_line, warn
from pipeline.tracking.tracker import Tracker


def serve(profile: str, root: Path, port: int) -> None:
    """Print the address of a profile's runs, and become the server that shows them on loopback.

    Raises ResultError if MLFLOW_TRACKING_URI is a server's address already.
    """
    tracker = Tracker(profile, root)
    if tracker.is_server:
        raise ResultError("MLFLOW_TRACKING_URI is the address of a server: open it in a browser")
    try:
        page = f"/#/experiments/{tracker.experiment_id()}/runs"
    except OUTAGE as error:
        warn(one_line(error))
        page = ""
    print(
        f"MLflow starts, in up to a minute; the runs of {profile}: http://127.0.0.1:{port}{page}", flush=True
    )
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--workers", "1", "--artifacts-destination", str(plain(tracker.root) / ARTIFACTS)]
    # Its last line would be the address of a welcome page
    command += ["--uvicorn-opts", "--log-level warning"]
    # The address of a database may hold a password, which has no place in the list of processes
    environment = {"MLFLOW_BACKEND_STORE_URI": tracker.address, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    environment |= {"MLFLOW_LOGGING_LEVEL": "WARNING", "PYTHONWARNINGS": "ignore"}
    os.execve(sys.executable, command, os.environ | environment)
