# SPDX-License-Identifier: Apache-2.0
"""`sharded_attention`: routed attention of tokens that are sharded over ranks.

Letters: P ranks, B batch, S video tokens, T text tokens, N heads, n = N / P heads of a rank, D head dim, R rows of a
shard.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TypeAlias

import torch
import torch.distributed as dist
from torch import Tensor

from vorta_trt.model.geometry import AttentionGeometry
from vorta_trt.model.operator import routed_attention
from vorta_trt.model.parallel.exchange import HeadExchange
from vorta_trt.model.parallel.shards import TokenShards
from vorta_trt.plugins.operator_schema import SAME_PRECISION

Watch: TypeAlias = Callable[[str], AbstractContextManager[object]]
"""Is entered around every exchange, with its name."""
HEADS, TOKENS, SAMPLE = "heads", "tokens", "sample"  # names of the exchanges


def unwatched(name: str) -> AbstractContextManager[object]:
    """Watches nothing."""
    return nullcontext()


@torch.compiler.disable  # type: ignore[untyped-decorator]
def sharded_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    routes: Tensor,
    head_order: Tensor,
    geometry: AttentionGeometry,
    group: dist.ProcessGroup,
    text_length: Tensor | None = None,
    scale: float | None = None,
    attention_precision: str = SAME_PRECISION,
    watch: Watch = unwatched,
) -> Tensor:
    """`routed_attention` of this rank's tokens over all tokens; every rank of the group calls it. It has no gradient.

    Args:
        query: [B, R + T, N, D]: the rows of this rank's shard (see `TokenShards`), and behind them all text rows, which
            are the same on every rank.
        key: As query.
        value: As query.
        routes: Int32 [B, N], of all heads; the same on every rank.
        head_order: Int64 [N], a permutation of the heads, the same on every rank; rank p computes those from p * n on.
        geometry: Of all tokens.
        group: P processes; P divides N.
        text_length: As for `routed_attention`.
        scale: As for `routed_attention`.
        attention_precision: As for `routed_attention`.
        watch: Is entered around the two exchanges, HEADS and TOKENS.

    Returns:
        [B, R + T, N, D]; rows of padding are 0.
    """
    exchange = HeadExchange(group, TokenShards(geometry.video_tokens, group.size(), group.rank()), head_order)
    with watch(HEADS):
        query, key, value = exchange.to_heads(query, key, value)  # [B, S + T, n, D] each
    own_routes = routes.index_select(1, exchange.own)  # [B, n]
    attended = routed_attention(query, key, value, own_routes, geometry, text_length, scale, attention_precision)
    with watch(TOKENS):
        return exchange.to_tokens(attended)
