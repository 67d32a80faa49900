# SPDX-License-Identifier: Apache-2.0
"""Rewrites Slices into forms that cost an engine one layer.

TensorRT computes the bounds of a Slice in the engine: 24 layers of integer arithmetic for each, which TensorRT-RTX 1.7
makes even where all sizes are constant. A Gather of one constant row and a Split into constant sizes need none.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import onnx_ir as ir

_END = np.iinfo(np.int64).max  # what torch writes for the end of an axis


@dataclass(frozen=True)
class _Part:
    """The part of an axis that a Slice takes: rows start to end. The extent of the axis is known."""

    node: ir.Node
    axis: int
    rank: int
    extent: int
    start: int
    end: int


def simplify_slices(graph: ir.Graph) -> None:
    """Replaces Slices with constant bounds: a Slice of one row by a Gather, longer ones of an axis by one Split.

    A Slice of all rows is removed. A Gather of one row of a tensor of constant shape keeps the axis if every user puts
    it back, as in `x[:, :, -1].unsqueeze(2)`.
    """
    made = _Constants(graph)
    for node in list(graph):
        if (node.domain, node.op_type) == ("", "Gather"):
            _keep_axis(graph, node, made)
    by_axis: dict[tuple[ir.Value, int], list[_Part]] = defaultdict(list)
    for node in list(graph):
        if (node.domain, node.op_type) != ("", "Slice") or node.inputs[0] is None:
            continue
        if _takes_all(node):
            node.outputs[0].replace_all_uses_with(node.inputs[0])
            graph.remove(node, safe=True)
        elif (part := _part(node)) is not None:
            by_axis[node.inputs[0], part.axis].append(part)
    for (tensor, axis), parts in by_axis.items():
        if all(part.end - part.start == 1 for part in parts):
            for part in parts:
                _gather(graph, part, made)
            continue
        cuts = sorted({cut for part in parts for cut in (0, part.start, part.end, part.extent)})
        pieces = list(pairwise(cuts))
        if all((part.start, part.end) in pieces for part in parts):  # no two overlap
            _split(graph, tensor, axis, pieces, parts, made)


def _bounds(node: ir.Node) -> tuple[int, int, int] | None:
    """Start, end and axis of a Slice, if they are constants, of one axis, with steps of 1; otherwise None."""
    values = [None if value is None else ir.convenience.get_const_tensor(value) for value in node.inputs[1:]]
    if len(values) < 3 or None in values:
        return None
    starts, ends, axes, *steps = (value.numpy().tolist() for value in values if value is not None)
    return (starts[0], ends[0], axes[0]) if len(starts) == 1 and steps in ([], [[1]]) else None


def _takes_all(node: ir.Node) -> bool:
    bounds = _bounds(node)
    if bounds is None or node.outputs[0].is_graph_output():
        return False
    part = _part(node)
    return (bounds[0] == 0 and bounds[1] == _END) or (part is not None and part.end - part.start == part.extent)


def _is_static(tensor: ir.Value) -> bool:
    """Whether all sizes of a tensor are known."""
    return tensor.shape is not None and tensor.shape.is_static()


def _keep_axis(graph: ir.Graph, node: ir.Node, made: _Constants) -> None:
    """Lets a Gather keep the axis that it drops, if the shape is constant and every user puts the axis back."""
    data, index = node.inputs
    assert data is not None
    constant = None if index is None else ir.convenience.get_const_tensor(index)
    if not _is_static(data) or constant is None or constant.shape.rank():
        return
    assert data.shape is not None
    axis = node.attributes.get_int("axis", 0) % len(data.shape)
    users = [user for user, _ in node.outputs[0].uses()]
    if not users or node.outputs[0].is_graph_output() or not all(_unsqueezes(each, axis, data) for each in users):
        return
    extent = data.shape[axis]
    assert isinstance(extent, int)
    _put_gather(graph, axis, made.integers([int(constant.numpy()) % extent], np.int32), node, users, like=node)


def _unsqueezes(node: ir.Node, axis: int, data: ir.Value) -> bool:
    """Whether a node puts a dropped axis of `data` back, as one row; it may be an Unsqueeze or a Reshape."""
    if node.domain or node.op_type not in ("Unsqueeze", "Reshape") or node.outputs[0].is_graph_output():
        return False
    shape = node.outputs[0].shape
    assert data.shape is not None
    wanted = [1 if each == axis else size for each, size in enumerate(data.shape)]
    return shape is not None and shape.is_static() and list(shape) == wanted


def _part(node: ir.Node) -> _Part | None:
    """The part of an axis that a Slice takes; None unless its bounds and the extent are constant, or if it is empty."""
    tensor, bounds = node.inputs[0], _bounds(node)
    if tensor is None or tensor.shape is None or bounds is None:
        return None
    axis = bounds[2] % len(tensor.shape)
    extent = tensor.shape[axis]
    if not isinstance(extent, int):
        return None
    start, end, _ = slice(*bounds[:2]).indices(extent)
    return _Part(node, axis, len(tensor.shape), extent, start, end) if start < end else None


def _gather(graph: ir.Graph, part: _Part, made: _Constants) -> None:
    """Replaces a Slice of one row by a Gather, which also drops the axis if only Squeezes of that axis follow."""
    node, (sliced,) = part.node, part.node.outputs
    squeezed = [user for user, _ in sliced.uses()]
    drop = (
        bool(squeezed)
        and not sliced.is_graph_output()
        and all(_squeezes(user, part.axis, part.rank) for user in squeezed)
    )
    index = made.integers(part.start if drop else [part.start], np.int32)
    users = squeezed if drop else []
    _put_gather(graph, part.axis, index, node, users, like=[node, *users][-1])


def _put_gather(
    graph: ir.Graph, axis: int, index: ir.Value, node: ir.Node, users: list[ir.Node], *, like: ir.Node
) -> None:
    """Replaces a node that takes a row, and the users that only change the shape of that row, by one Gather.

    Args:
        graph: Graph of the nodes.
        axis: Axis of the row.
        index: The row, in int32: int64 would be cast in an engine.
        node: Node that takes the row of its first input.
        users: All users of the node, or none: then the node alone is replaced.
        like: The node whose module the Gather belongs to.
    """
    data = node.inputs[0]
    assert data is not None
    gathered = ir.node("Gather", [data, index], {"axis": axis})
    gathered.metadata_props.update(like.metadata_props)
    old = [each.outputs[0] for each in users or [node]]
    gathered.outputs[0].shape, gathered.outputs[0].type = old[0].shape, data.type
    ir.convenience.replace_nodes_and_values(
        graph, node, [node, *users], [gathered], old, [gathered.outputs[0]] * len(old)
    )


def _squeezes(node: ir.Node, axis: int, rank: int) -> bool:
    """Whether a node takes out that axis, and no other, of a tensor of that rank."""
    if (node.domain, node.op_type) != ("", "Squeeze") or len(node.inputs) < 2 or node.outputs[0].is_graph_output():
        return False
    axes = node.inputs[1]
    constant = None if axes is None else ir.convenience.get_const_tensor(axes)
    return constant is not None and [each % rank for each in constant.numpy().tolist()] == [axis]


def _split(
    graph: ir.Graph, tensor: ir.Value, axis: int, pieces: list[tuple[int, int]], parts: list[_Part], made: _Constants
) -> None:
    """Replaces all Slices of an axis by one Split; the pieces between them stay unused."""
    sizes = made.integers([end - start for start, end in pieces])
    split = ir.node("Split", [tensor, sizes], {"axis": axis}, num_outputs=len(pieces))
    first = next(node for node in graph if any(part.node is node for part in parts))
    split.metadata_props.update(first.metadata_props)
    outputs = dict(zip(pieces, split.outputs, strict=True))
    for part in parts:
        outputs[part.start, part.end].shape = part.node.outputs[0].shape
        outputs[part.start, part.end].type = part.node.outputs[0].type
    graph.insert_before(first, split)
    for part in parts:
        part.node.outputs[0].replace_all_uses_with(outputs[part.start, part.end], replace_graph_outputs=True)
        graph.remove(part.node, safe=True)


class _Constants:
    """Integer constants of the graph, without duplicates."""

    def __init__(self, graph: ir.Graph) -> None:
        self.graph = graph
        self.known: dict[str, ir.Value] = {}

    def integers(self, numbers: int | list[int], dtype: Any = np.int64) -> ir.Value:
        name = f"rows_{numbers}_{np.dtype(dtype).name}".replace("[", "of_").replace("]", "").replace(", ", "_")
        if name not in self.known:
            content = ir.tensor(np.array(numbers, dtype), name=name)
            value = ir.Value(
                name=name, const_value=content, shape=ir.Shape(np.shape(numbers)), type=ir.TensorType(content.dtype)
            )
            self.graph.register_initializer(value)
            self.known[name] = value
        return self.known[name]
