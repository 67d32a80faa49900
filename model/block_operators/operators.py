# SPDX-License-Identifier: Apache-2.0
"""`torch.ops.vorta.linear` and the other block operators as torch sees them, made from the operators' table.

On the CPU they are the references (float32 inside, rounded once at each output); on CUDA the kernels of libvorta_trt,
in float16 and bfloat16, on the current stream. They trace (fake tensors, torch.export, torch.compile). They have no
gradient: routers are trained on torch's own operators.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.library import custom_op

from vorta_trt.model.block_operators import kernels, references
from vorta_trt.model.block_operators.checks import check_arguments
from vorta_trt.plugins.operator_schema import BLOCK_OPERATORS, Operator


def torch_schema(operator: Operator) -> str:
    """The signature in torch's language: tensors, then attributes, none with a default."""
    arguments = [f"Tensor {name}" for name in operator.inputs]
    arguments += [f"{attribute.kind.value} {attribute.name}" for attribute in operator.attributes]
    outputs = ", ".join("Tensor" for _ in operator.outputs)
    return f"({', '.join(arguments)}) -> {outputs if len(operator.outputs) == 1 else f'({outputs})'}"


def _checked(operator: Operator, implementation: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps an implementation with the checks of its arguments."""
    count, names = len(operator.inputs), [attribute.name for attribute in operator.attributes]

    def call(*arguments: Any) -> Any:
        check_arguments(operator, arguments[:count], dict(zip(names, arguments[count:], strict=True)))
        return implementation(*arguments)

    return call


def _in_heads(tokens: Tensor, heads: int) -> Tensor:
    return tokens.new_empty((*tokens.shape[:2], heads, tokens.shape[2] // heads))


def _quantized(tokens: Tensor, more: int = 0) -> tuple[Tensor, Tensor]:
    """Empty outputs of the quantisation of tokens [B, X, E] that have `more` further features."""
    scale = tokens.new_empty(tokens.shape[:2], dtype=torch.float32)
    return tokens.new_empty((*tokens.shape[:2], tokens.shape[2] + more), dtype=references.FLOAT8), scale


_FAKES: dict[str, Callable[..., Any]] = {
    "qk_norm_rotary": lambda query, key, *rest: (_in_heads(query, rest[-2]), _in_heads(key, rest[-2])),
    "head_norm": lambda tokens, weight, heads, epsilon: _in_heads(tokens, heads),
    "norm_modulate": lambda tokens, *rest: tokens.new_empty(tokens.shape),
    "residual_norm_modulate": lambda residual, *rest: (
        residual.new_empty(residual.shape),
        residual.new_empty(residual.shape),
    ),
    "quantize": _quantized,
    "joined_quantize": lambda first, second: _quantized(first, second.shape[2]),
    "norm_modulate_quantize": lambda tokens, *rest: _quantized(tokens),
    "residual_norm_modulate_quantize": lambda residual, *rest: (
        residual.new_empty(residual.shape),
        *_quantized(residual),
    ),
    "linear": lambda tokens, weight, *rest: tokens.new_empty((*tokens.shape[:2], weight.shape[0])),
    "joined_linear": lambda first, second, weight, *rest: first.new_empty((*first.shape[:2], weight.shape[0])),
    "fp8_linear": lambda tokens, scale, weight, weight_scale, bias, activation: bias.new_empty(
        (*tokens.shape[:2], weight.shape[0])
    ),
    "cross_attention": lambda query, *rest: query.new_empty(query.shape),
}


def _register(operator: Operator) -> None:
    name = operator.torch_name
    defined = custom_op(
        f"{operator.namespace}::{name}",
        _checked(operator, getattr(references, name)),
        mutates_args=(),
        device_types="cpu",
        schema=torch_schema(operator),
    )
    defined.register_fake(_FAKES[name])
    defined.register_kernel("cuda")(_checked(operator, getattr(kernels, name)))


for _operator in BLOCK_OPERATORS:
    _register(_operator)
