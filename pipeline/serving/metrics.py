"""/metrics: how many requests were answered, with which status and how fast, for Prometheus."""

import time

from prometheus_client import CONTENT_TYPE_LATEST as CONTENT_TYPE_LATEST
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pipeline.serving.request_queue import RequestQueue

SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 60, 120)  # bounds of the histogram


class Metrics:
    """Counts of one server: every answer to /predict by its status, the seconds of those that succeeded, the queue."""

    def __init__(self, queue: RequestQueue):
        self.registry = CollectorRegistry()
        self.answers = Counter(
            "fcn_answers", "answers to /predict by status", ["status"], registry=self.registry
        )
        self.seconds = Histogram(
            "fcn_seconds",
            "seconds from a request to its prediction",
            buckets=SECONDS,
            registry=self.registry,
        )
        inside = Gauge("fcn_requests", "photos that are read, wait or are worked on", registry=self.registry)
        inside.set_function(lambda: queue.num_inside)

    def text(self) -> bytes:
        return generate_latest(self.registry)


class Measured:
    """ASGI middleware that counts the answers to /predict."""

    def __init__(self, app: ASGIApp, metrics: Metrics):
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        start = time.monotonic()

        async def send_counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                self.metrics.answers.labels(message["status"]).inc()
                if message["status"] == 200:
                    self.metrics.seconds.observe(time.monotonic() - start)
            await send(message)

        is_predict = scope["type"] == "http" and scope["path"].endswith("/predict")
        await self.app(scope, receive, send_counted if is_predict else send)
