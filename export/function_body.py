# SPDX-License-Identifier: Apache-2.0
"""FunctionProtos of the operators, each to be carried by every model that has its nodes.

TensorRT replaces a node by the plugin; ONNX Runtime and every other ONNX tool run this function instead.
"""

from __future__ import annotations

from functools import cache
from types import ModuleType

import onnx
import onnx_ir as ir
from onnx_ir.passes.common import InlinePass, NameFixPass
from onnxscript import OnnxFunction

from vorta_trt.export import branch_policies, portable_block_operators, portable_operator
from vorta_trt.export.names import OPSET
from vorta_trt.plugins.operator_schema import ROUTED_ATTENTION

_DOC = "VORTA routed attention (arXiv 2505.18809) in standard operators. TensorRT takes the plugin instead."
_BLOCK_DOC = "{} of a transformer block in standard operators. TensorRT may take the plugin instead."


def portable_function(name: str, text: bool = False) -> onnx.FunctionProto:
    """The function of an operator, to be carried by every model that has its nodes.

    Few tools can pass a missing optional input into a function, so a model whose self-attention has no text tokens
    carries a function of RoutedAttention that has no such input.

    Args:
        name: Name of the operator.
        text: Whether RoutedAttention's nodes have the last input, `text_length`.
    """
    if name == ROUTED_ATTENTION.name:
        return routed_attention_function(text)
    function = onnx.FunctionProto()
    function.ParseFromString(_serialized_function(portable_block_operators, name, _BLOCK_DOC.format(name)))
    return function


def routed_attention_function(text: bool) -> onnx.FunctionProto:
    """`portable_function` of RoutedAttention."""
    function = onnx.FunctionProto()
    function.ParseFromString(_serialized_function(portable_operator, portable_operator.operator.name, _DOC))
    function.name = ROUTED_ATTENTION.name
    if not text:
        *_, text_length = ROUTED_ATTENTION.inputs
        function.input.remove(text_length)
        zero = onnx.helper.make_tensor("zero", onnx.TensorProto.INT32, [], [0])
        nodes = [
            onnx.helper.make_node("Shape", [function.input[0]], ["batch"], start=0, end=1),
            onnx.helper.make_node("Constant", [], ["no_text"], value=zero),
            onnx.helper.make_node("Expand", ["no_text", "batch"], [text_length]),  # [B]
            *function.node,
        ]
        del function.node[:]
        function.node.extend(nodes)
    return function


@cache
def _serialized_function(module: ModuleType, name: str, doc: str) -> bytes:
    """A function of a module as serialized FunctionProto, with all calls of other functions inlined."""
    functions = {
        value.name: ir.serde.deserialize_function(value.to_function_proto())
        for source in (branch_policies, module)
        for value in vars(source).values()
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
    inline_helpers = InlinePass(lambda function: function.name != name)
    ir.passes.Sequential(inline_helpers, NameFixPass())(model)  # NameFix: no two subgraphs may share a name

    function = model.functions[ROUTED_ATTENTION.namespace, name, ""]
    for node in function.all_nodes():
        for value in node.outputs:
            value.shape = None  # onnxscript takes the annotation INT64 for a scalar
    proto = ir.serde.serialize_function(function)
    proto.doc_string = doc
    del proto.opset_import[:]  # no helper of our own domain is left
    proto.opset_import.add(domain="", version=OPSET)
    serialized: bytes = proto.SerializeToString(deterministic=True)
    return serialized
