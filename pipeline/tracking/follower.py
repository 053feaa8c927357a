"""A run's curves, sent to MLflow while it trains."""

import threading

from pipeline.tracking.outage import OUTAGE, in_words, warn
from pipeline.tracking.points import last_step, send_points
from pipeline.tracking.record import Record
from pipeline.tracking.tracker import Tracker

POLL_S = 2.0  # between two looks at the curves: what the UI lags behind


class Follower:
    """Sends a run's curves while it trains, each point once, from a thread of its own."""

    def __init__(self, tracker: Tracker, record: Record):
        self.tracker, self.record = tracker, tracker.shelf.begin(record)
        self._run_id: str | None = None
        self._step = -1
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)

    def _follow(self) -> None:
        was_down = False
        curves = self.tracker.shelf.curves(self.record)
        while not self._stopping.wait(POLL_S):
            try:
                self.catch_up()
                was_down = False
            except OUTAGE as error:
                if not was_down:
                    warn(f"{in_words(error)}; training goes on, the curves wait in {curves}")
                was_down = True

    def catch_up(self) -> str:
        """Brings MLflow up to date with the curves on disk; the run's id."""
        shelf, client = self.tracker.shelf, self.tracker.client
        if self._run_id is None:
            with shelf.locked(self.record):
                run_id = self.tracker.open(self.record).info.run_id
            self._step = last_step(client, run_id)
            self._run_id = run_id
        if curves := shelf.curves(self.record):
            _, self._step = send_points(client, self._run_id, curves, self._step)
        return self._run_id

    def __enter__(self) -> "Follower":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join()
