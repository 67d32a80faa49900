# SPDX-License-Identifier: Apache-2.0
"""Linear layers over tokens, with their bias, as convolutions of extent 1, for TensorRT 8.6.

TensorRT 8.6 gathers matrix products with the elementwise work around them, and at optimization level 0, the one that
builds in minutes, takes slow kernels for them there. A convolution it leaves alone. Seen on an H100 in float16,
[72000, 5120] x [5120, 5120]: 270 TFLOP/s gathered, 754 as a convolution over [72000, 5120, 1, 1], which moves nothing.

Letters: B batch, S tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir

from vorta_trt.export.names import KERNEL, TRANSPOSED

Constant = Callable[[np.ndarray[Any, Any]], ir.Value]


def linear_layers_as_convolutions(graph: ir.Graph, constant: Constant) -> None:
    """Rewrites products [B, S, in] x [in, out] in float16 whose second factor is a parameter, stored transposed.

    Args:
        graph: its parameters are inputs; a rewritten one gets the suffix `KERNEL` in place of `TRANSPOSED`.
        constant: gives an initializer of that content.
    """
    inputs = {value.name: value for value in graph.inputs}
    for node in list(graph):
        if (node.domain, node.op_type) != ("", "MatMul"):
            continue
        tokens, weight = node.inputs
        if not _is_linear(tokens, weight, inputs):
            continue
        assert tokens is not None and weight is not None and tokens.shape is not None and weight.shape is not None
        kernel = _kernel_of(weight, graph, inputs)
        rows, (width, outputs) = tokens.shape[1], weight.shape
        bias = _bias(node, inputs)
        last = node if bias is None else bias[0]
        flat = _node("Reshape", [tokens, constant(np.array([-1, width, 1, 1], np.int64))])
        factors = [flat.outputs[0], kernel, *([] if bias is None else [bias[1]])]
        product = _node("Conv", factors, {"kernel_shape": [1, 1]})
        shaped = _node("Reshape", [product.outputs[0], constant(np.array([-1, rows, outputs], np.int64))])
        made = [flat, product, shaped]
        for each in made:
            each.metadata_props.update(node.metadata_props)  # the module that it belongs to
        old = [node] if last is node else [node, last]
        ir.convenience.replace_nodes_and_values(graph, node, old, made, list(last.outputs), list(shaped.outputs))
        if not weight.uses():
            graph.inputs.remove(weight)


def _is_linear(tokens: ir.Value | None, weight: ir.Value | None, inputs: dict[str | None, ir.Value]) -> bool:
    if tokens is None or weight is None or tokens.shape is None or tokens.dtype != ir.DataType.FLOAT16:
        return False
    stored = weight.name in inputs and (weight.name or "").endswith(TRANSPOSED)
    return stored and len(tokens.shape) == 3 and isinstance(tokens.shape[1], int)


def _kernel_of(weight: ir.Value, graph: ir.Graph, inputs: dict[str | None, ir.Value]) -> ir.Value:
    """The parameter as [out, in, 1, 1]."""
    assert weight.name is not None and weight.shape is not None
    name = weight.name.removesuffix(TRANSPOSED) + KERNEL
    if name not in inputs:
        inputs[name] = ir.Value(name=name, shape=ir.Shape([*reversed(weight.shape), 1, 1]), type=weight.type)
        graph.inputs.append(inputs[name])
    return inputs[name]


def _bias(product: ir.Node, inputs: dict[str | None, ir.Value]) -> tuple[ir.Node, ir.Value] | None:
    """The addition behind a product and the parameter [out] that it adds, if nothing else reads the product."""
    uses = list(product.outputs[0].uses())
    if len(uses) != 1 or (uses[0][0].domain, uses[0][0].op_type) != ("", "Add"):
        return None
    addition = uses[0][0]
    other = addition.inputs[1 - uses[0][1]]
    if other is None or other.name not in inputs or other.shape is None or len(other.shape) != 1:
        return None
    return addition, other


def _node(operator: str, inputs: list[ir.Value], attributes: dict[str, Any] | None = None) -> ir.Node:
    node = ir.node(operator, inputs, attributes or {})
    node.outputs[0].dtype = ir.DataType.FLOAT16
    return node
