# SPDX-License-Identifier: Apache-2.0
"""A job's spans reach whoever collects them, over OTLP."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

# In a process of its own, since a process has one tracer provider for good.
CODE = """
from dataclasses import replace
from vorta_trt.serving.job import Job, Status
from vorta_trt.serving.tracing import record_spans, set_up_tracing

end = set_up_tracing()
times = {"created_at": 90.0, "started_at": 100.0, "completed_at": None, "expires_at": None}
empty = {"error_code": None, "error_message": None, "report": None, "flops": None, "worker": "w", "cancelling": False}
job = Job("video_1", 1, "", "m", {"size": "9x64x96"}, Status.COMPLETED, "", 4, 4, attempt=1, **times, **empty)
stages = {"text": 1.0, "denoise": 3.0, "decode": 0.5, "encode": 0.25}
record_spans(job, {"videos": [{"stages": stages}], "seconds": 5.0})
end()
"""


def test_spans_of_a_job_and_its_stages() -> None:
    received: list[bytes] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Collector) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        environment = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
            "OTEL_EXPORTER_OTLP_COMPRESSION": "none",
        }
        subprocess.run([sys.executable, "-c", CODE], check=True, env={**os.environ, **environment}, timeout=120)
        server.shutdown()
        thread.join()
    request = ExportTraceServiceRequest.FromString(received[0])
    spans = [span for each in request.resource_spans for scope in each.scope_spans for span in scope.spans]
    (whole,) = (span for span in spans if span.name == "video")
    parts = {span.name: span for span in spans if span is not whole}
    assert list(parts) == ["text", "denoise", "decode", "encode"]
    assert all(span.parent_span_id == whole.span_id for span in parts.values())
    assert {value.key: value.value.string_value for value in whole.attributes}["vorta.job"] == "video_1"
    seconds = {name: (span.end_time_unix_nano - span.start_time_unix_nano) / 1e9 for name, span in parts.items()}
    assert seconds == {"text": 1.0, "denoise": 3.0, "decode": 0.5, "encode": 0.25}
    assert (whole.start_time_unix_nano / 1e9, whole.end_time_unix_nano / 1e9) == (100.0, 105.0)
