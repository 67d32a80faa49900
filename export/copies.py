# SPDX-License-Identifier: Apache-2.0
"""Removes copies of whole tensors that the operator after them can do without.

- torch expands the norm of `functional.normalize` to the shape of its input before it divides, although a division
  takes an operand with axes of size 1.
- A causal VAE pads a tensor with zeros before a convolution without padding, although a convolution pads by itself.

Unless an engine fuses the two operators, it writes the copy to memory and reads it again.
"""

from __future__ import annotations

import onnx_ir as ir

_BROADCASTING = ("Add", "Div", "Mul", "Sub")


def remove_copies(graph: ir.Graph) -> None:
    """Removes each Expand whose users broadcast by themselves, and each Pad whose users are convolutions.

    The padding must be of zeros, as wide before as after each axis (not every convolution of TensorRT takes another
    one), and leave batch and channels alone.
    """
    for node in list(graph):
        given = node.inputs[0] if node.inputs else None
        if node.domain or given is None or node.outputs[0].is_graph_output():
            continue
        if (node.op_type == "Expand" and _is_needless(node)) or (node.op_type == "Pad" and _moved_to_users(node)):
            node.outputs[0].replace_all_uses_with(given)
            graph.remove(node, safe=True)


def _users(node: ir.Node) -> list[ir.Node]:
    return [user for user, _ in node.outputs[0].uses()]


def _is_needless(expand: ir.Node) -> bool:
    users = _users(expand)
    return bool(users) and all(_broadcasts(user, expand.outputs[0]) for user in users)


def _moved_to_users(pad: ir.Node) -> bool:
    """Lets the convolutions after a Pad pad by themselves, if they can; returns whether they do."""
    users, widths = _users(pad), _symmetric_zeros(pad)
    if widths is None or not users or not all(_convolves(user, pad.outputs[0]) for user in users):
        return False
    for user in users:
        own = user.attributes.get_ints("pads", [0] * 2 * len(widths))
        user.attributes.add(ir.AttrInt64s("pads", [a + b for a, b in zip(own, widths * 2, strict=True)]))
    return True


def _broadcasts(user: ir.Node, expanded: ir.Value) -> bool:
    """Whether the other operand of a binary operator alone decides the shape of the result."""
    if user.domain or user.op_type not in _BROADCASTING:
        return False
    others = [value for value in user.inputs if value is not expanded]
    return (
        len(others) == 1
        and others[0] is not None
        and others[0].shape is not None
        and expanded.shape is not None
        and not expanded.shape.has_unknown_dim()
        and others[0].shape == expanded.shape
    )


def _convolves(user: ir.Node, padded: ir.Value) -> bool:
    """Whether a node convolves a tensor, with padding that is given by numbers or none."""
    if user.domain or user.op_type != "Conv" or user.inputs[0] is not padded:
        return False
    return padded not in user.inputs[1:] and user.attributes.get_string("auto_pad", "NOTSET") == "NOTSET"


def _symmetric_zeros(pad: ir.Node) -> list[int] | None:
    """By how much a Pad widens each axis after batch and channels, on either side; None for any other padding."""
    constants = [None if value is None else ir.convenience.get_const_tensor(value) for value in pad.inputs[1:]]
    if pad.attributes.get_string("mode", "constant") != "constant" or not constants or constants[0] is None:
        return None
    if len(constants) > 2 and pad.inputs[3] is not None:  # only some axes
        return None
    if len(constants) > 1 and pad.inputs[2] is not None and (constants[1] is None or constants[1].numpy().any()):
        return None
    widths = constants[0].numpy().tolist()
    before, after = widths[: len(widths) // 2], widths[len(widths) // 2 :]
    return before[2:] if before == after and before[:2] == [0, 0] and min(before) >= 0 else None
