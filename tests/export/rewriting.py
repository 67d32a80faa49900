# SPDX-License-Identifier: Apache-2.0
"""Small graphs, and what a rewrite makes of them: the wanted operators, and the same numbers in ONNX Runtime."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
from onnx import parser


def small_model(signature: str, nodes: str, constants: Mapping[str, Any], *, infer: bool = True) -> onnx.ModelProto:
    """A model of opset 23 with inferred shapes.

    Args:
        signature: Its input and output, as "float[2, 3] x"; the output y is inferred.
        nodes: As onnx.parser reads them.
        constants: Initializers by name; Python's integers become int64.
        infer: Whether the shapes between the nodes are kept, beside those of inputs and outputs.
    """
    model = parser.parse_model(f'<ir_version: 10, opset_import: ["" : 23]> g ({signature}) => (float y) {{ {nodes} }}')
    model.graph.output[0].type.tensor_type.ClearField("shape")
    for name, values in constants.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(values), name))
    model = onnx.shape_inference.infer_shapes(model)
    if not infer:
        del model.graph.value_info[:]
    return model


def check_rewrite(
    model: onnx.ModelProto,
    rewrite: Callable[[ir.Graph], None],
    wanted: Mapping[str, int],
    agree: Callable[[Any, Any], None] = np.testing.assert_array_equal,
) -> None:
    """Checks how many operators of each type are left, and that random inputs x give the same."""
    converted = ir.serde.deserialize_model(model)
    rewrite(converted.graph)
    rewritten = ir.serde.serialize_model(converted)
    assert Counter(node.op_type for node in rewritten.graph.node) == wanted
    (given,) = model.graph.input
    sizes = [size.dim_value or 3 for size in given.type.tensor_type.shape.dim]  # a size with a name becomes 3
    x = np.random.default_rng().standard_normal(sizes).astype(np.float32)
    for exact, got in zip(_run(model, x), _run(rewritten, x), strict=True):
        agree(got, exact)


def _run(model: onnx.ModelProto, x: Any) -> list[Any]:
    onnx.checker.check_model(model)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return list(session.run(None, {"x": x}))
