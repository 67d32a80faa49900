# SPDX-License-Identifier: Apache-2.0
"""Gives a traced graph its weights, each loaded at the moment it is written and dropped again."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import onnx_ir as ir
import torch
from onnx_ir import tensor_adapters
from torch import Tensor

from vorta_trt.export.names import TRANSPOSED
from vorta_trt.export.skeleton import Weight


def attach_weights(graph: ir.Graph, weights: Mapping[str, Weight]) -> None:
    """Turns the inputs that stand for parameters into initializers that load their value when they are read."""
    for value in [value for value in graph.inputs if _parameter(value) in weights]:
        name = _parameter(value)
        assert value.name is not None and value.shape is not None
        transposed, packed = value.name != name, value.dtype == ir.DataType.INT32  # no parameter of a model is an int32
        value.const_value = ir.LazyTensor(
            _reader(weights[name].load, transposed, packed),
            dtype=ir.DataType.INT32 if packed else tensor_adapters.from_torch_dtype(weights[name].dtype),
            shape=value.shape,
            name=value.name,
        )
        graph.inputs.remove(value)
        graph.register_initializer(value)


def _parameter(value: ir.Value) -> str:
    return (value.name or "").removesuffix(TRANSPOSED)


def _reader(load: Callable[[], Tensor], transposed: bool, packed: bool) -> Callable[[], ir.TensorProtocol]:
    def read() -> ir.TensorProtocol:
        tensor = load()
        tensor = (tensor.t() if transposed else tensor).contiguous()
        return tensor_adapters.TorchTensor(tensor.view(torch.int32) if packed else tensor)

    return read
