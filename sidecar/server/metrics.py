"""Metrics: Prometheus families, and the JSON summary that older clients read."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from sidecar.inference.pool import Pool

_LATENCY_BUCKETS_S = (0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class Metrics:
    """HTTP metrics are counted here; those of the models are read from the pool when somebody asks."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "sidecar_http_requests", "Requests answered", ["route", "status"], registry=self.registry
        )
        self._latency = Histogram(
            "sidecar_http_request_seconds",
            "Time to answer",
            ["route"],
            buckets=_LATENCY_BUCKETS_S,
            registry=self.registry,
        )
        self._restarts = Gauge(
            "sidecar_server_restarts", "Restarts of the server by the supervisor", registry=self.registry
        )
        self._children: dict[tuple[str, int], tuple[Counter, Histogram]] = {}
        self.total = 0
        self.failed = 0
        self.seconds = 0.0

    def set_restarts(self, count: int) -> None:
        self._restarts.set(count)

    def observe_request(self, route: str, status: int, took_s: float) -> None:
        """`route` is the route's template, never the raw path, so that label values stay few."""
        children = self._children.get((route, status))
        if children is None:
            children = (self._requests.labels(route, str(status)), self._latency.labels(route))
            self._children[route, status] = children
        children[0].inc()
        children[1].observe(took_s)
        self.total += 1
        self.failed += status >= 500 or status == 0
        self.seconds += took_s

    def watch(self, pool: "Pool") -> None:
        """Export the pool's state."""
        self.registry.register(_PoolCollector(pool))

    def text(self) -> bytes:
        """Prometheus exposition format."""
        return bytes(generate_latest(self.registry))

    def summary(self, queue_size: int) -> dict[str, float]:
        """The JSON form; times in seconds."""
        return {
            "total_requests": self.total,
            "completed_requests": self.total - self.failed,
            "failed_requests": self.failed,
            "queue_size": queue_size,
            "average_processing_time": self.seconds / self.total if self.total else 0.0,
            "active_websocket_connections": 0,
        }


class _PoolCollector(Collector):
    def __init__(self, pool: "Pool") -> None:
        self._pool = pool

    def collect(self) -> Iterator[Metric]:
        """One sample per model in use."""
        ready = GaugeMetricFamily("sidecar_model_ready", "1 when the model answers", labels=["model"])
        waiting = GaugeMetricFamily("sidecar_model_queue", "Requests that wait for the model", labels=["model"])
        restarts = CounterMetricFamily("sidecar_runner_restarts", "Restarts of the runner", labels=["model"])
        items = CounterMetricFamily("sidecar_items", "Items answered", labels=["model"])
        batches = CounterMetricFamily("sidecar_batches", "Batches run, by number of items", labels=["model", "size"])
        retried = CounterMetricFamily("sidecar_items_retried", "Items retried after a crash", labels=["model"])
        dropped = CounterMetricFamily("sidecar_items_dropped", "Items whose client left the queue", labels=["model"])
        for slot in self._pool.slots():
            model, stats = [slot.spec.id], slot.batcher.stats
            ready.add_metric(model, float(slot.state == "ready"))
            waiting.add_metric(model, len(slot.batcher))
            restarts.add_metric(model, slot.restarts)
            items.add_metric(model, stats.items)
            retried.add_metric(model, stats.retried)
            dropped.add_metric(model, stats.dropped)
            for size, count in sorted(stats.sizes.items()):
                batches.add_metric([slot.spec.id, str(size)], count)
        yield from (ready, waiting, restarts, items, batches, retried, dropped)
