# SPDX-License-Identifier: Apache-2.0
"""Attention of sharded tokens against one process, over gloo.

It is the same bit for bit, since heads are computed one by one, but for heads whose products have a ragged end.
"""

from __future__ import annotations

import itertools
import random
from typing import Any

import pytest

from vorta_trt.model import AttentionGeometry

from ...ranks import RANKS, Pool

HEADS = 12  # 1, 2, 3 and 4 divide it


def geometry(grid: tuple[int, int, int], text: int, keys: str) -> dict[str, Any]:
    whole = AttentionGeometry(grid, (1, 3, 3), (3, 1, 1), (2, 3, 2), 6, keys, text)
    return whole.to_dict()


@pytest.mark.parametrize("ranks", range(1, RANKS + 1))
@pytest.mark.parametrize("grid", [(3, 3, 5), (2, 2, 3), (1, 1, 5)])  # ragged for 2 and 4; even; 4 ranks have 2, 2, 1, 0
@pytest.mark.parametrize("keys", ["query", "key"])
@pytest.mark.parametrize("lengths", [None, [3, 7], [7, 1]])
def test_attention_is_that_of_one_process(
    pool: Pool, ranks: int, grid: tuple[int, int, int], keys: str, lengths: list[int] | None, seed: int
) -> None:
    shuffled = random.Random(seed).sample(range(HEADS), HEADS)
    orders = [list(range(HEADS)), shuffled]
    case = {"geometry": geometry(grid, 0 if lengths is None else 7, keys), "lengths": lengths, "orders": orders}
    assert pool("attention", ranks, **case, heads=HEADS, head_dim=8, seed=seed) == [[0, 0]] * ranks


@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("head_dim", [4, 5])  # 16 bytes, and 20, which are copied in other elements
def test_every_permutation_of_four_heads(pool: Pool, ranks: int, head_dim: int, seed: int) -> None:
    orders = [list(order) for order in itertools.permutations(range(4))]
    case = {"geometry": geometry((1, 3, 3), 2, "key"), "lengths": [1, 2], "orders": orders}
    found = pool("attention", ranks, **case, heads=4, head_dim=head_dim, seed=seed)
    assert max(map(max, found)) <= (1e-6 if head_dim % 4 else 0)
