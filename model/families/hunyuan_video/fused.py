# SPDX-License-Identifier: Apache-2.0
"""HunyuanVideo's blocks by the block operators: a norm is computed with the residual before it, across blocks too.

Float32 inside every operator, rounded once at each output, where the native form rounds after every step as diffusers
does. In float32 the numbers are the native form's but for the order of sums.

Letters: B batch, S video tokens, T text tokens, E = N * D inner dimension, N heads, D head dim, M rows of a modulation
(2 where the first frame has one of its own).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vorta_trt.model.block_operators.layers import (
    GELU,
    Norm,
    Tokens,
    all_fp8,
    feed_forward,
    head_norm,
    joined_linear,
    linear,
    linears,
    ones_of_scales,
    parts_of,
    qk_norm_rotary,
)
from vorta_trt.model.fp8_linear import QuantizedTokens
from vorta_trt.model.operator import Attention, AttentionObserver


class FusedStream(NamedTuple):
    """One stream of tokens between two blocks; both tensors are [B, X, E].

    Attributes:
        residual: The tokens, the residual stream.
        normed: The tokens, normed and modulated for the layers that read them next.
    """

    residual: Tensor
    normed: Tokens


class FusedPair(NamedTuple):
    """Video and text of a dual-stream block; the last block of a model without other blocks gives no text."""

    video: FusedStream
    text: FusedStream | None


class StreamModulation(NamedTuple):
    """The modulation of one stream of tokens in a block.

    Attributes:
        first: The norm before the attention.
        gate: Gate of the attention, float32 [B, M, E]; in a single-stream block, of attention and feed forward
            together.
        second: The norm before the feed forward; None in a single-stream block.
        feed_forward_gate: Gate of the feed forward, float32 [B, M, E]; None in a single-stream block.
    """

    first: Norm
    gate: Tensor
    second: Norm | None = None
    feed_forward_gate: Tensor | None = None


@dataclass(frozen=True)
class FusedAttention:
    """Attention over video and text, with the data that all blocks share.

    Attributes:
        rope: Cos and sin [1, S+T, 1, D/2], of angle 0 for text.
        text_length: Int32 [B], valid text tokens.
        video_rope: Cos and sin of the video tokens, [1, S, 1, D/2].
    """

    rope: tuple[Tensor, Tensor]
    text_length: Tensor
    video_rope: tuple[Tensor, Tensor]

    @classmethod
    def over(cls, cos: Tensor, sin: Tensor, video_tokens: int, text_length: Tensor) -> FusedAttention:
        """Makes the attention from cos and sin [1, S+T, 1, D/2] of all tokens."""
        return cls((cos, sin), text_length, (cos[:, :video_tokens], sin[:, :video_tokens]))

    def __call__(
        self, query: Tensor, key: Tensor, value: Tensor, attend: Attention, observer: AttentionObserver | None
    ) -> Tensor:
        """Query, key, value [B, S+T, N, D], the former two normed and rotated -> [B, S+T, E]."""
        attended = attend(query, key, value)  # [B, S+T, N, D]
        if observer is not None:
            observer(query, key, value, attended, self.text_length)
        return attended.flatten(2, 3)


def stream_modulation(
    norm: Any,
    second: Any,
    quantize: tuple[bool, bool],
    temb: Tensor,
    first_frame: Tensor | None = None,
    frame_tokens: int = 0,
) -> StreamModulation:
    """The modulation that an adaptive norm computes from the embedding.

    Args:
        norm: A diffusers AdaLayerNormZero or AdaLayerNormZeroSingle, or one of those that replace tokens.
        second: The LayerNorm before the feed forward, or None in a single-stream block.
        quantize: Whether the first and the second norm quantise their tokens.
        temb: [B, E].
        first_frame: [B, E], the embedding that modulates the tokens of the first frame; None if `temb` modulates them,
            too.
        frame_tokens: How many tokens, the first ones, `first_frame` modulates.

    Returns:
        The modulation; for a single-stream block it has the first norm and its gate alone.
    """
    parts = 3 if second is None else 6
    rows = _projected(norm, temb, parts)  # [B, parts, E]
    if first_frame is not None:
        rows = torch.stack((_projected(norm, first_frame, parts), rows), dim=2).flatten(1, 2)  # [B, parts * 2, E]
    count = 1 if first_frame is None else 2
    shift, scale, gate, *more = parts_of(rows + ones_of_scales(parts, 1, count, rows.device), parts)  # [B, M, E] each
    first_tokens = 0 if first_frame is None else frame_tokens
    first = Norm(scale, shift, norm.norm.eps, first_tokens, quantize[0])
    if second is None:
        return StreamModulation(first, gate)
    ff_shift, ff_scale, ff_gate = more
    return StreamModulation(first, gate, Norm(ff_scale, ff_shift, second.eps, first_tokens, quantize[1]), ff_gate)


def last_norm(norm: Any, temb: Tensor, first_tokens: int = 0) -> Norm:
    """The norm after all blocks, a diffusers AdaLayerNormContinuous, modulated by the embedding [B, E].

    Its modulation is the same for all tokens; `first_tokens` is for the gate of the block before it.
    """
    rows = norm.linear(norm.silu(temb)).float().unflatten(1, (2, -1))  # [B, 2, E]: scale, shift
    scale, shift = parts_of(rows + ones_of_scales(2, 0, 1, rows.device), 2)  # [B, 1, E] each
    return Norm(scale, shift, norm.norm.eps, first_tokens)


def fused_dual_block(
    block: Any,
    tokens: FusedPair,
    modulations: tuple[StreamModulation, StreamModulation],
    following: tuple[Norm, Norm | None],
    attend: Attention,
    joint: FusedAttention,
) -> FusedPair:
    """A dual-stream block.

    Args:
        block: The block.
        tokens: Video and text.
        modulations: Modulations of the video and of the text.
        following: Norms that read the output of the video and of the text; the latter is None if nothing reads the
            text.
        attend: The routed attention.
        joint: The attention over video and text.

    Returns:
        Video and text, normed for the layers that follow.
    """
    video, text = tokens
    assert text is not None
    query, key, value = _heads(block.attn, video.normed, text.normed, joint)  # [B, S+T, N, D] each
    attended = joint(query, key, value, attend, block.observer)  # [B, S+T, E]
    for_video, for_text = attended.split((video.residual.shape[1], text.residual.shape[1]), dim=1)
    of_video, of_text = modulations
    projected = linear(block.attn.to_out[0], for_video)  # [B, S, E]
    video = _fed(block.ff, video.residual, projected, of_video, following[0])
    if following[1] is None:
        return FusedPair(video, None)
    projected = linear(block.attn.to_add_out, for_text)  # [B, T, E]
    return FusedPair(video, _fed(block.ff_context, text.residual, projected, of_text, following[1]))


def fused_single_block(
    block: Any,
    tokens: FusedStream,
    modulation: StreamModulation,
    following: Norm,
    attend: Attention,
    joint: FusedAttention,
) -> FusedStream:
    """A single-stream block of [B, S+T, E]; `following` is the norm that reads its output."""
    attn, normed = block.attn, tokens.normed
    fed = linear(block.proj_mlp, normed, GELU)  # [B, S+T, 4 E]
    query, key, value = linears((attn.to_q, attn.to_k, attn.to_v), normed)  # [B, S+T, E] each
    query, key = qk_norm_rotary((attn.norm_q, attn.norm_k), query, key, joint.rope, attn.heads)  # [B, S+T, N, D] each
    value = value.unflatten(2, (attn.heads, -1))  # [B, S+T, N, D]
    attended = joint(query, key, value, attend, block.observer)  # [B, S+T, E]
    if block.joins:
        update = joined_linear(block.proj_out, attended, fed)  # [B, S+T, E]
    else:
        update = linear(block.proj_out, torch.cat((attended, fed), dim=2))  # [B, S+T, E]
    return FusedStream(*following.of_sum(tokens.residual, update, modulation.gate))


@dataclass(frozen=True)
class FusedStep:
    """The data that all blocks of a step share.

    Attributes:
        temb: [B, E].
        first_frame: [B, E], the embedding that modulates the video tokens of the first frame; None if `temb` modulates
            them, too.
        frame_tokens: How many tokens, the first ones, `first_frame` modulates.
        last: The norm after all blocks.
        joint: The attention over video and text.
    """

    temb: Tensor
    first_frame: Tensor | None
    frame_tokens: int
    last: Norm
    joint: FusedAttention

    def of_video(self, norm: Any, second: Any, quantize: tuple[bool, bool]) -> StreamModulation:
        """The modulation of the video tokens, and of any tokens that follow them."""
        return stream_modulation(norm, second, quantize, self.temb, self.first_frame, self.frame_tokens)


def fused_blocks(
    run_block: Callable[..., Any],
    stacks: tuple[Sequence[Any], Sequence[Any]],
    video: Tensor,
    text: Tensor,
    step: FusedStep,
    attentions: Sequence[Attention],
) -> Tensor:
    """All blocks and the norm after them.

    Args:
        run_block: Calls a block with arguments.
        stacks: The dual-stream blocks, at least one, and the single-stream blocks.
        video: [B, S, E].
        text: [B, T, E].
        step: The data that all blocks share.
        attentions: Attention function of each block, dual-stream blocks first.

    Returns:
        The video tokens [B, S, E] as the last norm leaves them.
    """
    dual, single = stacks
    of_video = [step.of_video(block.norm1, block.norm2, _video_quantized(block)) for block in dual]
    of_text = [
        stream_modulation(block.norm1_context, block.norm2_context, _text_quantized(block), step.temb) for block in dual
    ]
    of_both = [step.of_video(block.norm, None, (_both_quantized(block), False)) for block in single]
    following: list[tuple[Norm, Norm | None]] = [
        (next_video.first, next_text.first) for next_video, next_text in zip(of_video[1:], of_text[1:], strict=True)
    ]
    norms = [*(modulation.first for modulation in of_both), step.last]
    # Text rows are never tokens of the first frame. After the last dual-stream block both streams are joined in 16
    # bits.
    joining = norms[0]._replace(quantize=False)
    following.append((joining, joining._replace(first_tokens=0) if single else None))

    pair = FusedPair(FusedStream(video, of_video[0].first.of(video)), FusedStream(text, of_text[0].first.of(text)))
    for layer, block in enumerate(dual):
        modulations = of_video[layer], of_text[layer]
        pair = run_block(block, pair, modulations, following[layer], attentions[layer], step.joint)
    if pair.text is None:
        return _in_16_bits(pair.video.normed)
    normed = torch.cat((_in_16_bits(pair.video.normed), _in_16_bits(pair.text.normed)), dim=1)  # [B, S+T, E]
    residual = torch.cat((pair.video.residual, pair.text.residual), dim=1)  # [B, S+T, E]
    tokens = FusedStream(residual, QuantizedTokens.of(normed) if norms[0].quantize else normed)
    for layer, block in enumerate(single):
        attend = attentions[len(dual) + layer]
        tokens = run_block(block, tokens, of_both[layer], norms[layer + 1], attend, step.joint)
    return _in_16_bits(tokens.normed)[:, : video.shape[1]]


def _video_quantized(block: Any) -> tuple[bool, bool]:
    """Whether only fp8 layers read the video tokens after the first and the second norm of a dual-stream block."""
    attn, (first, *_) = block.attn, block.ff.net
    return all_fp8(attn.to_q, attn.to_k, attn.to_v), all_fp8(first.proj)


def _text_quantized(block: Any) -> tuple[bool, bool]:
    """Whether only fp8 layers read the text tokens after the first and the second norm of a dual-stream block."""
    attn, (first, *_) = block.attn, block.ff_context.net
    return all_fp8(attn.add_q_proj, attn.add_k_proj, attn.add_v_proj), all_fp8(first.proj)


def _both_quantized(block: Any) -> bool:
    """Whether only fp8 layers read the tokens after the one norm of a single-stream block."""
    attn = block.attn
    return all_fp8(block.proj_mlp, attn.to_q, attn.to_k, attn.to_v)


def _in_16_bits(normed: Tokens) -> Tensor:
    """Normed tokens that are known not to be quantised."""
    assert isinstance(normed, Tensor)
    return normed


def _fed(layer: Any, residual: Tensor, update: Tensor, modulation: StreamModulation, following: Norm) -> FusedStream:
    """Adds the gated attention to the residual, and then the gated feed forward."""
    assert modulation.second is not None and modulation.feed_forward_gate is not None
    residual, normed = modulation.second.of_sum(residual, update, modulation.gate)
    fed = feed_forward(layer, normed)
    return FusedStream(*following.of_sum(residual, fed, modulation.feed_forward_gate))


def _heads(attn: Any, video: Tokens, text: Tokens, joint: FusedAttention) -> tuple[Tensor, Tensor, Tensor]:
    """Query and key, normed and rotated, and value, of the video tokens and then the text: [B, S+T, N, D]."""
    heads = attn.heads
    query, key, video_value = linears((attn.to_q, attn.to_k, attn.to_v), video)  # [B, S, E] each
    query, key = qk_norm_rotary((attn.norm_q, attn.norm_k), query, key, joint.video_rope, heads)  # [B, S, N, D] each
    # No rotation of the text.
    text_query, text_key, text_value = linears((attn.add_q_proj, attn.add_k_proj, attn.add_v_proj), text)  # [B, T, E]
    text_query = head_norm(attn.norm_added_q, text_query, heads)  # [B, T, N, D]
    text_key = head_norm(attn.norm_added_k, text_key, heads)  # [B, T, N, D]
    value = torch.cat((video_value, text_value), dim=1)  # [B, S+T, E]
    return (
        torch.cat((query, text_query), dim=1),
        torch.cat((key, text_key), dim=1),
        value.unflatten(2, (heads, -1)),
    )


def _projected(norm: Any, temb: Tensor, parts: int) -> Tensor:
    """The `parts` that an adaptive norm makes of an embedding [B, E]: float32 [B, parts, E]."""
    modulation: Tensor = norm.linear(norm.silu(temb)).float().unflatten(1, (parts, -1))
    return modulation
