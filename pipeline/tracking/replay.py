"""What MLflow missed, sent now: every record of a profile that the server has not got, or not all of."""

from collections.abc import Iterator
from pathlib import Path

from pipeline.errors import ResultError
from pipeline.tracking.outage import OUTAGE, in_words, is_down
from pipeline.tracking.record import Record
from pipeline.tracking.tracker import Sent, Tracker


def replay(profile: str, root: Path) -> Iterator[tuple[bool, str]]:
    """(whether it is all there, in a sentence) for each record; ResultError if the server is down.

    Run again, or beside a training, it leaves nothing in MLflow twice.
    """
    tracker = Tracker(profile, root)
    records, damaged = tracker.shelf.all()
    for sentence in damaged:
        yield False, sentence
    for record in records:
        what = f"{record.name}, {record.kind} of {record.value[:12]}"
        try:
            sent = tracker.send(record)
        except OUTAGE as error:
            if is_down(error):
                raise ResultError(
                    f"MLflow does not answer: {in_words(error)}; start it, or set MLFLOW_TRACKING_URI, and run the "
                    "same command again"
                ) from error
            yield False, f"{what}: refused: {in_words(error)}"
        else:
            yield _is_whole(sent), f"{what}: {_in_words(sent, record)}"


def _is_whole(sent: Sent | None) -> bool:
    return sent is None or not sent.missing


def _in_words(sent: Sent | None, record: Record) -> str:
    if sent is None:
        return "its run was deleted in MLflow, and stays so"
    numbers = {"points": sent.points, "scores": sent.metrics, "files": sent.files}
    said = ", ".join(f"{number} {what}" for what, number in numbers.items() if number) or "nothing new"
    if sent.missing:
        said += f"; changed since, and not sent: {', '.join(sent.missing)}"
    return said if record.ended_ms else f"{said}; it has not ended"
