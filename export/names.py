# SPDX-License-Identifier: Apache-2.0
"""Opsets of exported files, and the names that mark what the exporter changed."""

from __future__ import annotations

OPSET = 23  # of the standard operators: RMSNormalization and Attention are single nodes from 23 on
OPSET_17 = 17  # the newest that TensorRT 8.6 reads
OPSETS = (OPSET, OPSET_17)
TRANSPOSED = ".transposed"  # suffix of a weight that is stored as [in, out]
