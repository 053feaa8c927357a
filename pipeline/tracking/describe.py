"""Whether MLflow answers, and where it keeps files."""

from pathlib import Path
from urllib.parse import urlsplit

from pipeline.errors import ResultError
from pipeline.tracking.moved import DATABASE
from pipeline.tracking.outage import OUTAGE, one_line, without_passwords
from pipeline.tracking.tracker import Tracker


def describe(profile: str, root: Path) -> str:
    """Return MLflow's address and where it keeps the files of a profile's runs.

    Raises ResultError if it does not answer, its database has another version's tables, or files would go astray.
    """
    tracker = Tracker(profile, root)
    if tracker.is_own and not (tracker.root / DATABASE).exists():
        return f"{DATABASE} is made by the first run"
    where = without_passwords(tracker.uri)
    try:
        experiment = tracker.find_experiment()
    except OUTAGE as error:
        raise ResultError(f"MLflow at {where} does not answer: {one_line(error)}") from error
    if experiment is None:
        return f"{where}; no runs of {profile} yet"
    location = experiment.artifact_location or ""
    if tracker.is_server and urlsplit(location).scheme in ("", "file"):
        raise ResultError(
            f"MLflow at {where} lets each client write files to {location} on its own disk; start the server with "
            "--artifacts-destination"
        )
    return f"{where}, files in {location}"
