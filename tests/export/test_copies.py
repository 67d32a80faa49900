# SPDX-License-Identifier: Apache-2.0
"""Copies that the operator after them can do without are removed, and the result is the same."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest

from vorta_trt.export.copies import remove_copies

from .rewriting import check_rewrite, small_model

CLOSE = partial(np.testing.assert_allclose, rtol=0, atol=2e-5)
EXPANDS: dict[str, tuple[str, dict[str, int]]] = {
    "a norm": (
        "n = ReduceL2<keepdims=1>(x, one) e = Expand(n, full) y = Div(x, e)",
        {"ReduceL2": 1, "Div": 1},
    ),
    "twice": (
        "n = ReduceL2<keepdims=1>(x, one) e = Expand(n, full) a = Div(x, e) b = Mul(e, x) y = Add(a, b)",
        {"ReduceL2": 1, "Div": 1, "Mul": 1, "Add": 1},
    ),
    "it decides the shape": (
        "n = ReduceL2<keepdims=1>(x, one) e = Expand(n, full) y = Div(n, e)",
        {"ReduceL2": 1, "Expand": 1, "Div": 1},
    ),
    "both are expanded": (
        "n = ReduceL2<keepdims=1>(x, one) e = Expand(n, full) y = Add(e, e)",
        {"ReduceL2": 1, "Expand": 1, "Add": 1},
    ),
    "no binary operator": (
        "n = ReduceL2<keepdims=1>(x, one) e = Expand(n, full) y = Neg(e)",
        {"ReduceL2": 1, "Expand": 1, "Neg": 1},
    ),
    "an output": ("n = ReduceL2<keepdims=1>(x, one) y = Expand(n, full)", {"ReduceL2": 1, "Expand": 1}),
}

PADS: dict[str, tuple[str, dict[str, int]]] = {
    "zeros on either side": ("p = Pad(x, sides) y = Conv(p, w)", {"Conv": 1}),
    "added to its own": ("p = Pad(x, sides, zero) y = Conv<pads=[0, 1, 1, 0]>(p, w)", {"Conv": 1}),
    "two convolutions": ("p = Pad(x, sides) a = Conv(p, w) b = Conv(p, w) y = Add(a, b)", {"Conv": 2, "Add": 1}),
    "zeros on one side": ("p = Pad(x, one_side) y = Conv(p, w)", {"Pad": 1, "Conv": 1}),
    "ones": ("p = Pad(x, sides, one) y = Conv(p, w)", {"Pad": 1, "Conv": 1}),
    "the edge": ('p = Pad<mode="edge">(x, sides) y = Conv(p, w)', {"Pad": 1, "Conv": 1}),
    "more channels": ("p = Pad(x, channels) y = Conv(p, w5)", {"Pad": 1, "Conv": 1}),
    "cut off": ("p = Pad(x, less) y = Conv(p, w)", {"Pad": 1, "Conv": 1}),
    "some axes": ("p = Pad(x, sides2, zero, axes) y = Conv(p, w)", {"Pad": 1, "Conv": 1}),
    "padded by itself": ('p = Pad(x, sides) y = Conv<auto_pad="SAME_UPPER">(p, w)', {"Pad": 1, "Conv": 1}),
    "another user": (
        "p = Pad(x, sides) a = Conv(p, w) b = ReduceMax<keepdims=1>(p) y = Add(a, b)",
        {"Pad": 1, "Conv": 1, "ReduceMax": 1, "Add": 1},
    ),
}
NUMBERS: dict[str, Any] = {
    "sides": [0, 0, 2, 1, 0, 0, 2, 1], "one_side": [0, 0, 2, 0, 0, 0, 0, 0], "channels": [0, 1, 0, 0, 0, 1, 0, 0],
    "less": [0, 0, -1, 0, 0, 0, -1, 0], "sides2": [2, 1, 2, 1], "axes": [2, 3],
}  # fmt: skip


@pytest.mark.parametrize("name", PADS)
def test_the_same_without_pads(name: str) -> None:
    nodes, wanted = PADS[name]
    draw = np.random.default_rng().standard_normal
    constants = NUMBERS | {"zero": np.zeros((), np.float32), "one": np.ones((), np.float32)}
    constants |= {"w": draw((2, 3, 3, 3), np.float32), "w5": draw((2, 5, 3, 3), np.float32)}
    check_rewrite(small_model("float[1, 3, 6, 5] x", nodes, constants), remove_copies, wanted, CLOSE)


@pytest.mark.parametrize("name", EXPANDS)
def test_the_same_without_expands(name: str) -> None:
    nodes, wanted = EXPANDS[name]
    model = small_model("float[2, 5, 4] x", nodes, {"one": [1], "full": [2, 5, 4]})
    check_rewrite(model, remove_copies, wanted, CLOSE)
