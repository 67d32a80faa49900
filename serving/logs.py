# SPDX-License-Identifier: Apache-2.0
"""Structured logs: one JSON object or one line of text, with the job's id where a line is about a job."""

from __future__ import annotations

import json
import logging
import sys
from datetime import datetime, timezone
from typing import Any

FIELDS = ("job", "worker", "method", "path", "status", "milliseconds")  # that a record may have


class JsonFormatter(logging.Formatter):
    """Formats a record as one line of JSON; text from a client cannot begin a new line."""

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        entry: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, timezone.utc).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        for name in FIELDS:
            if (value := getattr(record, name, None)) is not None:
                entry[name] = value
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry, ensure_ascii=True, default=str)


class TextFormatter(logging.Formatter):
    """Formats a record for people: the message, and then the fields as name=value."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:
        """The line; an exception's traceback comes after it."""
        given = [(name, str(value)) for name in FIELDS if (value := getattr(record, name, None)) is not None]
        return " ".join([super().formatMessage(record), *(f"{name}={_word(value)}" for name, value in given)])


def _word(text: str) -> str:
    """A field's value, quoted if it is more than a word: text from a client cannot end it early."""
    return text if text.isprintable() and not set(text) & {" ", '"'} and text else json.dumps(text)


def set_up_logs(debug: bool = False, *, as_json: bool = True) -> None:
    """Sends the logs of this process to stderr.

    Args:
        debug: Whether to log everything.
        as_json: Whether to write JSON; if not, text for people.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if as_json else TextFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.DEBUG if debug else logging.WARNING)
    logging.getLogger("vorta_trt.serving").setLevel(logging.DEBUG if debug else logging.INFO)
