# SPDX-License-Identifier: Apache-2.0
"""What the executors must know of an ONNX file: its inputs and outputs, and whether it can run without TensorRT."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vorta_trt.runtime.tensors import TensorSpec

if TYPE_CHECKING:
    import onnx

    from vorta_trt.export.onnx_file import OnnxFile

NOT_PORTABLE = (
    "has no portable form of vorta::RoutedAttention, as files of opset 17 for TensorRT 8.6 have none; export the model "
    "without --opset to run it here"
)


def check_portable(file: OnnxFile) -> None:
    """ValueError for a file that only TensorRT with the plugin runs."""
    if not file.is_portable:
        raise ValueError(f"{file.path}: {NOT_PORTABLE}")


def graph_specs(model: onnx.ModelProto) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Specs of the graph's inputs and outputs, in the file's order."""
    return tuple(map(_spec, model.graph.input)), tuple(map(_spec, model.graph.output))


def needs_bfloat16(model: onnx.ModelProto) -> bool:
    """Whether weights or inputs are bfloat16, for which ONNX Runtime's CPU provider lacks kernels (Conv, for one)."""
    import onnx

    bfloat16 = onnx.TensorProto.BFLOAT16
    if any(initializer.data_type == bfloat16 for initializer in model.graph.initializer):
        return True
    return any(value.type.tensor_type.elem_type == bfloat16 for value in model.graph.input)


def _spec(value: onnx.ValueInfoProto) -> TensorSpec:
    import onnx

    tensor = value.type.tensor_type
    shape = tuple(
        dim.dim_value if dim.HasField("dim_value") else dim.dim_param or f"axis{axis}"
        for axis, dim in enumerate(tensor.shape.dim)
    )
    known = tensor.elem_type != onnx.TensorProto.UNDEFINED
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name if known else "undefined"
    return TensorSpec(value.name, dtype, shape)
