# SPDX-License-Identifier: Apache-2.0
"""Errors of this room that a user can act on."""

from __future__ import annotations

from vorta_trt.plugins.errors import VortaError


class ExportError(VortaError):
    """The exported graph is not what it must be; nothing was written."""


class OnnxFileError(VortaError, ValueError):
    """A file is not an ONNX model, or not one that vorta-trt exported."""
