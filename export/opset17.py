# SPDX-License-Identifier: Apache-2.0
"""Lowers a graph of opset 23 to the operators of opset 17, the newest that TensorRT 8.6 reads.

The following is rewritten, because opset 17 lacks it or because TensorRT 8.6 handles it badly:

- `RMSNormalization` as x / sqrt(mean(x^2) + epsilon) * scale, in float32 (see `graph_passes`).
- `Gelu`, tanh form, as x * sigmoid(x * (2a + 2ab x^2)) with a = sqrt(2 / pi), b = 0.044715: the same function, without
  the cancellation of 1 + tanh in half types; overflow inside ends in a sigmoid of 0 or 1. The exact form as
  x / 2 * (1 + erf(x / sqrt(2))) in float32.
- The axes of a reduction as an attribute.
- `Shape` of some axes as a choice from all of them.
- `Squeeze` and `Unsqueeze` as `Reshape` to a constant shape: TensorRT 8.6 would compute that shape in the engine.
- Weights and tokens in e4m3, a type of opset 19, as int32 with four in each, as the plugins take and leave them.
- `Attention` as two products around a softmax. Its score matrix is the largest tensor of the model, so rows of queries
  are taken in parts: none has more than `MOST_SCORES` scores per sample. A boolean mask becomes a number that is added
  to the scores: 0, or half of the least finite number.

Letters: B batch, N heads, S queries, X keys, D head dimension.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

from vorta_trt.export.errors import ExportError
from vorta_trt.export.names import OPSET_17
from vorta_trt.plugins.operator_schema import OPERATORS, ROUTED_ATTENTION, Element

IR_VERSION = 8  # IR version of the ONNX release that brought opset 17
# TensorRT 8 counts elements in 32 bits. A quarter of that leaves room for a batch of 3.
MOST_SCORES = 1 << 29

# Reductions whose axes became an input after opset 17; ReduceSum's axes were an input before.
_REDUCTIONS = ("ReduceL2", "ReduceMax", "ReduceMean", "ReduceMin")
_PER_INT32 = 4  # numbers of 8 bits
_FLOAT8 = (Element.FLOAT8, Element.FLOAT8_TOKENS)

# Attributes of later opsets: those of Cast have no effect on the types in use, those of Resize have their defaults.
_NEWER_ATTRIBUTES = {"Cast": ("saturate", "round_mode"), "Resize": ("antialias", "keep_aspect_ratio_policy")}

Rules = dict[str, Callable[[ir.Node], Sequence[ir.Node]]]


def lower_to_opset_17(model: ir.Model) -> None:
    """Rewrites the main graph in place. Every value has a type afterwards, because a builder has to be told the types.

    Raises:
        ExportError: An operator has a form that no rule covers, or a value has no type.
    """
    graph = model.graph
    ShapeInferencePass()(model)  # the rules go by shapes
    lowering = _Lowering(graph)
    lowering.run(lowering.rules)
    for node in graph:
        for name in _NEWER_ATTRIBUTES.get(node.op_type, ()) if not node.domain else ():
            node.attributes.pop(name, None)
    _pack_float8(graph)
    graph.opset_imports[""] = OPSET_17
    model.ir_version = IR_VERSION
    ShapeInferencePass()(model)
    if untyped := [value.name for node in graph for value in node.outputs if value.dtype is None]:
        raise ExportError(f"values {untyped[:3]} have no type after lowering to opset {OPSET_17}; please report it")


def write_out_attention(model: ir.Model) -> None:
    """Replaces `Attention` only, as above: TensorRT refuses it for head dimensions that its own kernels do not take."""
    graph = model.graph
    # Without the check of types: ONNX has no SplitToSequence of bfloat16, and the check would stop all inference.
    ShapeInferencePass(check_type=False)(model)
    lowering = _Lowering(graph)
    lowering.run({"Attention": lowering.attention})


def _pack_float8(graph: ir.Graph) -> None:
    """Turns e4m3 tensors of our operators into int32 [..., K / 4]; weights are inputs here (see `tracing.trace`)."""
    for node in graph:
        if node.domain != ROUTED_ATTENTION.namespace:
            continue
        operator = OPERATORS[node.op_type]
        for values, tensors in ((node.inputs, operator.input_tensors), (node.outputs, operator.output_tensors)):
            for value, tensor in zip(values, tensors, strict=False):  # optional inputs are the last
                if value is None or tensor.element not in _FLOAT8 or value.dtype == ir.DataType.INT32:
                    continue
                assert value.shape is not None and isinstance(value.shape[-1], int)
                packed = ir.Shape([*value.shape[:-1], value.shape[-1] // _PER_INT32])
                value.dtype, value.shape = ir.DataType.INT32, packed


class _Lowering:
    def __init__(self, graph: ir.Graph) -> None:
        self.graph = graph
        self.constants: dict[tuple[bytes, str, tuple[int, ...]], ir.Value] = {}

    @property
    def rules(self) -> Rules:
        return {
            "RMSNormalization": self.rms_normalization,
            "LayerNormalization": self.layer_normalization,
            "Gelu": self.gelu,
            "Attention": self.attention,
            "Split": self.split,
            "Shape": self.shape,
            "Resize": self.resize,
            **dict.fromkeys(_REDUCTIONS, self.reduction),
            "Squeeze": self.reshape,
            "Unsqueeze": self.reshape,
        }

    def run(self, rules: Rules) -> None:
        for node in list(self.graph):
            if node.domain:
                continue
            if node.op_type in rules and (new := rules[node.op_type](node)):
                for made in new:
                    made.metadata_props.update(node.metadata_props)  # the module that it belongs to
                ir.convenience.replace_nodes_and_values(
                    self.graph, node, [node], new, list(node.outputs), list(new[-1].outputs)
                )

    # -- Rules: each returns the nodes that replace a node, the last with its outputs; no nodes if it may stay ---------

    def rms_normalization(self, node: ir.Node) -> list[ir.Node]:
        tokens, scale = _inputs(node)
        _require(node, _axis(node) in (-1, _rank(tokens) - 1), "normalizes the last axis")
        epsilon = node.attributes.get_float("epsilon", 1e-5)
        square = _apply("Mul", tokens, tokens)
        mean = ir.node("ReduceMean", [square.outputs[0]], {"axes": [-1], "keepdims": 1})
        raised = _apply("Add", mean, self.scalar(epsilon, tokens))
        root = _apply("Sqrt", raised)
        normed = _apply("Div", tokens, root)
        return _typed(tokens, [square, mean, raised, root, normed, _apply("Mul", normed, scale)])

    def layer_normalization(self, node: ir.Node) -> list[ir.Node]:
        """Adds a bias of zeros if there is none: TensorRT 8.6 adds a scalar, but wants a bias of the scale's shape."""
        if len(node.inputs) > 2 and node.inputs[2] is not None:
            return []
        tokens, scale = _inputs(node)
        bias = self.constant(np.zeros(_sizes(scale), _numpy(scale)))
        return _typed(tokens, [ir.node("LayerNormalization", [tokens, scale, bias], node.attributes)])

    def gelu(self, node: ir.Node) -> list[ir.Node]:
        (x,) = _inputs(node)
        form = node.attributes.get_string("approximate", "none")
        _require(node, form in ("none", "tanh"), "is exact or approximates by tanh")
        if form == "none":
            return self.exact_gelu(x)
        slope = 2 * math.sqrt(2 / math.pi)
        square = _apply("Mul", x, x)
        curved = _apply("Mul", square, self.scalar(slope * 0.044715, x))
        raised = _apply("Add", curved, self.scalar(slope, x))
        steep = _apply("Mul", raised, x)
        gate = _apply("Sigmoid", steep)
        return _typed(x, [square, curved, raised, steep, gate, _apply("Mul", gate, x)])

    def exact_gelu(self, x: ir.Value) -> list[ir.Node]:
        assert x.dtype is not None
        wide = ir.node("Cast", [x], {"to": ir.DataType.FLOAT})
        wide.outputs[0].dtype = ir.DataType.FLOAT
        like = wide.outputs[0]
        scaled = _apply("Mul", wide, self.scalar(math.sqrt(0.5), like))
        error = _apply("Erf", scaled)
        raised = _apply("Add", error, self.scalar(1.0, like))
        halved = _apply("Mul", raised, self.scalar(0.5, like))
        product = _apply("Mul", wide, halved)
        narrowed = ir.node("Cast", [product.outputs[0]], {"to": x.dtype})
        return [*_typed(like, [wide, scaled, error, raised, halved, product]), *_typed(x, [narrowed])]

    def split(self, node: ir.Node) -> list[ir.Node]:
        """Gives a Split into equal parts their sizes as an input: TensorRT 8.6 would compute them in the engine."""
        if len(_inputs(node)) > 1:
            return []
        (tensor,) = _inputs(node)
        axis = node.attributes.get_int("axis", 0)
        size = _sizes(tensor)[axis]
        _require(node, size % len(node.outputs) == 0, "makes equal parts")
        parts = self.constant(np.full(len(node.outputs), size // len(node.outputs), np.int64))
        return _typed(tensor, [ir.node("Split", [tensor, parts], {"axis": axis}, num_outputs=len(node.outputs))])

    def reduction(self, node: ir.Node) -> list[ir.Node]:
        """Makes the axes an attribute, as opset 17 has them."""
        tensor, *axes = _inputs(node)
        if not axes:
            return []
        (given,) = axes
        _require(node, given.const_value is not None, "has constant axes")
        assert given.const_value is not None
        attributes = {
            "axes": given.const_value.numpy().flatten().tolist(),
            "keepdims": node.attributes.get_int("keepdims", 1),
        }
        return _typed(tensor, [ir.node(node.op_type, [tensor], attributes)])

    def resize(self, node: ir.Node) -> list[ir.Node]:
        """Stays: without the attributes of later opsets it is the same."""
        attributes = node.attributes
        _require(node, attributes.get_int("antialias", 0) == 0, "has no anti-aliasing")
        policy = attributes.get_string("keep_aspect_ratio_policy", "stretch")
        _require(node, policy == "stretch" and "axes" not in attributes, "resizes all axes, each by its own factor")
        return []

    def shape(self, node: ir.Node) -> list[ir.Node]:
        """Replaces a Shape of some axes: TensorRT 8.6 ignores `start` and `end`, and gives all axes."""
        (tensor,) = _inputs(node)
        axes = range(_rank(tensor))
        first, end = node.attributes.get_int("start", 0), node.attributes.get_int("end", len(axes))
        if (wanted := axes[first:end]) == axes:
            return []
        every = ir.node("Shape", [tensor])
        every.outputs[0].shape = ir.Shape([len(axes)])
        indices = self.constant(np.array(wanted, np.int64))
        picked = ir.node("Gather", [every.outputs[0], indices], {"axis": 0})
        return _typed(indices, [every, picked])

    def reshape(self, node: ir.Node) -> list[ir.Node]:
        """Replaces Squeeze and Unsqueeze by a Reshape to a constant shape, in which at most the batch is dynamic."""
        shape = node.outputs[0].shape
        if shape is None or sum(not isinstance(extent, int) for extent in shape) > 1:
            return []
        sizes = [extent if isinstance(extent, int) else -1 for extent in shape]
        (tensor, *_) = _inputs(node)
        return _typed(tensor, [ir.node("Reshape", [tensor, self.constant(np.array(sizes, np.int64))])])

    def attention(self, node: ir.Node) -> list[ir.Node]:
        query, key, value, *masks = _inputs(node)  # [B, N, S, D], [B, N, X, D], [B, N, X, D], bool [B, 1, S, X]
        plain = not any(node.attributes.get_int(name, 0) for name in ("is_causal", "qk_matmul_output_mode"))
        _require(node, plain and _rank(query) == 4 and len(masks) <= 1, "has 4 axes, no causal mask and no cache")
        _, heads, rows, head_dim = _sizes(query)
        scale = node.attributes.get_float("scale", 1 / math.sqrt(head_dim))
        turned = ir.node("Transpose", [key], {"perm": [0, 1, 3, 2]})  # [B, N, D, X]
        keys = _apply("Mul", turned, self.scalar(scale, key))  # [B, N, D, X]
        count = _parts(rows, heads * rows * _sizes(key)[2])
        _require(node, not masks or count == 1, f"has at most {MOST_SCORES} scores where it is masked")
        hidden = self.hidden(masks[0], query) if masks and masks[0].dtype == ir.DataType.BOOL else []
        made = [turned, keys, *hidden]
        parts: list[ir.Value] = [query]
        if count > 1:
            sizes = self.constant(np.full(count, rows // count, np.int64))
            made.append(ir.node("Split", [query, sizes], {"axis": 2}, num_outputs=count))
            parts = list(made[-1].outputs)  # [B, N, S / parts, D]
        attended = []
        for part in parts:
            scores = _apply("MatMul", part, keys)  # [B, N, S / parts, X]
            made.append(scores)
            if masks and masks[0].dtype != ir.DataType.BOOL:  # an additive mask
                made.append(_apply("Add", scores, masks[0]))
            elif masks:
                made.append(_apply("Add", scores, hidden[-1]))
            made.append(ir.node("Softmax", [made[-1].outputs[0]], {"axis": -1}))
            made.append(_apply("MatMul", made[-1], value))  # [B, N, S / parts, D]
            attended.append(made[-1].outputs[0])
        if count > 1:
            made.append(ir.node("Concat", attended, {"axis": 2}))  # [B, N, S, D]
        _typed(query, [node for node in made if node not in hidden])
        return made

    def hidden(self, mask: ir.Value, like: ir.Value) -> list[ir.Node]:
        """Bias of the scores: 0 where the mask is true, half of the least finite number elsewhere; [B, 1, 1 or S, X].

        It is computed by float32 arithmetic: TensorRT 8.6 has no implementation of layers that select by a mask.
        """
        producer = mask.producer()
        if producer is not None and producer.op_type == "Expand" and producer.inputs[0] is not None:
            mask = producer.inputs[0]  # the addition broadcasts by itself
        seen = ir.node("Cast", [mask], {"to": ir.DataType.FLOAT})
        exact = seen.outputs[0]
        exact.dtype = ir.DataType.FLOAT
        missing = _apply("Sub", seen, self.scalar(1.0, exact))  # 0 or -1
        largest = float(ml_dtypes.finfo(_numpy(like)).max)  # type: ignore[no-untyped-call]  # of bfloat16, too
        least = _apply("Mul", missing, self.scalar(largest / 2, exact))
        rounded = ir.node("Cast", [least.outputs[0]], {"to": like.dtype})
        return [*_typed(exact, [seen, missing, least]), *_typed(like, [rounded])]

    # -- Constants, without duplicates ---------------------------------------------------------------------------------

    def scalar(self, number: float, like: ir.Value) -> ir.Value:
        return self.constant(np.array(number, _numpy(like)))

    def constant(self, content: np.ndarray[Any, Any]) -> ir.Value:
        key = (content.tobytes(), str(content.dtype), content.shape)
        if key not in self.constants:
            number = len(self.constants)
            while (name := f"lowered_{number}") in self.graph.initializers:  # of an earlier lowering
                number += 1
            value = ir.Value(name=name, const_value=ir.tensor(content, name=name))
            assert value.const_value is not None
            value.shape, value.type = ir.Shape(content.shape), ir.TensorType(value.const_value.dtype)
            self.graph.register_initializer(value)
            self.constants[key] = value
        return self.constants[key]


def _parts(rows: int, scores: int) -> int:
    """The least number of equal parts of `rows` whose share of `scores` is at most MOST_SCORES."""
    least = math.ceil(scores / MOST_SCORES)
    return next(count for count in range(least, rows + 1) if rows % count == 0)


def _apply(operator: str, *inputs: ir.Node | ir.Value) -> ir.Node:
    values = [given.outputs[0] if isinstance(given, ir.Node) else given for given in inputs]
    return ir.node(operator, values)


def _typed(like: ir.Value, nodes: list[ir.Node]) -> list[ir.Node]:
    assert like.dtype is not None
    for node in nodes:
        for output in node.outputs:
            output.dtype = like.dtype
    return nodes


def _inputs(node: ir.Node) -> list[ir.Value]:
    return [value for value in node.inputs if value is not None]


def _axis(node: ir.Node) -> int:
    return int(node.attributes.get_int("axis", -1))


def _rank(value: ir.Value) -> int:
    assert value.shape is not None
    return len(value.shape)


def _sizes(value: ir.Value) -> list[int]:
    """Extents; the batch, which has no number, counts as 1."""
    assert value.shape is not None
    return [extent if isinstance(extent, int) else 1 for extent in value.shape]


def _numpy(value: ir.Value) -> Any:
    assert value.dtype is not None
    return value.dtype.numpy()


def _require(node: ir.Node, holds: bool, rule: str) -> None:
    if not holds:
        raise ExportError(
            f"{node.op_type} {node.name}: in opset {OPSET_17} it must be one that {rule}; please report it"
        )
