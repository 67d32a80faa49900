# SPDX-License-Identifier: Apache-2.0
"""Errors of this package that need no torch."""

from __future__ import annotations


class CheckpointError(ValueError):
    """A checkpoint or router is not what it should be; the message says what was given, the rule and the remedy."""
