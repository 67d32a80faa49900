# SPDX-License-Identifier: Apache-2.0
"""FunctionProto of ``vorta::RoutedAttention``, to be carried by every model that has the node.

TensorRT replaces the node by the plugin; ONNX Runtime and every other ONNX tool run this function instead.
"""

from __future__ import annotations

from functools import cache

import onnx
import onnx_ir as ir
from onnx_ir.passes.common import InlinePass, NameFixPass
from onnxscript import OnnxFunction

from vorta_trt.export import branch_policies, portable_operator
from vorta_trt.export.names import OPSET
from vorta_trt.plugins.operator_schema import ROUTED_ATTENTION

_DOC = "VORTA routed attention (arXiv 2505.18809) in standard operators. TensorRT takes the plugin instead."


def routed_attention_function(text: bool) -> onnx.FunctionProto:
    """The function to append to a model.

    Few tools can pass a missing optional input into a function, so a model whose self-attention has no text tokens
    carries a function that has no such input.

    Args:
        text: Whether the model's nodes have the last input, `text_length`.
    """
    function = onnx.FunctionProto()
    function.ParseFromString(_serialized_function(text))
    return function


@cache
def _serialized_function(text: bool) -> bytes:
    face = portable_operator.operator
    functions = {
        value.name: ir.serde.deserialize_function(value.to_function_proto())
        for module in (branch_policies, portable_operator)
        for value in vars(module).values()
        if isinstance(value, OnnxFunction)
    }
    nothing = ir.Graph(
        [],
        [],
        nodes=[],
        opset_imports={"": OPSET, ROUTED_ATTENTION.namespace: int(ROUTED_ATTENTION.version)},
        name="nothing",
    )
    model = ir.Model(nothing, ir_version=10, functions=list(functions.values()))
    inline_helpers = InlinePass(lambda function: function.name != face.name)
    ir.passes.Sequential(inline_helpers, NameFixPass())(model)  # NameFix: no two subgraphs may share a name

    function = model.functions[ROUTED_ATTENTION.namespace, face.name, ""]
    for node in function.all_nodes():
        for value in node.outputs:
            value.shape = None  # onnxscript takes the annotation INT64 for a scalar
    proto = ir.serde.serialize_function(function)
    proto.name = ROUTED_ATTENTION.name
    proto.doc_string = _DOC
    del proto.opset_import[:]  # no helper of our own domain is left
    proto.opset_import.add(domain="", version=OPSET)
    if not text:
        *_, text_length = ROUTED_ATTENTION.inputs
        proto.input.remove(text_length)
        zero = onnx.helper.make_tensor("zero", onnx.TensorProto.INT32, [], [0])
        nodes = [
            onnx.helper.make_node("Shape", [proto.input[0]], ["batch"], start=0, end=1),
            onnx.helper.make_node("Constant", [], ["no_text"], value=zero),
            onnx.helper.make_node("Expand", ["no_text", "batch"], [text_length]),  # [B]
            *proto.node,
        ]
        del proto.node[:]
        proto.node.extend(nodes)
    serialized: bytes = proto.SerializeToString(deterministic=True)
    return serialized
