# SPDX-License-Identifier: Apache-2.0
"""flash-attn-4, the strongest peer on Hopper: dense, and block-sparse on tokens that already lie in tile order.

Its block lists name blocks of 128 x 128 and need no mask if a tile is a multiple of 128 tokens; the reordering into
tiles is not timed.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

from torch import Tensor

from vorta_trt.benchmarks.cases import Case, Inputs
from vorta_trt.benchmarks.peer import Prepared, Unavailable
from vorta_trt.benchmarks.tile_mask import block_lists, token_order
from vorta_trt.model.boxes import box_kinds

BLOCK = 128


@cache
def _import() -> tuple[Callable[..., Any], Callable[..., Any]]:
    """The forward function and the type of its block lists."""
    try:
        from flash_attn.cute import flash_attn_func
        from flash_attn.cute.block_sparsity import BlockSparseTensorsTorch
    except ImportError as error:
        raise Unavailable(f"flash_attn.cute cannot be imported ({error}); pip install flash-attn-4") from error
    return flash_attn_func, BlockSparseTensorsTorch


def _first(result: Any) -> Tensor:
    """The output; newer versions return a log-sum-exp beside it."""
    output: Tensor = result[0] if isinstance(result, tuple) else result
    return output


def prepare_dense(case: Case, inputs: Inputs) -> Prepared:
    """All valid tokens."""
    attention, _ = _import()
    tensors = [tensor[:, : case.valid] for tensor in (inputs.query, inputs.key, inputs.value)]  # [1, S+V, N, D]
    return _compiled(lambda: _first(attention(*tensors)), lambda result: result)


def prepare_sparse(case: Case, inputs: Inputs) -> Prepared:
    """The sliding window, tokens in tile order."""
    geometry = case.geometry
    for tile in box_kinds(geometry.grid, geometry.tile):
        if tile.tokens % BLOCK:
            tile_shape = "x".join(map(str, tile.shape))
            raise Unavailable(f"a tile {tile_shape} has {tile.tokens} tokens, no multiple of its blocks of {BLOCK}")
    if geometry.text_tokens:
        raise Unavailable("text tokens are no part of its block lists without a mask")
    attention, block_sparse = _import()
    device = inputs.query.device
    lists = block_lists(geometry, case.text_length, BLOCK)
    shape = (1, case.heads)

    def every_head(tensor: Tensor) -> Tensor:
        return tensor.to(device).expand(*shape, *tensor.shape).contiguous()  # [1, N, R(, widest)]

    sparse = block_sparse(
        mask_block_cnt=every_head(lists.partial_counts),
        mask_block_idx=every_head(lists.partial_indices),
        full_block_cnt=every_head(lists.full_counts),
        full_block_idx=every_head(lists.full_indices),
        block_size=(BLOCK, BLOCK),
    )
    order = token_order(geometry).to(device)  # [S]
    restore = order.argsort()
    tensors = [tensor[:, order].contiguous() for tensor in (inputs.query, inputs.key, inputs.value)]  # [1, S, N, D]
    return _compiled(
        lambda: _first(attention(*tensors, block_sparse_tensors=sparse)),
        lambda result: result[:, restore],
        note="reordering not timed",
    )


def _compiled(run: Callable[[], Tensor], output: Callable[[Tensor], Tensor], note: str = "") -> Prepared:
    """The first call compiles, with warnings about its own arguments that are none of the user's business."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run()
    return Prepared(run, output, note)
