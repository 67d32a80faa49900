# SPDX-License-Identifier: Apache-2.0
"""Filters messages of torch's exporter that are known to be harmless. All its other messages are passed on."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

_REGISTRATION = "torch.onnx._internal.exporter._registration"
_HARMLESS_WARNINGS = (
    # torch warns of this when it copies its own tree specs
    (FutureWarning, r"`isinstance\(treespec, LeafSpec\)` is deprecated"),
)
_HARMLESS_RECORDS = ("torchvision is not installed. Skipping ",)  # no torchvision operator is exported


@contextmanager
def without_known_noise() -> Iterator[None]:
    """Leaves out the known-harmless messages of `torch.export` and `torch.onnx.export`."""
    logger = logging.getLogger(_REGISTRATION)
    logger.addFilter(_is_news)
    try:
        with warnings.catch_warnings():
            for category, message in _HARMLESS_WARNINGS:
                warnings.filterwarnings("ignore", message=message, category=category)
            yield
    finally:
        logger.removeFilter(_is_news)


def _is_news(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(_HARMLESS_RECORDS)
