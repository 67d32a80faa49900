# SPDX-License-Identifier: Apache-2.0
"""The attention of HunyuanVideo 1.5's VAE in a form that can be exported.

A token attends to the tokens of its own frame and of earlier frames. diffusers writes that mask, [X, X], row by row:
7,936 assignments for a tile of 121 x 256 x 256, each of which makes nodes of a graph. Here the mask is [F, F].

Letters: B batch, C channels, F, H, W frames, height, width, X = F * H * W.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from vorta_trt.model.families.parts import replace_modules


class FrameCausalAttention(nn.Module):
    """diffusers' HunyuanVideo15AttnBlock; holds that block's own modules.

    Logits are masked, and the softmax is computed, in float32.
    """

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.norm, self.proj_out = block.norm, block.proj_out
        self.to_q, self.to_k, self.to_v = block.to_q, block.to_k, block.to_v

    def forward(self, tokens: Tensor) -> Tensor:
        """[B, C, F, H, W] -> [B, C, F, H, W]."""
        batch, channels, frames, height, width = tokens.shape
        normed = self.norm(tokens)
        layers = (self.to_q, self.to_k, self.to_v)
        query, key, value = (layer(normed).flatten(2).transpose(1, 2) for layer in layers)  # [B, X, C] each
        logits = (query / math.sqrt(channels)) @ key.transpose(1, 2)  # [B, X, X]
        frame = torch.arange(frames, device=tokens.device)
        later = (frame[None, :] > frame[:, None])[:, None, :, None]  # [F, 1, F, 1]
        by_frame = logits.float().reshape(batch, frames, height * width, frames, height * width)
        weights = by_frame.masked_fill(later, -math.inf).reshape(logits.shape).softmax(dim=2).to(value.dtype)
        attended = (weights @ value).transpose(1, 2).reshape(tokens.shape)  # [B, C, F, H, W]
        projected: Tensor = self.proj_out(attended)
        return projected + tokens


def with_frame_masks(vae: Any) -> None:
    """Puts `FrameCausalAttention` in the places of a VAE's attentions."""
    from diffusers.models.autoencoders.autoencoder_kl_hunyuanvideo15 import HunyuanVideo15AttnBlock

    replace_modules(vae, HunyuanVideo15AttnBlock, FrameCausalAttention)
