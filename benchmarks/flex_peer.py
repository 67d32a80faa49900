# SPDX-License-Identifier: Apache-2.0
"""The sliding branch through torch's FlexAttention, compiled, as the published implementation runs it."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache, lru_cache
from typing import Any, cast

import torch
from torch import Tensor

from vorta_trt.benchmarks.cases import Case, Inputs
from vorta_trt.benchmarks.peer import Prepared
from vorta_trt.benchmarks.tile_mask import block_lists, mask_function, token_order

BLOCK = 128  # FlexAttention's own default


@lru_cache(maxsize=1)
def block_mask(case: Case, device: torch.device) -> Any:
    """The BlockMask of the case's windows and text, over tokens in tile order.

    It is cached, because the mask function is part of the compiled code: a new function would be compiled again.
    """
    from torch.nn.attention.flex_attention import BlockMask

    torch.compiler.reset()  # else the compiler gives up after a few cases, whose masks it all keeps
    lists = block_lists(case.geometry, case.text_length, BLOCK)
    partial = (lists.partial_counts, lists.partial_indices)
    full = (lists.full_counts, lists.full_indices)
    # The block mask's own transposition wants as many columns as there are key blocks.
    counts, indices, full_counts, full_indices = (
        _padded(tensor, math.ceil(case.geometry.tokens / BLOCK)).to(device)[None, None] for tensor in (*partial, *full)
    )  # [1, 1, R], [1, 1, R, R]
    return BlockMask.from_kv_blocks(
        counts,
        indices,
        full_counts,
        full_indices,
        BLOCK_SIZE=BLOCK,
        mask_mod=mask_function(case.geometry, case.text_length),
        seq_lengths=(case.geometry.tokens, case.geometry.tokens),
    )


def _padded(tensor: Tensor, columns: int) -> Tensor:
    if tensor.ndim == 1:
        return tensor
    return torch.nn.functional.pad(tensor, (0, columns - tensor.shape[1]))


@cache
def _attention(compiled: bool) -> Callable[..., Tensor]:
    from torch.nn.attention.flex_attention import flex_attention

    attention: Any = torch.compile(flex_attention, dynamic=False) if compiled else flex_attention
    return cast(Callable[..., Tensor], attention)


def prepare(case: Case, inputs: Inputs, reorder: bool = True, compiled: bool = True) -> Prepared:
    """Raster order in, raster order out; without `reorder` query, key, value and output stay in tile order."""
    device = inputs.query.device
    mask = block_mask(case, device)
    order = token_order(case.geometry).to(device)  # [S+T]
    restore = order.argsort()  # [S+T]
    attention = _attention(compiled)
    given = (inputs.query, inputs.key, inputs.value)

    def tile_ordered() -> list[Tensor]:
        return [tensor[:, order].transpose(1, 2).contiguous() for tensor in given]  # [1, N, S+T, D]

    if reorder:

        def run() -> Tensor:
            return attention(*tile_ordered(), block_mask=mask).transpose(1, 2)[:, restore]  # [1, S+T, N, D]

        return Prepared(run, lambda result: result, note="with reordering")
    ordered = tile_ordered()
    return Prepared(
        lambda: attention(*ordered, block_mask=mask),  # [1, N, S+T, D]
        lambda result: result.transpose(1, 2)[:, restore],
        note="reordering not timed",
    )
