# SPDX-License-Identifier: Apache-2.0
"""The types of an ONNX file, imposed on a weakly typed network.

TensorRT 8.6 takes the types of a network as a hint: with fp16 allowed it runs any layer in float16 or float32, as it
likes. The model wants some in float32 (norms, modulation, router, timestep path, the sums of the residual stream), so
every layer is told the types of its outputs, and the type that it computes in where that is float32 or where it is a
matrix product.

Tensors keep their ONNX names. Layers that the parser puts in between have tensors without one; those take the type of
what they are computed from.
"""

from __future__ import annotations

from typing import Any

from vorta_trt.engines.network import data_type, layers, tensorrt_type
from vorta_trt.export.onnx_file import OnnxFile

FLOATS = ("float32", "float16")

# Layers whose types are not chosen: constants have theirs, casts are told theirs, a plugin answers for itself, and the
# others compute shapes.
SETTLED = ("CONSTANT", "CAST", "IDENTITY", "PLUGIN_V2", "SHAPE", "ASSERTION", "CONDITION")

# Of the layers in float16, only these are told to compute in it: on an H100 they widened their weights to float32 when
# they were not. Of the others only the outputs are fixed: told to compute a sigmoid in float16, TensorRT 8.6 builds an
# ill-typed graph and finds no kernel for it.
PRODUCTS = ("MATRIX_MULTIPLY", "CONVOLUTION")


# The reshape between a product and a softmax is left alone: with the logits of 30 routers and more, TensorRT 8.6 makes
# one graph of all of them, and refuses it ("Mismatched type ... f16 vs. expected type:f32") if these reshapes are told
# to stay in float32. The product before and the softmax behind are told; in between, logits may be rounded to float16.
RESHAPE, SOFTMAX = "SHUFFLE", "SOFTMAX"


def impose_types(trt: Any, network: Any, onnx: OnnxFile) -> None:
    """Sets precision and output types of every layer that computes floats, as the ONNX file has them."""
    stated = onnx.value_types()
    known: dict[str, str] = {}
    normalized = _softmax_inputs(network)
    for layer in layers(network):
        inputs = [tensor for index in range(layer.num_inputs) if (tensor := layer.get_input(index)) is not None]
        outputs = [layer.get_output(index) for index in range(layer.num_outputs)]
        for tensor in inputs:
            known.setdefault(tensor.name, stated.get(tensor.name, data_type(tensor.dtype)))
        computed_from = next((known[tensor.name] for tensor in inputs if known[tensor.name] in FLOATS), None)
        for tensor in outputs:
            own: str = data_type(tensor.dtype)
            if own in FLOATS and computed_from is not None and layer.type.name not in SETTLED:
                own = computed_from
            known[tensor.name] = stated.get(tensor.name, own)
        reshapes_logits = layer.type.name == RESHAPE and any(tensor.name in normalized for tensor in outputs)
        if layer.type.name not in SETTLED and not reshapes_logits:
            _impose(trt, layer, computed_from, [known[tensor.name] for tensor in outputs])


def _softmax_inputs(network: Any) -> set[str]:
    """Names of the tensors that a softmax reads."""
    return {layer.get_input(0).name for layer in layers(network) if layer.type.name == SOFTMAX}


def _impose(trt: Any, layer: Any, computed_from: str | None, outputs: list[str]) -> None:
    for index, output in enumerate(outputs):
        if output in FLOATS:
            layer.set_output_type(index, tensorrt_type(trt, output))
    # A comparison has no float output, and shall compare in the type of its inputs.
    precision = next((output for output in outputs if output in FLOATS), computed_from)
    if precision == "float16" and layer.type.name not in PRODUCTS:
        return
    if precision is not None:
        layer.precision = tensorrt_type(trt, precision)
