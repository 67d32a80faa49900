# SPDX-License-Identifier: Apache-2.0
"""HunyuanVideo's two kinds of blocks with routed attention over video and text.

Dtypes: see `transformer.py`.

Letters: B batch, S video tokens, T text tokens, E = N * D inner dimension, N heads, D head dim.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from vorta_trt.model.families.hunyuan_video.fused import (
    FusedPair,
    FusedStream,
    fused_dual_block,
    fused_single_block,
)
from vorta_trt.model.operator import Attention, AttentionObserver
from vorta_trt.model.rotary import rotate
from vorta_trt.model.router import Router


@dataclass(frozen=True)
class Modulation:
    """The embeddings that modulate the tokens in every block.

    Attributes:
        temb: [B, E], the embedding that modulates the tokens.
        first_frame: [B, E], the embedding that modulates the video tokens of the first frame, where an image stands
            there in place of noise; None if `temb` modulates them, too.
        frame_tokens: how many tokens, the first ones, `first_frame` modulates.
    """

    temb: Tensor
    first_frame: Tensor | None = None
    frame_tokens: int = 0

    def of_video(self, norm: Any, parts: int, tokens: int) -> tuple[Tensor, ...]:
        """Shifts, scales and gates of the video tokens, and of any that follow them.

        Args:
            norm: a diffusers AdaLayerNormZero, AdaLayerNormZeroSingle, or one of those that replace tokens.
            parts: how many shifts, scales and gates there are.
            tokens: X, how many tokens.

        Returns:
            [B, 1, E] each. With `first_frame`, [B, X, E]: a choice of two values for each token, which compilers fuse
            with the operator that uses it.
        """
        usual = self.of_text(norm, parts)
        if self.first_frame is None:
            return usual
        replaced = _projected(norm, self.first_frame, parts)
        in_first = (torch.arange(tokens, device=self.temb.device) < self.frame_tokens)[None, :, None]  # [1, X, 1]
        return tuple(torch.where(in_first, first, rest) for first, rest in zip(replaced, usual, strict=True))

    def of_text(self, norm: Any, parts: int) -> tuple[Tensor, ...]:
        """Shifts, scales and gates of the text tokens, [B, 1, E] each."""
        return _projected(norm, self.temb, parts)


@dataclass(frozen=True)
class JointAttention:
    """Attention over video and text, with the data that all blocks share.

    Attributes:
        rope: cos and sin [1, S+T, 1, D/2], of angle 0 for text.
        text_length: int32 [B], valid text tokens.
    """

    rope: tuple[Tensor, Tensor]
    text_length: Tensor

    def __call__(
        self, query: Tensor, key: Tensor, value: Tensor, attend: Attention, observer: AttentionObserver | None
    ) -> Tensor:
        """Query, key, value [B, S+T, N, D], the former two normed -> [B, S+T, E]."""
        query, key = rotate(query, *self.rope), rotate(key, *self.rope)
        attended = attend(query, key, value)  # [B, S+T, N, D]
        if observer is not None:
            observer(query, key, value, attended, self.text_length)
        return attended.flatten(2, 3)


class RoutedDualStreamBlock(nn.Module):
    """A diffusers HunyuanVideoTransformerBlock, its attention routed; holds that block's own modules.

    Attributes:
        observer: callable that gets the tensors of every attention, see `AttentionObserver`.
    """

    observer: AttentionObserver | None = None

    def __init__(self, block: Any, router: Router | None) -> None:
        super().__init__()
        self.norm1, self.norm1_context = block.norm1, block.norm1_context
        self.attn = block.attn
        self.norm2, self.ff = block.norm2, block.ff
        self.norm2_context, self.ff_context = block.norm2_context, block.ff_context
        self.router = router

    def forward(self, tokens: Tensor | FusedPair, *arguments: Any) -> Any:
        """The native form for video tokens [B, S, E], the fused form for a `FusedPair`; see `fused_dual_block`."""
        if isinstance(tokens, FusedPair):
            return fused_dual_block(self, tokens, *arguments)
        return self._native(tokens, *arguments)

    def _native(
        self, video: Tensor, text: Tensor, modulation: Modulation, attend: Attention, joint: JointAttention
    ) -> tuple[Tensor, Tensor]:
        """Video [B, S, E], text [B, T, E] -> video, text of the same shapes."""
        of_video = modulation.of_video(self.norm1, 6, video.shape[1])  # [B, 1 or S, E] each
        of_text = modulation.of_text(self.norm1_context, 6)  # [B, 1, E] each
        shift, scale, gate, ff_shift, ff_scale, ff_gate = of_video
        text_shift, text_scale, text_gate, text_ff_shift, text_ff_scale, text_ff_gate = of_text
        normed = self.norm1.norm(video) * (1 + scale) + shift  # [B, S, E]
        normed_text = self.norm1_context.norm(text) * (1 + text_scale) + text_shift  # [B, T, E]
        query, key, value = self._heads(normed, normed_text)  # [B, S+T, N, D] each
        attended = joint(query, key, value, attend, self.observer)  # [B, S+T, E]
        for_video, for_text = attended.split((video.shape[1], text.shape[1]), dim=1)  # [B, S, E], [B, T, E]
        video = video + self.attn.to_out[1](self.attn.to_out[0](for_video)) * gate
        text = text + self.attn.to_add_out(for_text) * text_gate
        video = video + self.ff(self.norm2(video) * (1 + ff_scale) + ff_shift) * ff_gate
        modulated = self.norm2_context(text) * (1 + text_ff_scale) + text_ff_shift  # [B, T, E]
        text = text + self.ff_context(modulated) * text_ff_gate
        return video, text

    def output_weights(self) -> tuple[Tensor, Tensor]:
        """Weights of the attention's output projection, for video rows and for text rows: [E, N * D] each."""
        return self.attn.to_out[0].weight, self.attn.to_add_out.weight

    def _heads(self, video: Tensor, text: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Normed query and key, and value, of the video tokens and then the text tokens: [B, S+T, N, D]."""
        attn = self.attn
        query = _joined(
            _rms_norm(attn.norm_q, _split_heads(attn, attn.to_q(video))),
            _rms_norm(attn.norm_added_q, _split_heads(attn, attn.add_q_proj(text))),
        )
        key = _joined(
            _rms_norm(attn.norm_k, _split_heads(attn, attn.to_k(video))),
            _rms_norm(attn.norm_added_k, _split_heads(attn, attn.add_k_proj(text))),
        )
        value = _joined(_split_heads(attn, attn.to_v(video)), _split_heads(attn, attn.add_v_proj(text)))
        return query, key, value


class RoutedSingleStreamBlock(nn.Module):
    """A diffusers HunyuanVideoSingleTransformerBlock, its attention routed; holds that block's own modules.

    Attributes:
        observer: callable that gets the tensors of every attention, see `AttentionObserver`.
        joins: whether the block operators multiply attention and feed forward as two inputs (`JoinedLinear`), which
            saves a copy of both, [B, S+T, 5 E]; see docs/block-operators.md for what that was measured to do.
    """

    observer: AttentionObserver | None = None
    joins: bool = False

    def __init__(self, block: Any, router: Router | None) -> None:
        super().__init__()
        self.norm, self.attn = block.norm, block.attn
        self.proj_mlp, self.act_mlp, self.proj_out = block.proj_mlp, block.act_mlp, block.proj_out
        self.router = router

    def forward(self, tokens: Tensor | FusedStream, *arguments: Any) -> Any:
        """The native form for tokens [B, S+T, E], the fused form for a `FusedStream`; see `fused_single_block`."""
        if isinstance(tokens, FusedStream):
            return fused_single_block(self, tokens, *arguments)
        return self._native(tokens, *arguments)

    def _native(self, tokens: Tensor, modulation: Modulation, attend: Attention, joint: JointAttention) -> Tensor:
        """Tokens [B, S+T, E] -> [B, S+T, E]."""
        attn = self.attn
        shift, scale, gate = modulation.of_video(self.norm, 3, tokens.shape[1])  # [B, 1 or S+T, E] each
        normed = self.norm.norm(tokens) * (1 + scale) + shift  # [B, S+T, E]
        fed = self.act_mlp(self.proj_mlp(normed))  # [B, S+T, 4 E]
        query = _rms_norm(attn.norm_q, _split_heads(attn, attn.to_q(normed)))  # [B, S+T, N, D]
        key = _rms_norm(attn.norm_k, _split_heads(attn, attn.to_k(normed)))  # [B, S+T, N, D]
        value = _split_heads(attn, attn.to_v(normed))  # [B, S+T, N, D]
        attended = joint(query, key, value, attend, self.observer)  # [B, S+T, E]
        return tokens + gate * self.proj_out(torch.cat((attended, fed), dim=2))  # type: ignore[no-any-return]

    def output_weights(self) -> tuple[Tensor, Tensor]:
        """Weights of the attention's output projection, for video rows and for text rows: [E, N * D] each."""
        weight: Tensor = self.proj_out.weight[:, : self.attn.to_q.out_features]  # the rest is for the feed forward
        return weight, weight


def _projected(norm: Any, temb: Tensor, parts: int) -> tuple[Tensor, ...]:
    """The `parts` that an adaptive norm makes of an embedding [B, E], [B, 1, E] each."""
    modulation: Tensor = norm.linear(norm.silu(temb)).unsqueeze(1)  # [B, 1, parts * E]
    return modulation.chunk(parts, dim=2)


def _rms_norm(norm: Any, tokens: Tensor) -> Tensor:
    """A diffusers RMSNorm over D, as one operator: [B, *, N, D] -> [B, *, N, D]."""
    return functional.rms_norm(tokens, norm.weight.shape, norm.weight, norm.eps)


def _split_heads(attn: Any, tokens: Tensor) -> Tensor:
    """[B, *, E] -> [B, *, N, D]."""
    split: Tensor = tokens.unflatten(2, (attn.heads, -1))
    return split


def _joined(video: Tensor, text: Tensor) -> Tensor:
    """[B, S, N, D] and [B, T, N, D] -> [B, S+T, N, D]."""
    return torch.cat((video, text), dim=1)
