# SPDX-License-Identifier: Apache-2.0
"""Wan's blocks by the block operators: a norm is computed with the residual before it, across the blocks' borders too.

Float32 inside every operator, rounded once at each output. In float32 the numbers are the native form's but for the
order of sums.

Letters: B batch, S video tokens, E = N * D inner dimension, N heads, D head dim, X text tokens and Y image tokens of
the cross-attention, M timesteps (1 or 2), P parts of a modulation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vorta_trt.model.block_operators.layers import (
    Norm,
    Tokens,
    all_fp8,
    feed_forward,
    head_norm,
    linear,
    linears,
    ones_of_scales,
    parts_of,
    qk_norm_rotary,
)
from vorta_trt.model.operator import Attention

BLOCK_PARTS, LAST_PARTS = 6, 2  # shift, scale, gate of the attention and of the feed forward; shift, scale


class FusedTokens(NamedTuple):
    """The tokens between two blocks; both tensors are [B, S, E].

    Attributes:
        residual: The tokens, the residual stream.
        normed: The tokens, normed and modulated for the layers that read them next.
    """

    residual: Tensor
    normed: Tokens


@dataclass(frozen=True)
class FusedStep:
    """The data that all blocks of a step share.

    Attributes:
        text: [B, X, E].
        image: [B, Y, E], or None.
        rope: Cos and sin [1, S, 1, D/2].
        first_tokens: How many tokens, the first ones, the first of two timesteps modulates.
        one: Float32 [1, 1, E], all 1: the gate of the cross-attention.
    """

    text: Tensor
    image: Tensor | None
    rope: tuple[Tensor, Tensor]
    first_tokens: int
    one: Tensor


class BlockModulation(NamedTuple):
    """The modulation of a block.

    Attributes:
        first: The norm before the attention.
        gate: Gate of the attention, float32 [B, M, E].
        second: The norm before the feed forward.
        feed_forward_gate: Gate of the feed forward, float32 [B, M, E].
    """

    first: Norm
    gate: Tensor
    second: Norm
    feed_forward_gate: Tensor


def shared_modulation(projected: Tensor) -> Tensor:
    """The modulation that all blocks share, and to which each adds its table.

    Args:
        projected: [B, (M,) 6, E], the projected embeddings of the timesteps.

    Returns:
        Float32 [B, 6 * M, E], with 1 added to the scales.
    """
    rows = _by_part(projected.float())
    return rows + ones_of_scales(BLOCK_PARTS, 1, rows.shape[1] // BLOCK_PARTS, rows.device)


def block_modulation(block: Any, shared: Tensor, first_tokens: int) -> BlockModulation:
    """A block's modulation: its table [1, 6, E] plus `shared`, the result of `shared_modulation`."""
    parts = parts_of(_rows(block.scale_shift_table, shared.shape[1]) + shared, BLOCK_PARTS)
    shift, scale, gate, ffn_shift, ffn_scale, ffn_gate = parts  # [B, M, E] each
    attn, (ffn_first, *_) = block.attn1, block.ffn.net
    quantize, ffn_quantize = all_fp8(attn.to_q, attn.to_k, attn.to_v), all_fp8(ffn_first.proj)
    first = Norm(scale, shift, block.norm1.eps, first_tokens, quantize)
    second = Norm(ffn_scale, ffn_shift, block.norm3.eps, first_tokens, ffn_quantize)
    return BlockModulation(first, gate, second, ffn_gate)


def last_norm(norm: Any, table: Tensor, embeddings: Tensor, first_tokens: int) -> Norm:
    """The norm after all blocks, modulated by its table [1, 2, E] plus the timesteps' embeddings [B, (M,) E]."""
    embedded = embeddings.float()
    if embedded.ndim == 2:
        embedded = embedded.unsqueeze(1)  # [B, 1, E]
    rows = embedded.shape[1]
    both = _rows(table, LAST_PARTS * rows) + embedded.repeat(1, LAST_PARTS, 1) if rows > 1 else table + embedded
    shift, scale = parts_of(both + ones_of_scales(LAST_PARTS, 1, rows, both.device), LAST_PARTS)  # [B, M, E] each
    return Norm(scale, shift, norm.eps, first_tokens)


def fused_block(
    block: Any, tokens: FusedTokens, modulation: BlockModulation, following: Norm, step: FusedStep, attend: Attention
) -> FusedTokens:
    """A block; `following` is the norm that reads its output: the next block's first, or the one after all blocks."""
    attended = _self_attention(block, tokens.normed, step, attend)  # [B, S, E]
    between = _affine(block.norm2, step.first_tokens, all_fp8(block.attn2.to_q))
    normed: Tokens
    if between is None:  # no norm before the cross-attention
        residual = (tokens.residual.float() + attended.float() * _by_token(modulation, tokens)).type_as(attended)
        normed = residual
    else:
        residual, normed = between.of_sum(tokens.residual, attended, modulation.gate)
    crossed = _cross_attention(block.attn2, normed, step)  # [B, S, E]
    residual, normed = modulation.second.of_sum(residual, crossed, step.one)
    fed = feed_forward(block.ffn, normed)  # [B, S, E]
    return FusedTokens(*following.of_sum(residual, fed, modulation.feed_forward_gate))


def _self_attention(block: Any, normed: Tokens, step: FusedStep, attend: Attention) -> Tensor:
    attn = block.attn1
    query, key, value = linears((attn.to_q, attn.to_k, attn.to_v), normed)  # [B, S, E] each
    query, key = qk_norm_rotary((attn.norm_q, attn.norm_k), query, key, step.rope, attn.heads)  # [B, S, N, D] each
    value = value.unflatten(2, (attn.heads, -1))  # [B, S, N, D]
    attended = attend(query, key, value)  # [B, S, N, D]
    if block.observer is not None:
        block.observer(query, key, value, attended, None)
    return linear(attn.to_out[0], attended.flatten(2, 3))


def _cross_attention(attn: Any, normed: Tokens, step: FusedStep) -> Tensor:
    query = head_norm(attn.norm_q, linear(attn.to_q, normed), attn.heads)  # [B, S, N, D]
    attended = _attended(attn, query, step.text, attn.to_k, attn.norm_k, attn.to_v)  # [B, S, E]
    if step.image is not None:
        attended = attended + _attended(attn, query, step.image, attn.add_k_proj, attn.norm_added_k, attn.add_v_proj)
    return linear(attn.to_out[0], attended)


def _attended(attn: Any, query: Tensor, seen: Tensor, to_key: Any, norm_key: Any, to_value: Any) -> Tensor:
    """Attention of query [B, S, N, D] to other tokens [B, *, E] -> [B, S, E]."""
    key, value = linears((to_key, to_value), seen)  # [B, *, E] each
    key = head_norm(norm_key, key, attn.heads)  # [B, *, N, D]
    value = value.unflatten(2, (attn.heads, -1))  # [B, *, N, D]
    attended: Tensor = torch.ops.vorta.cross_attention(query, key, value, 0.0)  # [B, S, N, D]
    return attended.flatten(2, 3)


def _affine(norm: Any, first_tokens: int, quantize: bool) -> Norm | None:
    """A LayerNorm whose weight and bias are the modulation, the same for every token; None for no norm at all."""
    if not hasattr(norm, "eps"):
        return None
    weight, bias = norm.weight.float()[None, None], norm.bias.float()[None, None]  # [1, 1, E]
    return Norm(weight, bias, norm.eps, first_tokens, quantize)


def _by_token(modulation: BlockModulation, tokens: FusedTokens) -> Tensor:
    """The attention's gate, expanded to broadcast over the tokens: [B, 1 or S, E]."""
    gate, first_tokens = modulation.gate, modulation.first.first_tokens
    if gate.shape[1] == 1:
        return gate
    is_first = torch.arange(tokens.residual.shape[1], device=gate.device) < first_tokens  # [S]
    return torch.where(is_first.unsqueeze(1), gate[:, :1], gate[:, 1:])


def _by_part(projected: Tensor) -> Tensor:
    """Parts of one timestep [B, P, E], or of two [B, 2, P, E] -> [B, P * M, E], the rows of a part contiguous."""
    return projected if projected.ndim == 3 else projected.transpose(1, 2).flatten(1, 2)


def _rows(table: Tensor, count: int) -> Tensor:
    """A table [1, P, E] with every part repeated for each of the modulation's rows: [1, count, E]."""
    rows = count // table.shape[1]
    return table.float() if rows == 1 else table.float().repeat_interleave(rows, dim=1)
