# SPDX-License-Identifier: Apache-2.0
"""Slices become what costs an engine one layer, and compute the same."""

from __future__ import annotations

from typing import Any

import pytest

from vorta_trt.export.slices import simplify_slices

from .rewriting import check_rewrite, small_model

END = 2**63 - 1
CASES: dict[str, tuple[str, dict[str, int]]] = {
    "one row, squeezed": ("s = Slice(x, i1, i2, i1) a = Squeeze(s, i1) y = Neg(a)", {"Gather": 1, "Neg": 1}),
    "one row, squeezed by another axis": ("s = Slice(x, i1, i2, i1) y = Squeeze(s, last)", {"Gather": 1, "Squeeze": 1}),
    "one row, kept": ("y = Slice(x, i1, i2, i1)", {"Gather": 1}),
    "one row, both": (
        "s = Slice(x, i1, i2, i1) a = Squeeze(s, i1) b = Unsqueeze(a, i1) y = Add(s, b)",
        {"Gather": 1, "Squeeze": 1, "Unsqueeze": 1, "Add": 1},
    ),
    "the last row": ("s = Slice(x, m1, end, i1) a = Squeeze(s, i1) y = Neg(a)", {"Gather": 1, "Neg": 1}),
    "all rows of the batch": ("s = Slice(x, i0, end, i0, i1) y = Neg(s)", {"Neg": 1}),
    "two parts": (
        "a = Slice(x, i0, i2, i1) b = Slice(x, i2, end, i1) y = Concat<axis=1>(b, a)",
        {"Split": 1, "Concat": 1},
    ),
    "one part": ("a = Slice(x, i0, i2, i1) y = Neg(a)", {"Split": 1, "Neg": 1}),
    "a part twice": ("a = Slice(x, i0, i2, i1) b = Slice(x, i0, i2, i1, i1) y = Add(a, b)", {"Split": 1, "Add": 1}),
    "parts that overlap": (
        "a = Slice(x, i0, i2, i1) b = Slice(x, i1, i3, i1) y = Add(a, b)",
        {"Slice": 2, "Add": 1},
    ),
    "every second row": ("y = Slice(x, i0, end, i1, i2)", {"Slice": 1}),
    "rows of the batch": ("y = Slice(x, i1, end, i0)", {"Slice": 1}),
    "bounds that are computed": ("n = Shape<start=0, end=1>(x) y = Slice(x, i0, n, i1)", {"Shape": 1, "Slice": 1}),
}  # fmt: skip
CONSTANTS: dict[str, Any] = {
    "i0": [0], "i1": [1], "i2": [2], "i3": [3], "m1": [-1], "last": [3], "end": [END],
}  # fmt: skip


# Of a tensor whose sizes are all known, as in the graphs of a VAE.
STATIC: dict[str, tuple[str, dict[str, int]]] = {
    "a part": ("a = Slice(x, i0, i2, i1) y = Neg(a)", {"Split": 1, "Neg": 1}),
    "all rows by number": ("a = Slice(x, m5, end, i1) y = Neg(a)", {"Neg": 1}),
    "a row that comes back": ("a = Gather<axis=1>(x, row) y = Unsqueeze(a, i1)", {"Gather": 1, "Unsqueeze": 1}),
    "a row that comes back, used": (
        "a = Gather<axis=1>(x, row) b = Unsqueeze(a, i1) y = Neg(b)",
        {"Gather": 1, "Neg": 1},
    ),
    "the last row, twice": (
        "a = Gather<axis=1>(x, minus) b = Unsqueeze(a, i1) c = Reshape(a, kept) y = Add(b, c)",
        {"Gather": 1, "Add": 1},
    ),
    "a row that comes back elsewhere": (
        "a = Gather<axis=1>(x, row) b = Unsqueeze(a, i2) y = Neg(b)",
        {"Gather": 1, "Unsqueeze": 1, "Neg": 1},
    ),
    "a row alone": ("a = Gather<axis=1>(x, row) y = Neg(a)", {"Gather": 1, "Neg": 1}),
    "several rows": ("a = Gather<axis=1>(x, rows) y = Neg(a)", {"Gather": 1, "Neg": 1}),
}


@pytest.mark.parametrize("name", STATIC)
def test_where_all_sizes_are_known(name: str) -> None:
    nodes, wanted = STATIC[name]
    more = {"m5": [-5], "row": 2, "minus": -1, "rows": [1, 0], "kept": [3, 1, 4, 1]}
    check_rewrite(small_model("float[3, 5, 4, 1] x", nodes, CONSTANTS | more), simplify_slices, wanted)


@pytest.mark.parametrize("inferred", [True, False], ids=["shapes inferred", "shapes of inputs alone"])
@pytest.mark.parametrize("name", CASES)
def test_the_same_in_fewer_layers(name: str, inferred: bool) -> None:
    nodes, wanted = CASES[name]
    model = small_model("float[batch, 5, 4, 1] x", nodes, CONSTANTS, infer=inferred)
    check_rewrite(model, simplify_slices, wanted)
