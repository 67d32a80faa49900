# SPDX-License-Identifier: Apache-2.0
"""Names and versions of the operator in ONNX files, shared with plugin and runtimes (DESIGN section 3)."""

from __future__ import annotations

DOMAIN = "vorta"
OPERATOR = "RoutedAttention"
OPERATOR_VERSION = 1  # opset version of the domain
OPSET = 23  # of the standard operators: RMSNormalization and Attention are single nodes from 23 on
OPSET_17 = 17  # the newest that TensorRT 8.6 reads
OPSETS = (OPSET, OPSET_17)
PLUGIN_NAMESPACE = "vorta"
PLUGIN_VERSION = "1"

INPUTS = ("query", "key", "value", "routes", "text_length")  # the last one only where text_tokens > 0
OUTPUT = "output"
TRANSPOSED = ".transposed"  # suffix of a weight that is stored as [in, out]
ATTENTION_PRECISION = "attention_precision"
SAME_PRECISION = "same"  # what the absence of the attribute means, in files from before it existed
ATTRIBUTES = (
    "grid",
    "tile",
    "window",
    "bucket",
    "keep",
    "coreset_keys",
    "text_tokens",
    "scale",
    ATTENTION_PRECISION,
    "plugin_namespace",
    "plugin_version",
)
