# SPDX-License-Identifier: Apache-2.0
"""HunyuanVideo's token refiner: the text tokens attend to each other before they join the video tokens.

Same numbers as diffusers' HunyuanVideoTokenRefiner for the valid tokens. Padded tokens come out finite but meaningless.
The mask is made without the in-place writes of diffusers' code, which would export as a scatter.

Letters: B batch, T padded text tokens, E = N * D inner dimension, N heads, D head dim.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


class RefinerBlock(nn.Module):
    """Holds the modules of a diffusers HunyuanVideoIndividualTokenRefinerBlock."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.norm1, self.attn = block.norm1, block.attn
        self.norm2, self.ff = block.norm2, block.ff
        self.norm_out = block.norm_out

    def forward(self, tokens: Tensor, temb: Tensor, seen: Tensor) -> Tensor:
        """Tokens [B, T, E], temb [B, E], seen bool [B, 1, T, T] (query, key) -> [B, T, E]."""
        gate, ff_gate = self.norm_out(temb)  # [B, 1, E] each
        tokens = tokens + self._attention(self.norm1(tokens), seen) * gate
        refined: Tensor = tokens + self.ff(self.norm2(tokens)) * ff_gate
        return refined

    def _attention(self, tokens: Tensor, seen: Tensor) -> Tensor:
        attn = self.attn
        query, key, value = (
            project(tokens).unflatten(2, (attn.heads, -1)).transpose(1, 2)
            for project in (attn.to_q, attn.to_k, attn.to_v)
        )  # [B, N, T, D]
        attended = functional.scaled_dot_product_attention(query, key, value, attn_mask=seen)  # [B, N, T, D]
        return attn.to_out[1](attn.to_out[0](attended.transpose(1, 2).flatten(2, 3)))  # type: ignore[no-any-return]


class TokenRefiner(nn.Module):
    """Holds the modules of a diffusers HunyuanVideoTokenRefiner."""

    def __init__(self, refiner: Any) -> None:
        super().__init__()
        self.time_text_embed = refiner.time_text_embed
        self.proj_in = refiner.proj_in
        blocks = nn.ModuleList(map(RefinerBlock, refiner.token_refiner.refiner_blocks))
        self.token_refiner = nn.ModuleDict({"refiner_blocks": blocks})  # for diffusers' parameter names

    def forward(self, text: Tensor, timestep: Tensor, valid: Tensor) -> Tensor:
        """Text [B, T, text_dim], timestep [B], valid bool [B, T] -> [B, T, E].

        Values in padded rows of `text` do not affect the result, even if they are not finite.
        """
        text = torch.where(valid.unsqueeze(-1), text, torch.zeros((), dtype=text.dtype, device=text.device))
        count = valid.float().sum(dim=1, keepdim=True).clamp(min=1)  # [B, 1]; without text the mean is 0
        mean = (text.float().sum(dim=1) / count).to(text.dtype)  # [B, text_dim]
        temb = self.time_text_embed(timestep, mean)  # [B, E]
        # The first key is always seen, so that no softmax is empty.
        first = torch.arange(valid.shape[1], device=valid.device) == 0  # [T]
        seen = (valid | first)[:, None, None, :].expand(-1, -1, valid.shape[1], -1)  # [B, 1, T, T], for ONNX Runtime
        tokens: Tensor = self.proj_in(text)  # [B, T, E]
        for block in self.token_refiner["refiner_blocks"]:  # type: ignore[attr-defined]
            tokens = block(tokens, temb, seen)
        return tokens
