"""Sends what an outage kept from MLflow: all records of a profile, as far as MLflow lacks them."""

from collections.abc import Iterator
from pathlib import Path

from pipeline.errors import ResultError, UserError
from pipeline.tracking.outage import OUTAGE, is_down, one_line
from pipeline.tracking.tracker import Tracker


def replay(profile: str, root: Path) -> Iterator[tuple[bool, str]]:
    """Send each record, and yield (whether MLflow has all of it now, a message).

    It can run again, or while a net trains: nothing is in MLflow twice. Raises ResultError if the server is down.
    """
    tracker = Tracker(profile, root)
    records, damaged = tracker.records.read_all()
    for message in damaged:
        yield False, message
    for record in records:
        name = f"{record.name}, {record.kind} of {record.value[:12]}"
        try:
            sent = tracker.send(record, checks_all=True)
        except UserError:
            raise
        except OUTAGE as error:
            if is_down(error):
                raise ResultError(
                    f"MLflow does not answer: {one_line(error)}; start it, or set MLFLOW_TRACKING_URI, and run the "
                    "same command again"
                ) from error
            yield False, f"{name}: refused: {one_line(error)}"
        else:
            yield not sent.missing, f"{name}: {sent}" + ("" if record.ended_ms else "; it has not ended")
