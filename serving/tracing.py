# SPDX-License-Identifier: Apache-2.0
"""Spans of OpenTelemetry: one for a job, and one below it for each stage of its videos.

They are sent over OTLP and HTTP where the variable OTEL_EXPORTER_OTLP_ENDPOINT says where to; other variables of that
name's kind, as OTEL_SERVICE_NAME, are OpenTelemetry's own.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from vorta_trt.plugins.extras import import_extra
from vorta_trt.serving.job import Job

NANOSECONDS = 1_000_000_000
ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
STAGES = ("text", "condition", "denoise", "decode", "encode")  # in the order in which they run


def set_up_tracing() -> Callable[[], None]:
    """Lets this process send its spans, if it is told where to.

    Returns:
        Sends what waits, and ends.

    Raises:
        MissingExtraError: It is told, and OpenTelemetry is not installed.
    """
    if not any(os.environ.get(name) for name in ENDPOINTS):
        return lambda: None
    api = import_extra("opentelemetry.trace", "tracing")
    sdk = import_extra("opentelemetry.sdk.trace", "tracing")
    export = import_extra("opentelemetry.sdk.trace.export", "tracing")
    exporter = import_extra("opentelemetry.exporter.otlp.proto.http.trace_exporter", "tracing")
    provider = sdk.TracerProvider()
    provider.add_span_processor(export.BatchSpanProcessor(exporter.OTLPSpanExporter()))
    api.set_tracer_provider(provider)
    shutdown: Callable[[], None] = provider.shutdown
    return shutdown


def record_spans(job: Job, report: dict[str, Any]) -> None:
    """Tells of a completed job. The stages of a video are laid end to end, as they were run.

    Args:
        job: The job.
        report: Of it.
    """
    try:
        from opentelemetry import trace
    except ImportError:
        return
    tracer = trace.get_tracer("vorta_trt.serving")
    began = int((job.started_at or job.created_at) * NANOSECONDS)
    attributes = {"vorta.job": job.id, "vorta.model": job.model, "vorta.size": job.request["size"]}
    whole = tracer.start_span("video", start_time=began, attributes=attributes)
    at, context = began, trace.set_span_in_context(whole)
    for number, video in enumerate(report["videos"]):
        for stage in STAGES:
            if (seconds := video["stages"].get(stage)) is not None:
                span = tracer.start_span(stage, context, start_time=at, attributes={"vorta.video": number})
                at += int(seconds * NANOSECONDS)
                span.end(at)
    whole.end(max(at, began + int(report["seconds"] * NANOSECONDS)))
