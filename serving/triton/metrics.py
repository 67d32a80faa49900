# SPDX-License-Identifier: Apache-2.0
"""The project's metrics in Triton's own endpoint; Triton itself reports waiting requests and the GPU's memory."""

from __future__ import annotations

from typing import Any

from vorta_trt.serving.metric_table import METRICS


class TritonMetrics:
    """A `MetricSink` over the Python backend's metrics, each of which is made when it first has a value.

    Args:
        utils: The backend's module `triton_python_backend_utils`.
    """

    def __init__(self, utils: Any) -> None:
        self._utils = utils
        self._families: dict[str, Any] = {}
        self._metrics: dict[tuple[str, tuple[str, ...]], Any] = {}

    def add(self, name: str, amount: float = 1, **labels: str) -> None:
        """Adds to a counter or a gauge."""
        self._metric(name, labels).increment(amount)

    def set(self, name: str, value: float, **labels: str) -> None:
        """Sets a gauge."""
        self._metric(name, labels).set(value)

    def observe(self, name: str, value: float, **labels: str) -> None:
        """Adds an observation to a histogram."""
        self._metric(name, labels).observe(value)

    def _metric(self, name: str, labels: dict[str, str]) -> Any:
        key = name, tuple(labels.values())
        if key not in self._metrics:
            about = METRICS[name]
            assert tuple(labels) == about.labels, (name, labels)
            if name not in self._families:
                kind = getattr(self._utils.MetricFamily, about.kind.name)
                self._families[name] = self._utils.MetricFamily(name=name, description=about.help, kind=kind)
            options = {"buckets": list(about.buckets)} if about.buckets else {}
            self._metrics[key] = self._families[name].Metric(labels=labels, **options)
        return self._metrics[key]
