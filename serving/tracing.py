# SPDX-License-Identifier: Apache-2.0
"""Spans of OpenTelemetry: one for a job, and one below it for each stage of its videos.

They are sent by OTLP over HTTP to the address in the variable OTEL_EXPORTER_OTLP_ENDPOINT (or
OTEL_EXPORTER_OTLP_TRACES_ENDPOINT); without it, none are sent. OpenTelemetry itself reads its other variables, such as
OTEL_SERVICE_NAME.
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
    """Lets this process send its spans, if a variable says where to.

    Returns:
        A function that sends the spans that still wait, and ends tracing.

    Raises:
        MissingExtraError: A variable says where to, and OpenTelemetry is not installed.
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
    """Records the spans of a completed job. The stages of a video follow each other without gaps.

    Args:
        job: The job.
        report: Report of the job.
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
