# SPDX-License-Identifier: Apache-2.0
"""How large a difference in the heads' outputs is behind the output projection.

A layer's attention gives O_h [S, D] for every head h, and the block goes on with O W^T = sum over h of O_h W_h^T, where
W_h [E, D] are the columns of the projection's weight that belong to the head. So a head whose part of W is small may be
wrong at little cost. With a difference X_h to full attention its share of the layer's error is

    || X_h W_h^T ||^2 = sum over all entries of (X_h^T X_h) * (W_h^T W_h)

which needs two D x D matrices per head in place of [S, E]. Products are summed in float32 (float64 stays float64).

Letters: R rows (video tokens, then text tokens), S video tokens, N heads, D head dim, E inner dimension.
"""

from __future__ import annotations

import torch
from torch import Tensor

ROWS_BYTES = 256 << 20  # of float32 rows or heads that are in memory at once

Weights = tuple[Tensor, Tensor]
"""The projection of video and of text rows, [E, N * D] each; see the blocks' `output_weights`."""


def heads_at_once(rows: int, head_dim: int) -> int:
    """How many heads' outputs in float32 take at most `ROWS_BYTES`; at least 1."""
    return max(1, ROWS_BYTES // (4 * rows * head_dim))


def squares_by_head(difference: Tensor, weights: Weights, heads: slice, video: int) -> Tensor:
    """|| X_h W_h^T ||^2 of some heads: difference [R, H, D] of the heads `heads`, S video rows -> [H]."""
    head_dim = difference.shape[2]
    total = difference.new_zeros(difference.shape[1], dtype=torch.float64)  # [H]
    for rows, weight in _parts(difference, weights, video):
        by_head = _exact(weight.unflatten(1, (-1, head_dim))[:, heads]).transpose(0, 1)  # [H, E, D]
        outputs = _exact(rows).transpose(0, 1)  # [H, R, D]
        gram = outputs.transpose(1, 2) @ outputs  # [H, D, D]
        total += (gram * (by_head.transpose(1, 2) @ by_head)).sum(dim=(1, 2))
    return total.clamp_min(0)


def squares_of_layer(outputs: Tensor, weights: Weights, video: int) -> Tensor:
    """|| O W^T ||^2 of all heads together: outputs [R, N, D], S video rows -> []. Products in the weights' dtype."""
    total = outputs.new_zeros((), dtype=torch.float64)
    for rows, weight in _parts(outputs, weights, video):
        for part in rows.flatten(1).split(max(1, ROWS_BYTES // (4 * weight.shape[0]))):  # [r, N * D]
            projected = part.to(weight.dtype) @ weight.T  # [r, E]
            total += _exact(projected).square().sum()
    return total


def _parts(rows: Tensor, weights: Weights, video: int) -> list[tuple[Tensor, Tensor]]:
    """Video rows and, if there are any, text rows, with the weights of each."""
    parts = [(rows[:video], weights[0]), (rows[video:], weights[1])]
    return [(part, weight) for part, weight in parts if len(part)]


def _exact(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()
