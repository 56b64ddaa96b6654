"""Metrics: Prometheus families, and the JSON summary that older clients read.

Counting happens in plain numbers where things happen; Prometheus' objects are made of them when somebody asks.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, NamedTuple

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector

from sidecar.inference.histogram import POWERS, Histogram

if TYPE_CHECKING:
    from sidecar.inference.pool import Pool
    from sidecar.inference.slot import Slot
    from sidecar.server.downloads import Downloads


class _Answered(NamedTuple):
    """Requests answered, those among them that failed, and the time that all of them took."""

    total: int = 0
    failed: int = 0
    seconds: float = 0.0


class Metrics(Collector):
    """HTTP is counted here; what concerns models and downloads is read from the pool and the downloads."""

    def __init__(self) -> None:
        self._requests: dict[tuple[str, int], int] = {}
        self._latency: dict[str, Histogram] = {}
        self._sources: list[Callable[[], Iterable[Metric]]] = []
        self.server_restarts = 0
        self._answered = self._forgotten = _Answered()
        self.rate_limited = 0
        self.websockets = 0
        """WebSocket connections open now."""

    def observe_request(self, route: str, status: int, took_s: float) -> None:
        """`route` is the route's template, never the raw path, so that label values stay few."""
        key = (route, status)
        self._requests[key] = self._requests.get(key, 0) + 1
        latency = self._latency.get(route)
        if latency is None:
            latency = self._latency[route] = Histogram()
        latency.observe(took_s)
        total, failed, seconds = self._answered
        self._answered = _Answered(total + 1, failed + (status >= 500 or status == 0), seconds + took_s)

    def watch(self, pool: "Pool", downloads: "Downloads") -> None:
        """Export their state as well."""
        self._sources = [lambda: _of_models(pool.slots()), lambda: _of_downloads(downloads)]

    def text(self) -> bytes:
        """Prometheus exposition format."""
        registry = CollectorRegistry()
        registry.register(self)
        return bytes(generate_latest(registry))

    def reset_summary(self) -> None:
        """The summary begins anew; Prometheus' counters go on, as they may never fall."""
        self._forgotten = self._answered

    def summary(self, queue_size: int) -> dict[str, float]:
        """The JSON form, of the requests since `reset_summary`; times in seconds."""
        total, failed, seconds = (now - then for now, then in zip(self._answered, self._forgotten, strict=True))
        return {
            "total_requests": total,
            "completed_requests": total - failed,
            "failed_requests": failed,
            "queue_size": queue_size,
            "average_processing_time": seconds / total if total else 0.0,
            "active_websocket_connections": self.websockets,
        }

    def collect(self) -> Iterator[Metric]:
        """All families, from what has been counted up to now."""
        requests = CounterMetricFamily("sidecar_http_requests", "Requests answered", labels=["route", "status"])
        for (route, status), count in self._requests.items():
            requests.add_metric([route, str(status)], count)
        latency = HistogramMetricFamily("sidecar_http_request_seconds", "Time to answer", labels=["route"])
        for route, histogram in self._latency.items():
            latency.add_metric([route], histogram.buckets(), histogram.sum)
        yield from (requests, latency)
        yield CounterMetricFamily(
            "sidecar_rate_limited", "Requests turned away by RATE_LIMIT_PER_MINUTE", value=self.rate_limited
        )
        yield GaugeMetricFamily("sidecar_websocket_connections", "WebSockets open now", value=self.websockets)
        yield GaugeMetricFamily(
            "sidecar_server_restarts", "Restarts of the server by the supervisor", value=self.server_restarts
        )
        for source in self._sources:
            yield from source()


def _of_downloads(downloads: "Downloads") -> Iterator[Metric]:
    received = CounterMetricFamily("sidecar_downloaded_bytes", "Bytes of weights received", labels=["model"])
    for model, count in downloads.received_bytes.items():
        received.add_metric([model], count)
    yield received


def _of_models(slots: "list[Slot]") -> Iterator[Metric]:
    """Per model in use."""
    gauges: tuple[tuple[str, str, Callable[[Slot], float]], ...] = (
        ("sidecar_model_ready", "1 when the model answers", lambda slot: float(slot.state == "ready")),
        (
            "sidecar_model_resident_bytes",
            "Memory of the model's runners",
            lambda slot: slot.measured_bytes if slot.resident else 0,
        ),
        (
            "sidecar_model_vram_bytes",
            "GPU memory of the model's runners",
            lambda slot: slot.vram_bytes if slot.resident else 0,
        ),
        ("sidecar_model_queue", "Requests that wait for the model", lambda slot: slot.waiting),
        ("sidecar_streams_open", "Streamed answers under way", lambda slot: slot.streams.open),
    )
    counters: tuple[tuple[str, str, Callable[[Slot], float]], ...] = (
        ("sidecar_model_loads", "Loads that ended ready, restarts included", lambda slot: slot.loads),
        ("sidecar_model_load_failures", "Loads that failed", lambda slot: slot.load_failures),
        ("sidecar_runner_restarts", "Restarts of the runner after it ended by itself", lambda slot: slot.restarts),
        ("sidecar_items", "Items answered", lambda slot: slot.batcher.stats.items),
        ("sidecar_items_failed", "Items answered with an error", lambda slot: slot.batcher.stats.failed),
        ("sidecar_items_retried", "Items retried after a crash", lambda slot: slot.batcher.stats.retried),
        ("sidecar_streams", "Streamed answers that came to their end", lambda slot: slot.streams.ended),
        ("sidecar_streams_failed", "Streamed answers that ended with an error", lambda slot: slot.streams.failed),
        ("sidecar_items_dropped", "Items whose client left the queue", lambda slot: slot.batcher.stats.dropped),
    )
    histograms: tuple[tuple[str, str, Callable[[Slot], Histogram]], ...] = (
        (
            "sidecar_queue_seconds",
            "Time of an item from its arrival until the model begins on it, loading included",
            lambda slot: slot.batcher.stats.queued,
        ),
        ("sidecar_stream_queue_seconds", "Time until a stream was let in", lambda slot: slot.streams.queued),
        ("sidecar_batch_seconds", "Time of a batch in the model", lambda slot: slot.batcher.stats.computed),
        ("sidecar_batch_size", "Items of a batch", lambda slot: _sizes(slot.batcher.stats.sizes)),
    )
    for name, text, read in gauges:
        gauge = GaugeMetricFamily(name, text, labels=["model"])
        for slot in slots:
            gauge.add_metric([slot.spec.id], read(slot))
        yield gauge
    for name, text, read in counters:
        counter = CounterMetricFamily(name, text, labels=["model"])
        for slot in slots:
            counter.add_metric([slot.spec.id], read(slot))
        yield counter
    for name, text, read_histogram in histograms:
        family = HistogramMetricFamily(name, text, labels=["model"])
        for slot in slots:
            histogram = read_histogram(slot)
            family.add_metric([slot.spec.id], histogram.buckets(), histogram.sum)
        yield family
    yield _unloads(slots)


def _sizes(counts: dict[int, int]) -> Histogram:
    histogram = Histogram(POWERS)
    for size, count in counts.items():
        histogram.observe(size, count)
    return histogram


def _unloads(slots: "list[Slot]") -> Metric:
    family = CounterMetricFamily(
        "sidecar_model_unloads", "Models taken out of memory, and why", labels=["model", "reason"]
    )
    for slot in slots:
        for reason, count in slot.unloads.items():
            family.add_metric([slot.spec.id, reason], count)
    return family
