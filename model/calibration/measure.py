# SPDX-License-Identifier: Apache-2.0
"""Dense passes during which every block's attention is measured: what each branch would have given instead.

The branches get the query, key and value of the dense pass itself, so each error is that of one layer alone. A layer's
attention gives O_h [S, D] for every head h, and the block goes on with O W^T = sum over h of O_h W_h^T, where
W_h [E, D] are the columns of the output projection that belong to the head. So a head whose part of W is small may be
wrong at little cost. For layer l, head h and branch b

    squared error = || (O_b,h - O_full,h) W_h^T ||^2 / || O_full W^T ||^2

over all video tokens and valid text tokens. The numerator takes two D x D matrices per head in place of [S, E]:

    || X_h W_h^T ||^2 = sum over all entries of (X_h^T X_h) * (W_h^T W_h)

Products are summed in float32 (float64 stays float64). Attention goes through `routed_attention`: the kernels on a GPU,
the reference on the CPU, both without a score matrix; some heads at a time, so that memory stays small.

Letters: B batch, here 1, R rows (S video tokens, then padded text tokens), N heads, H some of them, D head dim, E inner
dimension, L layers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from vorta_trt.model.geometry import AttentionGeometry, Branch
from vorta_trt.model.operator import routed_attention
from vorta_trt.model.transformer import RoutedTransformer
from vorta_trt.plugins.errors import VortaError

ROWS_BYTES = 256 << 20  # most bytes of the float32 rows or heads that are in memory at once

Weights = tuple[Tensor, Tensor]
"""Output projections of video rows and of text rows, [E, N * D] each; see the blocks' `output_weights`."""

Observe = Callable[[int, Weights, Tensor, Tensor, Tensor, Tensor, Tensor | None], object]
"""Called with layer, weights, query, key, value, output of full attention [1, R, N, D] each, and text length."""


class CalibrationError(VortaError):
    """Calibration cannot go on; the message says where, and what to do."""


def measure_branches(model: RoutedTransformer, inputs: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """Does one dense pass of one sample, and measures every branch of every head.

    Args:
        model: A model without routers whose geometry is known.
        inputs: Inputs of its `forward`, batch 1.

    Returns:
        The dense sample [1, C, F, H, W], and the squared error of every branch, float64 [L, N, 3] on the CPU; that of
        the full branch is 0.
    """
    geometry = _geometry(model)
    squares = _zeros(model, model.num_layers, model.num_heads, len(Branch))  # [L, N, 3]

    def observe(
        layer: int, weights: Weights, query: Tensor, key: Tensor, value: Tensor, full: Tensor, text: Tensor | None
    ) -> None:
        whole = squares_of_layer(full[0], weights, geometry.video_tokens)  # []
        wide = torch.promote_types(full.dtype, torch.float32)
        at_once = heads_at_once(query.shape[1], query.shape[3])
        for start in range(0, query.shape[2], at_once):
            heads = slice(start, min(start + at_once, query.shape[2]))
            q, k, v = (tensor[:, :, heads] for tensor in (query, key, value))  # [1, R, H, D] each
            for branch in (Branch.CORESET, Branch.SLIDING):
                routes = torch.full((1, q.shape[2]), int(branch), dtype=torch.int32, device=query.device)
                out = routed_attention(q, k, v, routes, geometry, text)  # [1, R, H, D]
                difference = out[0].to(wide) - full[0, :, heads].to(wide)  # [R, H, D]
                found = squares_by_head(difference, weights, heads, geometry.video_tokens)  # [H]
                squares[layer, heads, int(branch)] = _relative(found, whole)

    with _observing(model, observe):
        sample = routed(model, inputs)
    return sample, squares.cpu()


def measure_routes(model: RoutedTransformer, inputs: Mapping[str, Any], routes: Tensor) -> tuple[Tensor, Tensor]:
    """Does one dense pass of one sample, and measures routes in every layer, all heads together.

    Args:
        model: A model without routers whose geometry is known.
        inputs: Inputs of its `forward`, batch 1.
        routes: int32 [L, N].

    Returns:
        The dense sample, and || sum over h of (O_routed,h - O_full,h) W_h^T ||^2 / || O_full W^T ||^2, float64 [L].
    """
    geometry = _geometry(model)
    squares = _zeros(model, model.num_layers)  # [L]
    taken = routes.to(squares.device)  # [L, N]

    def observe(
        layer: int, weights: Weights, query: Tensor, key: Tensor, value: Tensor, full: Tensor, text: Tensor | None
    ) -> None:
        out = routed_attention(query, key, value, taken[layer].unsqueeze(0), geometry, text)  # [1, R, N, D]
        # The difference is rounded to the dtype of the outputs, which changes the measured error by little.
        found = squares_of_layer(out.sub_(full)[0], weights, geometry.video_tokens)
        squares[layer] = _relative(found, squares_of_layer(full[0], weights, geometry.video_tokens))

    with _observing(model, observe):
        sample = routed(model, inputs)
    return sample, squares.cpu()


def routed(model: RoutedTransformer, inputs: Mapping[str, Any], routes: Tensor | None = None) -> Tensor:
    """Does a pass with routes int32 [L, N], None for full attention: float32 [1, C, F, H, W]."""
    override = None if routes is None else routes.to(model.proj_out.weight.device)
    with torch.no_grad():
        sample, _ = model(**inputs, route_override=override)
    return sample.float()  # type: ignore[no-any-return]


# -- errors behind the output projection -------------------------------------------------------------------------------


def heads_at_once(rows: int, head_dim: int) -> int:
    """Returns how many heads' outputs in float32 take at most `ROWS_BYTES`; at least 1."""
    return max(1, ROWS_BYTES // (4 * rows * head_dim))


def squares_by_head(difference: Tensor, weights: Weights, heads: slice, video: int) -> Tensor:
    """Returns || X_h W_h^T ||^2 of the heads `heads`: difference [R, H, D], S video rows -> [H]."""
    head_dim = difference.shape[2]
    total = difference.new_zeros(difference.shape[1], dtype=torch.float64)  # [H]
    for rows, weight in _parts(difference, weights, video):
        by_head = _exact(weight.unflatten(1, (-1, head_dim))[:, heads]).transpose(0, 1)  # [H, E, D]
        outputs = _exact(rows).transpose(0, 1)  # [H, R, D]
        gram = outputs.transpose(1, 2) @ outputs  # [H, D, D]
        total += (gram * (by_head.transpose(1, 2) @ by_head)).sum(dim=(1, 2))
    return total.clamp_min(0)


def squares_of_layer(outputs: Tensor, weights: Weights, video: int) -> Tensor:
    """Returns || O W^T ||^2 of all heads: outputs [R, N, D], S video rows -> []. Products in the weights' dtype."""
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


def _relative(squares: Tensor, whole: Tensor) -> Tensor:
    """Returns squares / whole, and 0 where `squares` is 0, even if `whole` is 0."""
    return torch.where(squares == 0, torch.zeros_like(squares), squares / whole)


# -- the model -----------------------------------------------------------------------------------------------------


@contextmanager
def _observing(model: RoutedTransformer, observe: Observe) -> Iterator[None]:
    """Has every block tell `observe` of its attention, with its number and its output projection."""
    blocks = model.routed_blocks()
    for layer, block in enumerate(blocks):
        block.observer = partial(observe, layer, block.output_weights())
    try:
        yield
    finally:
        for block in blocks:
            block.observer = None


def _geometry(model: RoutedTransformer) -> AttentionGeometry:
    if model.geometry is None:
        raise ValueError("geometry None: the branches need it; build the model with geometry=")
    return model.geometry


def _zeros(model: RoutedTransformer, *shape: int) -> Tensor:
    return torch.zeros(shape, dtype=torch.float64, device=model.proj_out.weight.device)
