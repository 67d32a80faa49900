# SPDX-License-Identifier: Apache-2.0
"""Translation of `torch.ops.vorta.routed_attention` to the ONNX node `vorta::RoutedAttention`."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import onnx
import torch
from onnxscript import values

from vorta_trt.model import operator as _registers_the_torch_operator  # noqa: F401
from vorta_trt.plugins.operator_schema import ROUTED_ATTENTION, Attribute, Kind

_KINDS = {Kind.TRIPLE: "INTS", Kind.INTEGER: "INT", Kind.NUMBER: "FLOAT", Kind.CHOICE: "STRING"}
_FLOATS = ("tensor(float)", "tensor(float16)", "tensor(bfloat16)")


def translation_table() -> dict[Callable[..., Any], Callable[..., Any]]:
    """The `custom_translation_table` of `torch.onnx.export`."""
    return {torch.ops.vorta.routed_attention.default: _translate}


@cache
def operator_schema() -> onnx.defs.OpSchema:
    """ONNX schema of the operator, with which the exporter emits a node and inlines no function."""
    schema = onnx.defs.OpSchema
    optional = schema.FormalParameterOption.Optional
    *tokens, routes, text_length = ROUTED_ATTENTION.inputs

    def declared(attribute: Attribute) -> onnx.defs.OpSchema.Attribute:
        if attribute.default is None:
            kind = getattr(schema.AttrType, _KINDS[attribute.kind])
            return schema.Attribute(attribute.name, kind, attribute.doc, required=True)
        return with_default(attribute.name, attribute.default, attribute.doc)

    def with_default(name: str, value: Any, doc: str) -> onnx.defs.OpSchema.Attribute:
        return schema.Attribute(name, onnx.helper.make_attribute(name, value), doc)

    return schema(
        ROUTED_ATTENTION.name,
        ROUTED_ATTENTION.namespace,
        int(ROUTED_ATTENTION.version),
        doc="VORTA routed attention; see vorta_trt.model.operator",
        inputs=[
            *(schema.FormalParameter(name, "T", "[B, S+T, N, D]") for name in tokens),
            schema.FormalParameter(routes, "tensor(int32)", "[B, N] branch ids"),
            schema.FormalParameter(text_length, "tensor(int32)", "[B] valid text tokens", param_option=optional),
        ],
        outputs=[schema.FormalParameter(ROUTED_ATTENTION.outputs[0], "T", "[B, S+T, N, D]")],
        type_constraints=[("T", list(_FLOATS), "type of query, key, value and output")],
        attributes=[
            *map(declared, ROUTED_ATTENTION.attributes),
            *(with_default(name, value, "picks the plugin") for name, value in ROUTED_ATTENTION.selection.items()),
        ],
    )


def _translate(query: Any, key: Any, value: Any, routes: Any, text_length: Any, *attributes: Any, **named: Any) -> Any:
    """Arguments as in the torch operator's schema; all attributes are written, so that no reader needs the defaults."""
    given = {attribute.name: attribute.default for attribute in ROUTED_ATTENTION.attributes}
    given |= dict(zip(given, attributes, strict=False)) | named
    for attribute in ROUTED_ATTENTION.attributes:
        if attribute.kind is Kind.TRIPLE:
            given[attribute.name] = tuple(given[attribute.name])
    domain = values.Opset(ROUTED_ATTENTION.namespace, int(ROUTED_ATTENTION.version))
    operator = values.Op(domain, ROUTED_ATTENTION.name, operator_schema())
    inputs = (query, key, value, routes) if text_length is None else (query, key, value, routes, text_length)
    return operator(*inputs, **given, **ROUTED_ATTENTION.selection)
