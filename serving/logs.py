# SPDX-License-Identifier: Apache-2.0
"""Structured logs: one JSON object a line, with the job's id where a line is about a job."""

from __future__ import annotations

import json
import logging
import sys
from datetime import datetime, timezone
from typing import Any


class JsonFormatter(logging.Formatter):
    """A record as JSON; what a client sent cannot begin a line of its own."""

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        entry: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, timezone.utc).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        for name in ("job", "worker", "method", "path", "status", "milliseconds"):
            if (value := getattr(record, name, None)) is not None:
                entry[name] = value
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry, ensure_ascii=True, default=str)


def set_up_logs(debug: bool = False, *, as_json: bool = True) -> None:
    """Logs of this process go to stderr.

    Args:
        debug: All of them.
        as_json: As JSON, or as text for people.
    """
    handler = logging.StreamHandler(sys.stderr)
    text = "%(asctime)s %(levelname)s %(name)s: %(message)s"
    handler.setFormatter(JsonFormatter() if as_json else logging.Formatter(text))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.DEBUG if debug else logging.WARNING)
    logging.getLogger("vorta_trt.serving").setLevel(logging.DEBUG if debug else logging.INFO)
