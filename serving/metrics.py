# SPDX-License-Identifier: Apache-2.0
"""`Metrics`: the table of metrics in Prometheus' format, filled from the job store.

Every ended job counts once, in the application whose worker had it; a job that no worker had counts in every
application. Counts begin at 0 when the application starts, as Prometheus expects.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from vorta_trt.serving.job import Status
from vorta_trt.serving.job_rows import End
from vorta_trt.serving.metric_table import METRICS, MetricKind, record_report
from vorta_trt.serving.service import Service


class PrometheusSink:
    """The metrics of the table in a registry of their own; see `MetricSink`.

    Attributes:
        registry: Prometheus registry with the metrics.
    """

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # they would double the number of series
        self.registry = CollectorRegistry()
        self._metrics: dict[str, Any] = {}
        for name, metric in METRICS.items():
            if metric.kind is MetricKind.COUNTER:
                self._metrics[name] = Counter(name, metric.help, metric.labels, registry=self.registry)
            elif metric.kind is MetricKind.GAUGE:
                self._metrics[name] = Gauge(name, metric.help, metric.labels, registry=self.registry)
            else:
                self._metrics[name] = Histogram(
                    name, metric.help, metric.labels, buckets=metric.buckets, registry=self.registry
                )

    def add(self, name: str, amount: float = 1, **labels: str) -> None:
        """Adds to a counter or a gauge."""
        self._of(name, labels).inc(amount)

    def set(self, name: str, value: float, **labels: str) -> None:
        """Sets a gauge."""
        self._of(name, labels).set(value)

    def observe(self, name: str, value: float, **labels: str) -> None:
        """Adds an observation to a histogram."""
        self._of(name, labels).observe(value)

    def clear(self, name: str) -> None:
        """Forgets the values of a metric with labels."""
        self._metrics[name].clear()

    def _of(self, name: str, labels: dict[str, str]) -> Any:
        return self._metrics[name].labels(**labels) if labels else self._metrics[name]


class Metrics:
    """See the module.

    Args:
        service: Service whose jobs are counted.
        mine: Tells by a worker's name whether its jobs count here.
    """

    content_type = CONTENT_TYPE_LATEST

    def __init__(self, service: Service, mine: Callable[[str], bool]) -> None:
        self._service, self._mine = service, mine
        self._sink = PrometheusSink()
        self._lock = threading.Lock()
        for end in service.store.ends_after(0, limit=10_000):  # for the estimates; they are not counted
            service.estimates.learn(end)
        self._last = service.store.last_end()
        for status in ("completed", "failed", "cancelled"):  # exposed from the start, so that rates can be computed
            self._sink.add("vorta_requests_total", 0, status=status)

    def take_in(self) -> None:
        """Counts the jobs that ended since the last call."""
        with self._lock:
            for end in self._service.store.ends_after(self._last):
                self._last = end.number
                self._service.estimates.learn(end)
                if end.worker is None or self._mine(end.worker):
                    self._count(end)

    def text(self) -> bytes:
        """All metrics in Prometheus' format."""
        self.take_in()
        counts = self._service.store.counts()
        with self._lock:
            self._sink.set("vorta_requests_running", counts[Status.IN_PROGRESS])
            self._sink.set("vorta_requests_waiting", counts[Status.QUEUED])
            workers = self._service.store.workers()
            memory = [worker.detail.get("gpu_memory_bytes") for worker in workers]
            self._sink.set("vorta_gpu_memory_bytes", max((each for each in memory if each is not None), default=0))
            self._sink.clear("vorta_engine_info")
            for worker in workers:
                for engine in worker.detail.get("engines", []):
                    self._sink.set("vorta_engine_info", 1, **engine)
            return generate_latest(self._sink.registry)

    def _count(self, end: End) -> None:
        self._sink.add("vorta_requests_total", 1, status=end.status.value)
        if end.started_at is not None:
            self._sink.observe("vorta_queue_time_seconds", max(0.0, end.started_at - end.created_at))
            self._sink.observe("vorta_request_duration_seconds", max(0.0, end.completed_at - end.started_at))
        if end.report is not None:
            record_report(end.report, self._sink)
