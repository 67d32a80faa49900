# SPDX-License-Identifier: Apache-2.0
"""Translation of `torch.ops.vorta.routed_attention` to the ONNX node `vorta::RoutedAttention`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import onnx
import torch
from onnxscript import values

from vorta_trt.export.names import (
    ATTENTION_PRECISION,
    DOMAIN,
    INPUTS,
    OPERATOR,
    OPERATOR_VERSION,
    OUTPUT,
    PLUGIN_NAMESPACE,
    PLUGIN_VERSION,
    SAME_PRECISION,
)
from vorta_trt.model import operator as _registers_the_torch_operator  # noqa: F401

_FLOATS = ("tensor(float)", "tensor(float16)", "tensor(bfloat16)")


def translation_table() -> dict[Callable[..., Any], Callable[..., Any]]:
    """The `custom_translation_table` of `torch.onnx.export`."""
    return {torch.ops.vorta.routed_attention.default: _translate}


@cache
def operator_schema() -> onnx.defs.OpSchema:
    """ONNX schema of the operator (DESIGN section 3), with which the exporter emits a node and inlines no function."""
    schema = onnx.defs.OpSchema
    kind = schema.AttrType
    optional = schema.FormalParameterOption.Optional
    required = {"grid": kind.INTS, "tile": kind.INTS, "window": kind.INTS, "bucket": kind.INTS, "keep": kind.INT}
    attributes = [schema.Attribute(name, attribute_type, required=True) for name, attribute_type in required.items()]
    defaults = {
        "coreset_keys": "query",
        "text_tokens": 0,
        "scale": 0.0,
        ATTENTION_PRECISION: SAME_PRECISION,
        "plugin_namespace": PLUGIN_NAMESPACE,
        "plugin_version": PLUGIN_VERSION,
    }
    attributes += [schema.Attribute(name, onnx.helper.make_attribute(name, value)) for name, value in defaults.items()]
    return schema(
        OPERATOR,
        DOMAIN,
        OPERATOR_VERSION,
        doc="VORTA routed attention; see vorta_trt.model.operator",
        inputs=[
            *(schema.FormalParameter(name, "T", "[B, S+T, N, D]") for name in INPUTS[:3]),
            schema.FormalParameter("routes", "tensor(int32)", "[B, N] branch ids"),
            schema.FormalParameter("text_length", "tensor(int32)", "[B] valid text tokens", param_option=optional),
        ],
        outputs=[schema.FormalParameter(OUTPUT, "T", "[B, S+T, N, D]")],
        type_constraints=[("T", list(_FLOATS), "of query, key, value and output")],
        attributes=attributes,
    )


def _translate(
    query: Any,
    key: Any,
    value: Any,
    routes: Any,
    text_length: Any,
    grid: Sequence[int],
    tile: Sequence[int],
    window: Sequence[int],
    bucket: Sequence[int],
    keep: int,
    coreset_keys: str,
    text_tokens: int,
    scale: float,
    attention_precision: str = SAME_PRECISION,
) -> Any:
    """Arguments as in the torch operator's schema; all attributes are written, so that no reader needs the defaults."""
    operator = values.Op(values.Opset(DOMAIN, OPERATOR_VERSION), OPERATOR, operator_schema())
    return operator(
        *(query, key, value, routes),
        *(() if text_length is None else (text_length,)),
        grid=tuple(grid),
        tile=tuple(tile),
        window=tuple(window),
        bucket=tuple(bucket),
        keep=keep,
        coreset_keys=coreset_keys,
        text_tokens=text_tokens,
        scale=scale,
        attention_precision=attention_precision,
        plugin_namespace=PLUGIN_NAMESPACE,
        plugin_version=PLUGIN_VERSION,
    )
