# SPDX-License-Identifier: Apache-2.0
"""The types of an ONNX file, imposed on a weakly typed network.

TensorRT 8.6 takes the types of a network as a hint: with fp16 allowed it runs any layer in float16 or float32, as it
likes. The model needs some layers in float32 (norms, modulation, router, timestep path, the sums of the residual
stream). So this module sets the output types of every layer. It also sets the type that a layer computes in, if that is
float32 or if the layer is a matrix product.

Tensors keep their ONNX names, by which their types are found. The parser also inserts layers whose tensors have no ONNX
name; such a tensor takes the type of the input that it is computed from.
"""

from __future__ import annotations

from typing import Any

from vorta_trt.engines.network import data_type, layers, tensorrt_type
from vorta_trt.export.onnx_file import OnnxFile

FLOATS = ("float32", "float16")

# Layers whose types are left alone: constants have a fixed type, casts state theirs, a plugin chooses its own, and the
# others compute shapes.
SETTLED = ("CONSTANT", "CAST", "IDENTITY", "PLUGIN_V2", "SHAPE", "ASSERTION", "CONDITION")

# The only float16 layers whose compute type is set: without that, they widened their weights to float32 on an H100. For
# other float16 layers only the output types are set: if TensorRT 8.6 is told to compute a sigmoid in float16, it builds
# an ill-typed graph and finds no kernel for it.
PRODUCTS = ("MATRIX_MULTIPLY", "CONVOLUTION")


# The reshape between a product and a softmax is left alone: with the logits of 30 routers and more, TensorRT 8.6 makes
# one graph of all of them, and refuses it ("Mismatched type ... f16 vs. expected type:f32") if these reshapes are told
# to stay in float32. The types of the product before it and of the softmax after it are set; between these two, logits
# may be rounded to float16.
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
