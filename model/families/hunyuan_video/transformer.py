# SPDX-License-Identifier: Apache-2.0
"""HunyuanVideo with routed attention, in its dual-stream and its single-stream blocks.

The blocks themselves: `blocks.py`.

Text tokens take part in the attention of every block: they follow the video tokens, padded to the geometry's T, and a
mask says which of them are valid. Padded rows are neither attended to nor computed (see `routed_attention`).

Among the models that begin with an image, "latent_concat" has the image and a mask as further channels of its latents,
and "token_replace" has it in place of the first latent frame, whose tokens the embedding of timestep 0 modulates.

The routers see the bare timestep embedding, without text and guidance: a schedule's routes are known before sampling.
Dtypes follow diffusers' HunyuanVideoTransformer3DModel: everything in the model's dtype, rotary embedding and timestep
frequencies in float32. Where they do not, less is rounded: QK norms round once, where diffusers' rounds before and
after its weight; and the timestep embedding is computed in float32, from the weights as they are, and rounded for the
modulation only. The routers see it unrounded: rounding to 16 bits would route heads elsewhere in every runtime.

Letters: B batch, C latent channels, S video tokens, R of them on this rank (S unless the model is parallelized), T text
tokens, E = N * D inner dimension, N heads, D head dim, L layers (dual-stream blocks first).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from vorta_trt.model.block_operators.layers import patch_embedding
from vorta_trt.model.boxes import Shape
from vorta_trt.model.families.hunyuan_video import replaces_tokens
from vorta_trt.model.families.hunyuan_video.blocks import (
    JointAttention,
    Modulation,
    RoutedDualStreamBlock,
    RoutedSingleStreamBlock,
)
from vorta_trt.model.families.hunyuan_video.fused import FusedAttention, FusedStep, fused_blocks, last_norm
from vorta_trt.model.families.hunyuan_video.token_refiner import TokenRefiner
from vorta_trt.model.geometry import AttentionGeometry
from vorta_trt.model.inputs import check_dtypes, check_per_sample, check_valid_first
from vorta_trt.model.parallel.shards import TokenShards
from vorta_trt.model.rotary import half_tables, with_fixed_tokens
from vorta_trt.model.router import Router
from vorta_trt.model.transformer import PLUGIN_OPS, RoutedTransformer


class RoutedHunyuanVideoTransformer(RoutedTransformer):
    """HunyuanVideoTransformer3DModel with a branch per head; see `RoutedTransformer` for construction."""

    family = "hunyuan_video"

    def _take_modules(self, model: Any, routers: Mapping[str, list[Router | None]]) -> None:
        self.rope = model.rope
        self.x_embedder = model.x_embedder
        self.context_embedder = TokenRefiner(model.context_embedder)
        self.time_text_embed = model.time_text_embed
        self.transformer_blocks = nn.ModuleList(
            map(RoutedDualStreamBlock, model.transformer_blocks, routers["transformer_blocks"])
        )
        self.single_transformer_blocks = nn.ModuleList(
            map(RoutedSingleStreamBlock, model.single_transformer_blocks, routers["single_transformer_blocks"])
        )
        self.norm_out = model.norm_out

    def forward(
        self,
        hidden_states: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        encoder_attention_mask: Tensor,
        pooled_projections: Tensor,
        guidance: Tensor | None = None,
        tau: Tensor | float | None = None,
        route_override: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """One denoising step.

        Args:
            hidden_states: [B, C, F, H, W] latents, in the model's dtype.
            timestep: [B].
            encoder_hidden_states: [B, T, text_embed_dim], in the model's dtype; T is the geometry's `text_tokens`, and
                fewer are padded to it.
            encoder_attention_mask: [B, T], any dtype; nonzero for valid tokens, which come first.
            pooled_projections: [B, pooled_projection_dim], in the model's dtype.
            guidance: [B], 1000 times the guidance scale; needed if the config has `guidance_embeds`, else not used.
            tau: routing threshold, a number or float32 [1]; None is `self.tau`, above 1 is dense.
            route_override: int32 [L, N]; -1 lets the router decide, another id (see `Branch`) replaces its choice.

        Returns:
            sample [B, C, F, H, W] of `out_channels`, and the routes taken, int32 [L, B, N].

        Raises:
            ValueError: the latents or the text do not match the geometry, or a shape or dtype is wrong.
        """
        self._check_call(route_override)
        self._check_conditions(hidden_states, encoder_hidden_states, encoder_attention_mask, pooled_projections)
        encoder_hidden_states, encoder_attention_mask = self._padded(encoder_hidden_states, encoder_attention_mask)
        geometry = self._geometry_for(hidden_states, encoder_hidden_states.shape[1])
        check_per_sample(timestep=timestep, **({} if guidance is None else {"guidance": guidance}))
        tau = self.tau if tau is None else tau

        valid = encoder_attention_mask != 0  # [B, T]
        check_valid_first("encoder_attention_mask", valid)
        text_length = valid.sum(dim=1, dtype=torch.int32)  # [B]
        bare = self.timestep_embedding(timestep)  # [B, E]
        shards = self._shards(geometry)
        of_frame = math.prod(geometry.grid[1:])
        modulation = self._modulation(bare, timestep, pooled_projections, guidance, shards, of_frame)
        if self.block_ops == PLUGIN_OPS:
            video = patch_embedding(self.x_embedder.proj, hidden_states)  # [B, S, E]
        else:
            video = self.x_embedder(hidden_states).contiguous()
        video, rope = shards.own(video), self._rope(shards)  # [B, R, E], [1, R+T, 1, D/2] each
        text = self.context_embedder(encoder_hidden_states, timestep, valid)  # [B, T, E]

        attentions, taken = self._attentions(bare, tau, route_override, geometry=geometry, text_length=text_length)
        if self.block_ops == PLUGIN_OPS:
            over = FusedAttention.over(*rope, shards.rows, text_length)
            last = last_norm(self.norm_out, modulation.temb, modulation.frame_tokens)
            step = FusedStep(modulation.temb, modulation.first_frame, modulation.frame_tokens, last, over)
            stacks: tuple[Any, Any] = (self.transformer_blocks, self.single_transformer_blocks)
            video = fused_blocks(self._run_block, stacks, video, text, step, attentions)  # [B, R, E]
        else:
            joint = JointAttention(rope, text_length)
            dual = len(self.transformer_blocks)
            for block, attend in zip(self.transformer_blocks, attentions[:dual], strict=True):
                video, text = self._run_block(block, video, text, modulation, attend, joint)
            tokens = torch.cat((video, text), dim=1)  # [B, R+T, E]
            for block, attend in zip(self.single_transformer_blocks, attentions[dual:], strict=True):
                tokens = self._run_block(block, tokens, modulation, attend, joint)
            video = self.norm_out(tokens[:, : shards.rows], modulation.temb)  # [B, R, E]
        return self._unpatchify(self._whole(self.proj_out(video), geometry), geometry.grid), taken

    def timestep_embedding(self, timestep: Tensor) -> Tensor:
        """The embedding without text and guidance: [B] -> [B, E], float32."""
        frequencies = self.time_text_embed.time_proj(timestep)  # [B, 256], float32
        first, second = (getattr(self.time_text_embed.timestep_embedder, name) for name in ("linear_1", "linear_2"))
        hidden = functional.silu(functional.linear(frequencies, first.weight.float(), first.bias.float()))  # [B, E]
        return functional.linear(hidden, second.weight.float(), second.bias.float())

    def routed_blocks(self) -> list[Any]:
        return [*self.transformer_blocks, *self.single_transformer_blocks]

    def _modulation(
        self,
        bare: Tensor,
        timestep: Tensor,
        pooled_projections: Tensor,
        guidance: Tensor | None,
        shards: TokenShards,
        of_frame: int,
    ) -> Modulation:
        """The modulation of the blocks: timestep, guidance and pooled text together, in the model's dtype.

        Args:
            bare: [B, E], the timestep embedding.
            timestep: [B].
            pooled_projections: [B, pooled_projection_dim], in the model's dtype.
            guidance: [B], 1000 times the guidance scale, or None; see `forward`.
            shards: Which tokens are computed here.
            of_frame: Number of tokens of a frame.
        """
        embedder = self.time_text_embed
        pooled = embedder.text_embedder(pooled_projections)  # [B, E]
        temb = bare.to(self.dtype)  # [B, E]
        if embedder.guidance_embedder is not None:
            if guidance is None:
                raise ValueError(
                    "guidance None: required, the config has guidance_embeds; pass 1000 times the guidance scale as "
                    "[B], e.g. torch.full((batch,), 6000.0)"
                )
            frequencies = embedder.time_proj(guidance)  # [B, 256], float32
            temb = temb + embedder.guidance_embedder(frequencies.to(self.dtype))
        if not replaces_tokens(self.config):
            return Modulation(temb + pooled)
        at_zero = self.timestep_embedding(torch.zeros_like(timestep)).to(self.dtype)  # [B, E]
        first, others = shards.of_first(of_frame, at_zero + pooled, temb + pooled)
        return Modulation(others, first, shards.first_tokens(of_frame))

    def _rope_tables(self, geometry: AttentionGeometry) -> tuple[Tensor, Tensor]:
        latent = [axis * patch for axis, patch in zip(geometry.grid, self.patch_size, strict=True)]
        tables = self.rope(torch.empty(1, device="cpu").expand(1, 1, *latent))  # cos and sin [S, D], each value twice
        cos, sin = half_tables(*(table[None, :, None] for table in tables))  # [1, S, 1, D/2]
        return with_fixed_tokens(cos, sin, geometry.text_tokens)

    def _check_conditions(self, latents: Tensor, text: Tensor, mask: Tensor, pooled: Tensor) -> None:
        if text.ndim != 3:
            raise ValueError(f"encoder_hidden_states of shape {tuple(text.shape)}: must be [B, T, text_embed_dim]")
        check_dtypes(self.dtype, hidden_states=latents, encoder_hidden_states=text, pooled_projections=pooled)
        if mask.shape != text.shape[:2]:
            raise ValueError(
                f"encoder_attention_mask of shape {tuple(mask.shape)}: must be {tuple(text.shape[:2])}, one entry per "
                f"row of encoder_hidden_states; pad it with zeros"
            )

    def _padded(self, text: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Pads text [B, *, text_embed_dim] and mask [B, *] to the T of a given geometry; the new rows are not valid."""
        if self.geometry is None or not self._geometry_is_given:
            return text, mask
        missing = self.geometry.text_tokens - text.shape[1]
        if missing <= 0:
            return text, mask
        return functional.pad(text, (0, 0, 0, missing)), functional.pad(mask, (0, missing))

    def _unpatchify(self, patches: Tensor, grid: Shape) -> Tensor:
        """[B, S, C * patch voxels] -> [B, C, F, H, W]."""
        voxels = patches.reshape(patches.shape[0], *grid, -1, *self.patch_size)  # [B, f, h, w, C, pf, ph, pw]
        return voxels.permute(0, 4, 1, 5, 2, 6, 3, 7).flatten(6, 7).flatten(4, 5).flatten(2, 3)
