# SPDX-License-Identifier: Apache-2.0
"""Translation of the torch operators to ONNX nodes: `torch.ops.vorta.routed_attention` to `vorta::RoutedAttention`."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import onnx
import torch
from onnxscript import values

from vorta_trt.model import block_operators as _registers_block_operators  # noqa: F401
from vorta_trt.model import operator as _registers_the_torch_operator  # noqa: F401
from vorta_trt.model.parallel import ulysses_attention as _registers_ulysses_attention  # noqa: F401
from vorta_trt.plugins.operator_schema import (
    OPERATORS,
    Attribute,
    Element,
    Kind,
    Operator,
    OperatorTensor,
)

_KINDS = {Kind.TRIPLE: "INTS", Kind.INTEGER: "INT", Kind.NUMBER: "FLOAT", Kind.CHOICE: "STRING"}
_FLOATS = ("tensor(float)", "tensor(float16)", "tensor(bfloat16)")
_FLOAT8 = ("tensor(float8e4m3fn)", "tensor(int32)")
_TYPES = {
    Element.TOKENS: ("T", _FLOATS, "type of the tokens"),
    Element.WEIGHT: ("W", _FLOATS, "type of the tokens, or float32"),
    Element.FLOAT8: ("Q", _FLOAT8, "e4m3, or four of them in an int32"),
    Element.FLOAT8_TOKENS: ("R", _FLOAT8, "e4m3, or four of them in an int32"),
}
_PLAIN_TYPES = {Element.FLOAT32: "tensor(float)", Element.INT32: "tensor(int32)"}


def translation_table() -> dict[Callable[..., Any], Callable[..., Any]]:
    """The `custom_translation_table` of `torch.onnx.export`."""
    return {
        getattr(torch.ops.vorta, operator.torch_name).default: _translation(operator) for operator in OPERATORS.values()
    }


@cache
def operator_schema(operator: Operator) -> onnx.defs.OpSchema:
    """ONNX schema of an operator, with which the exporter emits a node and inlines no function."""
    schema = onnx.defs.OpSchema
    tensors = (*operator.input_tensors, *operator.output_tensors)

    def declared(attribute: Attribute) -> onnx.defs.OpSchema.Attribute:
        if attribute.default is None:
            kind = getattr(schema.AttrType, _KINDS[attribute.kind])
            return schema.Attribute(attribute.name, kind, attribute.doc, required=True)
        return with_default(attribute.name, attribute.default, attribute.doc)

    def with_default(name: str, value: Any, doc: str) -> onnx.defs.OpSchema.Attribute:
        return schema.Attribute(name, onnx.helper.make_attribute(name, value), doc)

    def parameter(tensor: OperatorTensor) -> onnx.defs.OpSchema.FormalParameter:
        constrained = _TYPES.get(tensor.element)
        kind = _PLAIN_TYPES[tensor.element] if constrained is None else constrained[0]
        option = schema.FormalParameterOption.Optional if tensor.optional else schema.FormalParameterOption.Single
        return schema.FormalParameter(tensor.name, kind, tensor.shape, param_option=option)

    constraints = [_TYPES[element] for element in _TYPES if any(tensor.element is element for tensor in tensors)]
    return schema(
        operator.name,
        operator.namespace,
        int(operator.version),
        doc=operator.doc,
        inputs=[*map(parameter, operator.input_tensors)],
        outputs=[*map(parameter, operator.output_tensors)],
        type_constraints=[(letter, list(types), doc) for letter, types, doc in constraints],
        attributes=[
            *map(declared, operator.attributes),
            *(with_default(name, value, "picks the plugin") for name, value in operator.selection.items()),
        ],
    )


def _translation(operator: Operator) -> Callable[..., Any]:
    """Makes the function that translates a call; its arguments are those of the torch operator's schema."""

    def translate(*arguments: Any, **named: Any) -> Any:
        inputs, attributes = arguments[: len(operator.inputs)], arguments[len(operator.inputs) :]
        # All attributes are written, so that no reader needs the defaults.
        given = {attribute.name: attribute.default for attribute in operator.attributes}
        given |= dict(zip(given, attributes, strict=False)) | named
        for attribute in operator.attributes:
            if attribute.kind is Kind.TRIPLE:
                given[attribute.name] = tuple(given[attribute.name])
        present = [value for value in inputs if value is not None]  # optional ones are the last
        domain = values.Opset(operator.namespace, int(operator.version))
        return values.Op(domain, operator.name, operator_schema(operator))(*present, **given, **operator.selection)

    return translate
