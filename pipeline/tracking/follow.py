"""Sends a net's training curve to MLflow while the net trains."""

import threading

from pipeline.tracking.outage import OUTAGE, one_line, warn
from pipeline.tracking.records import Record
from pipeline.tracking.send import last_step, send_points
from pipeline.tracking.tracker import Tracker

POLL_S = 2.0  # between two reads of the curve file; MLflow's pages lag by this much


class Follower:
    """A thread that reads the curve file of a record and sends each new point once.

    Entering the context starts the thread; leaving it stops the thread.
    """

    def __init__(self, tracker: Tracker, record: Record):
        self.tracker, self.record = tracker, tracker.records.begin(record)
        tracker.records.drop_kept_curves(self.record)
        self._run_id: str | None = None
        self.step = -1  # the last one that MLflow has
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)

    def _follow(self) -> None:
        was_down = False
        curves = self.tracker.records.find_curves(self.record)
        while not self._stopping.wait(POLL_S):
            try:
                self.catch_up()
                was_down = False
            except OUTAGE as error:
                if not was_down:
                    warn(f"{one_line(error)}; training goes on, the curves wait in {curves}")
                was_down = True

    def catch_up(self) -> str:
        """Send the points that MLflow lacks, and return the run's id."""
        client = self.tracker.client
        if self._run_id is None:
            with self.tracker.records.lock(self.record):
                run_id = self.tracker.open_run(self.record).info.run_id
            self.step = last_step(client, run_id)
            self._run_id = run_id
        if curves := self.tracker.records.find_curves(self.record):
            _, self.step = send_points(client, self._run_id, curves, self.step)
        return self._run_id

    def __enter__(self) -> "Follower":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join()
