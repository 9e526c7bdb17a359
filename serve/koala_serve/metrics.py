"""What Prometheus reads: names as other servers of models have them, and no prompt in any label."""

from __future__ import annotations

from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 60, 120, 300, 600, 1200)
_SIZES = (1, 2, 4, 8, 16)


class Metrics:
    """The counters of one server."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        gauge = partial(Gauge, labelnames=("model",), namespace="koala", registry=self._registry)
        counter = partial(Counter, namespace="koala", registry=self._registry)
        histogram = partial(Histogram, namespace="koala", registry=self._registry)
        seconds = partial(histogram, labelnames=("model",), buckets=_SECONDS)
        self.waiting = gauge("num_queue_reqs", "Pictures that wait.")
        self.running = gauge("num_running_reqs", "Pictures that are being drawn.")
        self.requests = counter("requests", "Requests by how they ended.", ("model", "status"))
        self.latency = seconds("request_latency_seconds", "From a request to its last picture.")
        self.queue_time = seconds("queue_time_seconds", "From a request to its first step.")
        self.stage = histogram(
            "stage_latency_seconds", "Drawing a batch; writing a picture's file.", ("model", "stage"), buckets=_SECONDS
        )
        self.batch_size = histogram("generation_batch_size", "Pictures drawn together.", ("model",), buckets=_SIZES)
        self.worker_deaths = counter("worker_deaths", "Workers that ended while they drew.", ("model",))

    def text(self) -> bytes:
        """Return everything in Prometheus' text format."""
        return generate_latest(self._registry)
