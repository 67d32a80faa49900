# SPDX-License-Identifier: Apache-2.0
"""Dense passes during which every block's attention is measured: what each branch would have given instead.

The branches see the very query, key and value of the dense pass, so errors of one layer say nothing of the others'
errors. For layer l, head h and branch b, with W_h the head's part of the output projection (see `output_error.py`):

    squared error = || (O_b,h - O_full,h) W_h^T ||^2 / || O_full W^T ||^2

over all video tokens and valid text tokens. Attention goes through `routed_attention`: the kernels on a GPU, the
reference on the CPU, both without a score matrix; some heads at a time, so that memory stays small.

Letters: B batch, here 1, R rows (video and padded text tokens), N heads, D head dim, L layers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from vorta_trt.model.calibration.output_error import Weights, heads_at_once, squares_by_head, squares_of_layer
from vorta_trt.model.geometry import AttentionGeometry, Branch
from vorta_trt.model.operator import routed_attention
from vorta_trt.model.transformer import RoutedTransformer
from vorta_trt.plugins.errors import VortaError

Observe = Callable[[int, Weights, Tensor, Tensor, Tensor, Tensor, Tensor | None], object]


class CalibrationError(VortaError):
    """Calibration cannot go on; the message says where, and what to do."""


def measure_branches(model: RoutedTransformer, inputs: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """One dense pass of one sample.

    Args:
        model: without routers, its geometry known. inputs: of its `forward`, batch 1.

    Returns:
        The dense sample [1, C, F, H, W], and the squared error of every branch, float64 [L, N, 3] on the CPU; that of
        the full branch is 0.
    """
    geometry = _geometry(model)
    squares = torch.zeros(
        model.num_layers, model.num_heads, len(Branch), dtype=torch.float64, device=model.proj_out.weight.device
    )  # [L, N, 3]

    def observe(
        layer: int, weights: Weights, query: Tensor, key: Tensor, value: Tensor, full: Tensor, text: Tensor | None
    ) -> None:
        whole = squares_of_layer(full[0], weights, geometry.video_tokens)  # []
        at_once = heads_at_once(query.shape[1], query.shape[3])
        for start in range(0, query.shape[2], at_once):
            heads = slice(start, min(start + at_once, query.shape[2]))
            q, k, v = (tensor[:, :, heads] for tensor in (query, key, value))  # [1, R, H, D] each
            for branch in (Branch.CORESET, Branch.SLIDING):
                routes = torch.full((1, q.shape[2]), int(branch), dtype=torch.int32, device=query.device)
                out = routed_attention(q, k, v, routes, geometry, text)  # [1, R, H, D]
                difference = _difference(out, full[:, :, heads])  # [R, H, D]
                found = squares_by_head(difference, weights, heads, geometry.video_tokens)  # [H]
                squares[layer, heads, int(branch)] = _relative(found, whole)

    with _observing(model, observe):
        sample = dense(model, inputs)
    return sample, squares.cpu()


def measure_routes(model: RoutedTransformer, inputs: Mapping[str, Any], routes: Tensor) -> tuple[Tensor, Tensor]:
    """One dense pass of one sample, with the error of routes in every layer, all heads together.

    Args:
        routes: int32 [L, N].

    Returns:
        The dense sample, and || sum over h of (O_routed,h - O_full,h) W_h^T ||^2 / || O_full W^T ||^2, float64 [L].
    """
    geometry = _geometry(model)
    device = model.proj_out.weight.device
    taken = routes.to(device)  # [L, N]
    squares = torch.zeros(model.num_layers, dtype=torch.float64, device=device)  # [L]

    def observe(
        layer: int, weights: Weights, query: Tensor, key: Tensor, value: Tensor, full: Tensor, text: Tensor | None
    ) -> None:
        out = routed_attention(query, key, value, taken[layer].unsqueeze(0), geometry, text)  # [1, R, N, D]
        # Rounded to the dtype of the outputs, whose difference it is: a relative error of the error.
        found = squares_of_layer(out.sub_(full)[0], weights, geometry.video_tokens)
        squares[layer] = _relative(found, squares_of_layer(full[0], weights, geometry.video_tokens))

    with _observing(model, observe):
        sample = dense(model, inputs)
    return sample, squares.cpu()


def dense(model: RoutedTransformer, inputs: Mapping[str, Any]) -> Tensor:
    """The sample of a pass with full attention everywhere."""
    return routed(model, inputs, None)


def routed(model: RoutedTransformer, inputs: Mapping[str, Any], routes: Tensor | None) -> Tensor:
    """The sample of a pass with routes int32 [L, N], float32 [1, C, F, H, W]."""
    override = None if routes is None else routes.to(model.proj_out.weight.device)
    with torch.no_grad():
        sample, _ = model(**inputs, route_override=override)
    return sample.float()  # type: ignore[no-any-return]


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


def _difference(out: Tensor, full: Tensor) -> Tensor:
    """[1, R, H, D] twice -> [R, H, D], float32 or float64"""
    wide = torch.promote_types(out.dtype, torch.float32)
    return out[0].to(wide) - full[0].to(wide)


def _relative(squares: Tensor, whole: Tensor) -> Tensor:
    """squares / whole; 0 where nothing differs, whatever the whole."""
    return torch.where(squares == 0, torch.zeros_like(squares), squares / whole)
