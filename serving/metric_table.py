# SPDX-License-Identifier: Apache-2.0
"""Every metric that a server of this project exposes: HTTP, Triton and Ray have the same names, labels and buckets.

No label takes a value from a request, so the number of time series does not grow with the number of requests.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType
from typing import Any, Protocol


class MetricKind(str, Enum):
    """How a value changes: a counter only grows, a gauge is set, a histogram counts observations by size."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


SECONDS = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0)
STEP_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


@dataclass(frozen=True)
class Metric:
    """One metric.

    Attributes:
        kind: How it changes.
        help: One sentence for whoever reads the endpoint.
        labels: Names of its labels.
        buckets: Upper ends of a histogram's buckets, in the unit of its name.
    """

    kind: MetricKind
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()


METRICS: Mapping[str, Metric] = MappingProxyType(
    {
        "vorta_requests_total": Metric(
            MetricKind.COUNTER, "Requests that ended, by status: completed, failed or cancelled.", ("status",)
        ),
        "vorta_requests_running": Metric(MetricKind.GAUGE, "Requests that are being computed."),
        "vorta_requests_waiting": Metric(MetricKind.GAUGE, "Requests in the queue."),
        "vorta_request_duration_seconds": Metric(
            MetricKind.HISTOGRAM,
            "Seconds from the begin of computing a request to its end, however it ended.",
            (),
            SECONDS,
        ),
        "vorta_queue_time_seconds": Metric(
            MetricKind.HISTOGRAM, "Seconds that a request waited before it was computed.", (), SECONDS
        ),
        "vorta_stage_duration_seconds": Metric(
            MetricKind.HISTOGRAM,
            "Seconds of a stage: text, condition, denoise, decode or encode.",
            ("stage",),
            SECONDS,
        ),
        "vorta_step_duration_seconds": Metric(
            MetricKind.HISTOGRAM,
            "Seconds of a denoising step, by the transformer that took it.",
            ("expert",),
            STEP_SECONDS,
        ),
        "vorta_denoise_steps_total": Metric(
            MetricKind.COUNTER, "Denoising steps: computed, or reused from the step cache.", ("kind",)
        ),
        "vorta_routed_heads_total": Metric(
            MetricKind.COUNTER, "Heads of computed steps as planned, by branch: full, coreset or sliding.", ("branch",)
        ),
        "vorta_video_seconds_total": Metric(MetricKind.COUNTER, "Seconds of video that were made."),
        "vorta_gpu_memory_bytes": Metric(MetricKind.GAUGE, "Bytes of the GPU's memory in use, by all processes."),
        "vorta_engine_info": Metric(MetricKind.GAUGE, "1 for each loaded model.", ("bundle", "flavour", "sm")),
    }
)


class MetricSink(Protocol):
    """Takes values of the metrics in `METRICS`. Callers give all labels of a metric, in the order of the table."""

    def add(self, name: str, amount: float = 1, **labels: str) -> None:
        """Adds to a counter or a gauge."""

    def set(self, name: str, value: float, **labels: str) -> None:
        """Sets a gauge."""

    def observe(self, name: str, value: float, **labels: str) -> None:
        """Adds an observation to a histogram."""


def record_report(report: Mapping[str, Any], sink: MetricSink) -> None:
    """Records what the report of a finished request says about stages, steps and heads.

    Args:
        report: Report of the request: "videos", each with "stages" (seconds by stage) and "length" (seconds); and
            "steps", which `StepWatch.report` gives.
        sink: Takes the values.
    """
    for video in report["videos"]:
        sink.add("vorta_video_seconds_total", video["length"])
        for stage, seconds in video["stages"].items():
            sink.observe("vorta_stage_duration_seconds", seconds, stage=stage)
    steps = report["steps"]
    for kind in ("computed", "reused"):
        sink.add("vorta_denoise_steps_total", steps[kind], kind=kind)
    for expert, times in steps["seconds"].items():
        for seconds in times:
            sink.observe("vorta_step_duration_seconds", seconds, expert=expert)
    for branch, heads in steps["routed_heads"].items():
        sink.add("vorta_routed_heads_total", heads, branch=branch)
