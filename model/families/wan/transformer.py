# SPDX-License-Identifier: Apache-2.0
"""Wan with routed self-attention: text to video, image to video, first and last frame to video.

Dtypes follow diffusers' WanTransformer3DModel to the letter: norms, modulation and residual sums in float32, the
timestep embedder in float32 with its result rounded to the activations' dtype; the router computes in float32 from that
result.

Models of two timesteps (see `two_timesteps`) take the timestep of every token in diffusers, but a video has only two
values: one on the tokens of the first latent frame and one on all others. Both are embedded once, and each token takes
one of them where the modulation is applied, so that there is never a modulation of every token, [B, S, 6, E].

In other models of images, `hidden_states` have the channels of a condition behind those of the latents: a mask and the
encoded image. Wan 2.1 also gives CLIP's embeddings of images to the cross-attention, as keys and values of their own.

Letters: B batch, C input channels, S video tokens, R of them on this rank (S unless the model is parallelized), E = N *
D inner dimension, N heads, D head dim, L layers, X text tokens and Y image tokens of the cross-attention.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from vorta_trt.model.block_operators.layers import patch_embedding
from vorta_trt.model.boxes import Shape
from vorta_trt.model.families.wan import two_timesteps
from vorta_trt.model.families.wan.fused import (
    FusedStep,
    FusedTokens,
    block_modulation,
    fused_block,
    last_norm,
    shared_modulation,
)
from vorta_trt.model.geometry import AttentionGeometry
from vorta_trt.model.inputs import check_dtypes, check_per_sample, check_two_per_sample
from vorta_trt.model.operator import Attention, AttentionObserver
from vorta_trt.model.rotary import half_tables, rotate
from vorta_trt.model.router import Router
from vorta_trt.model.transformer import PLUGIN_OPS, RoutedTransformer

ByToken = Callable[..., Tensor]
"""Expands a part of the modulation, 1 or 2 of [B, 1, E], to broadcast over tokens [B, S, E]: [B, 1 or S, E]."""


class RoutedWanBlock(nn.Module):
    """A diffusers WanTransformerBlock, its self-attention routed; holds that block's own modules.

    Attributes:
        observer: callable that gets the tensors of every self-attention, see `AttentionObserver`.
    """

    observer: AttentionObserver | None = None

    def __init__(self, block: Any, router: Router | None) -> None:
        super().__init__()
        self.norm1, self.attn1 = block.norm1, block.attn1
        self.norm2, self.attn2 = block.norm2, block.attn2
        self.norm3, self.ffn = block.norm3, block.ffn
        self.scale_shift_table = block.scale_shift_table
        self.router = router

    def forward(self, tokens: Tensor | FusedTokens, *arguments: Any) -> Any:
        """The native form for tokens [B, S, E], the fused form for `FusedTokens`; see `fused_block`."""
        if isinstance(tokens, FusedTokens):
            return fused_block(self, tokens, *arguments)
        return self._native(tokens, *arguments)

    def _native(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        image: Tensor | None,
        modulation: Tensor,
        rope: tuple[Tensor, Tensor],
        attend: Attention,
        by_token: ByToken,
    ) -> Tensor:
        """Tokens [B, S, E], text [B, X, E], image [B, Y, E], modulation [B, (2,) 6, E] -> [B, S, E]."""
        modulation = self.scale_shift_table + modulation.float()  # [B, (2,) 6, E]
        shift, scale, gate, ffn_shift, ffn_scale, ffn_gate = _parts(modulation)

        normed = self.norm1(hidden_states.float()) * (1 + by_token(*scale)) + by_token(*shift)  # [B, S, E]
        attended = self._self_attention(normed.type_as(hidden_states), rope, attend)  # [B, S, E]
        hidden_states = (hidden_states.float() + attended * by_token(*gate)).type_as(hidden_states)

        normed = self.norm2(hidden_states.float()).type_as(hidden_states)
        hidden_states = hidden_states + self._cross_attention(normed, encoder_hidden_states, image)

        normed = self.norm3(hidden_states.float()) * (1 + by_token(*ffn_scale)) + by_token(*ffn_shift)
        fed: Tensor = self.ffn(normed.type_as(hidden_states))  # [B, S, E]
        return (hidden_states.float() + fed.float() * by_token(*ffn_gate)).type_as(hidden_states)

    def _self_attention(self, hidden_states: Tensor, rope: tuple[Tensor, Tensor], attend: Attention) -> Tensor:
        attn = self.attn1
        query = rotate(_split_heads(attn, attn.norm_q(attn.to_q(hidden_states))), *rope)  # [B, S, N, D]
        key = rotate(_split_heads(attn, attn.norm_k(attn.to_k(hidden_states))), *rope)  # [B, S, N, D]
        value = _split_heads(attn, attn.to_v(hidden_states))  # [B, S, N, D]
        attended = attend(query, key, value)  # [B, S, N, D]
        if self.observer is not None:
            self.observer(query, key, value, attended, None)
        return _project(attn, attended.flatten(2, 3))

    def output_weights(self) -> tuple[Tensor, Tensor]:
        """Weights of the self-attention's output projection, for video rows and for text rows: [E, N * D] each."""
        weight: Tensor = self.attn1.to_out[0].weight
        return weight, weight

    def _cross_attention(self, hidden_states: Tensor, encoder_hidden_states: Tensor, image: Tensor | None) -> Tensor:
        attn = self.attn2
        query = _split_heads(attn, attn.norm_q(attn.to_q(hidden_states))).transpose(1, 2)  # [B, N, S, D]
        key = _split_heads(attn, attn.norm_k(attn.to_k(encoder_hidden_states))).transpose(1, 2)  # [B, N, X, D]
        value = _split_heads(attn, attn.to_v(encoder_hidden_states)).transpose(1, 2)  # [B, N, X, D]
        attended = functional.scaled_dot_product_attention(query, key, value)  # [B, N, S, D]
        attended = attended.transpose(1, 2).flatten(2, 3)  # [B, S, E]
        if image is not None:
            key = _split_heads(attn, attn.norm_added_k(attn.add_k_proj(image))).transpose(1, 2)  # [B, N, Y, D]
            value = _split_heads(attn, attn.add_v_proj(image)).transpose(1, 2)  # [B, N, Y, D]
            seen = functional.scaled_dot_product_attention(query, key, value)  # [B, N, S, D]
            attended = attended + seen.transpose(1, 2).flatten(2, 3)
        return _project(attn, attended)


class RoutedWanTransformer(RoutedTransformer):
    """WanTransformer3DModel with a branch per head; see `RoutedTransformer` for construction."""

    family = "wan"

    def _take_modules(self, model: Any, routers: Mapping[str, list[Router | None]]) -> None:
        self.rope = model.rope
        self.patch_embedding = model.patch_embedding
        self.condition_embedder = model.condition_embedder
        self.blocks = nn.ModuleList(map(RoutedWanBlock, model.blocks, routers["blocks"]))
        self.norm_out = model.norm_out
        self.scale_shift_table = model.scale_shift_table

    @classmethod
    def empty_diffusers_model(cls, config: Mapping[str, Any]) -> nn.Module:
        from diffusers.models.transformers.transformer_wan import WanRotaryPosEmbed

        model: Any = super().empty_diffusers_model(config)
        settings = model.config
        model.rope = WanRotaryPosEmbed(settings.attention_head_dim, settings.patch_size, settings.rope_max_seq_len)
        empty: nn.Module = model
        return empty

    def forward(
        self,
        hidden_states: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        encoder_hidden_states_image: Tensor | None = None,
        tau: Tensor | float | None = None,
        route_override: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """One denoising step.

        Args:
            hidden_states: [B, C, F, H, W] latents and the channels of a condition, in the model's dtype.
            timestep: [B]; for a model of two timesteps [B, 2], that of the first latent frame and that of all others,
                of which the routers see the latter.
            encoder_hidden_states: [B, X, text_dim], in the model's dtype.
            encoder_hidden_states_image: [B, Y, image_dim], in the model's dtype, for models with an `image_dim`.
            tau: routing threshold, a number or float32 [1]; None is `self.tau`, above 1 is dense.
            route_override: int32 [L, N]; -1 lets the router decide, another id (see `Branch`) replaces its choice.

        Returns:
            sample [B, out_channels, F, H, W], and the routes taken, int32 [L, B, N].

        Raises:
            ValueError: the latents do not match the geometry, or a shape or dtype is wrong.
        """
        geometry = self._geometry_for(hidden_states)
        self._check_call(route_override)
        check_dtypes(self.dtype, hidden_states=hidden_states, encoder_hidden_states=encoder_hidden_states)
        self._check_image(encoder_hidden_states_image)
        tau = self.tau if tau is None else tau
        shards = self._shards(geometry)
        of_frame = math.prod(geometry.grid[1:])
        first_tokens = shards.first_tokens(of_frame)  # of the first latent frame

        if self.block_ops == PLUGIN_OPS:
            tokens = patch_embedding(self.patch_embedding, hidden_states)  # [B, S, E]
        else:
            tokens = self.patch_embedding(hidden_states).flatten(2).transpose(1, 2).contiguous()
        tokens, rope = shards.own(tokens), self._rope(shards)  # [B, R, E], [1, R, 1, D/2] each
        if two_timesteps(self.config):
            check_two_per_sample(timestep=timestep)
            embeddings = self.timestep_embedding(timestep.flatten()).unflatten(0, (-1, 2))  # [B, 2, E]
            temb, by_token = embeddings[:, 1], _choice_by_token(tokens, first_tokens)  # [B, E]
            embeddings = torch.stack(shards.of_first(of_frame, *embeddings.unbind(1)), dim=1)  # [B, 2, E]
        else:
            check_per_sample(timestep=timestep)
            embeddings = temb = self.timestep_embedding(timestep)  # [B, E]
            by_token = _as_it_is
        embedder = self.condition_embedder
        modulation = embedder.time_proj(embedder.act_fn(embeddings)).unflatten(-1, (6, -1))  # [B, (2,) 6, E]
        text = embedder.text_embedder(encoder_hidden_states)  # [B, X, E]
        image = None if encoder_hidden_states_image is None else self._image_tokens(encoder_hidden_states_image)

        attentions, taken = self._attentions(temb, tau, route_override, geometry=geometry)
        if self.block_ops == PLUGIN_OPS:
            one = torch.ones(1, 1, tokens.shape[2], device=tokens.device)
            step = FusedStep(text, image, rope, first_tokens if embeddings.ndim == 3 else 0, one)
            tokens = self._fused_blocks(tokens, modulation, embeddings, step, attentions)
        else:
            for block, attend in zip(self.blocks, attentions, strict=True):
                tokens = self._run_block(block, tokens, text, image, modulation, rope, attend, by_token)  # [B, R, E]
            shift, scale = _parts(self.scale_shift_table + embeddings.unsqueeze(-2))  # of [B, (2,) 2, E]
            tokens = (self.norm_out(tokens.float()) * (1 + by_token(*scale)) + by_token(*shift)).type_as(tokens)
        return self._unpatchify(self._whole(self.proj_out(tokens), geometry), geometry.grid), taken

    def _fused_blocks(
        self, tokens: Tensor, projected: Tensor, embeddings: Tensor, step: FusedStep, attentions: list[Attention]
    ) -> Tensor:
        """All blocks and the norm after them, by the block operators.

        Args:
            tokens: [B, R, E].
            projected: [B, (2,) 6, E], the modulation before the blocks' tables.
            embeddings: [B, (2,) E], the embeddings of the timesteps.
            step: The data that all blocks share.
            attentions: Attention function of each block.

        Returns:
            [B, R, E].
        """
        shared = shared_modulation(projected)  # [B, 6 * M, E]
        modulations = [block_modulation(block, shared, step.first_tokens) for block in self.blocks]
        norms = [modulation.first for modulation in modulations]
        norms.append(last_norm(self.norm_out, self.scale_shift_table, embeddings, step.first_tokens))
        carried = FusedTokens(tokens, norms[0].of(tokens))
        for layer, block in enumerate(self.blocks):
            following = norms[layer + 1]
            carried = self._run_block(block, carried, modulations[layer], following, step, attentions[layer])
        assert isinstance(carried.normed, Tensor)
        return carried.normed

    def _check_image(self, image: Tensor | None) -> None:
        width = self.config["image_dim"]
        if (image is None) != (width is None):
            given = None if image is None else tuple(image.shape)
            raise ValueError(
                f"encoder_hidden_states_image {given}: this model has image_dim {width}; "
                f"{'leave it out' if width is None else 'give the embeddings of the image'}"
            )
        if image is not None:
            check_dtypes(self.dtype, encoder_hidden_states_image=image)

    def _image_tokens(self, image: Tensor) -> Tensor:
        """Tokens of the images for the cross-attention: [B, Y, image_dim] -> [B, Y, E]."""
        embedder = self.condition_embedder.image_embedder
        if embedder.pos_embed is not None:
            image = image + embedder.pos_embed
        tokens: Tensor = embedder.norm2(embedder.ff(embedder.norm1(image)))
        return tokens

    def timestep_embedding(self, timestep: Tensor) -> Tensor:
        """The embedding before the adaLN projection: [B] -> [B, E], in the model's dtype."""
        return self.unrounded_timestep_embedding(timestep).to(self.dtype)

    def unrounded_timestep_embedding(self, timestep: Tensor) -> Tensor:
        """The embedding before it is rounded to the model's dtype: [B] -> [B, E], in the embedder's dtype, float32."""
        embedder = self.condition_embedder
        frequencies = embedder.timesteps_proj(timestep)  # [B, freq_dim], float32
        weight_dtype = embedder.time_embedder.linear_1.weight.dtype
        return embedder.time_embedder(frequencies.to(weight_dtype))  # type: ignore[no-any-return]

    def routed_blocks(self) -> list[Any]:
        return list(self.blocks)

    def _rope_tables(self, geometry: AttentionGeometry) -> tuple[Tensor, Tensor]:
        longest = self.config["rope_max_seq_len"]
        if max(geometry.grid) > longest:
            raise ValueError(
                f"grid {geometry.grid}: every axis must be at most rope_max_seq_len {longest}; use a smaller video"
            )
        latent = [axis * patch for axis, patch in zip(geometry.grid, self.patch_size, strict=True)]
        cos, sin = self.rope(torch.empty(1, 1, *latent, device="meta"))  # [1, S, 1, D], each value twice
        return half_tables(cos, sin)

    def _unpatchify(self, patches: Tensor, grid: Shape) -> Tensor:
        """[B, S, patch voxels * C] -> [B, C, F, H, W]."""
        voxels = patches.reshape(patches.shape[0], *grid, *self.patch_size, -1)  # [B, f, h, w, pf, ph, pw, C]
        return voxels.permute(0, 7, 1, 4, 2, 5, 3, 6).flatten(6, 7).flatten(4, 5).flatten(2, 3)


def _parts(modulation: Tensor) -> list[tuple[Tensor, ...]]:
    """Shifts, scales and gates of one timestep or of two: [B, (2,) parts, E] -> 1 or 2 of [B, 1, E] for every part."""
    parts, count = modulation.shape[-2], math.prod(modulation.shape[1:-1])
    pieces = modulation.flatten(1, -2).chunk(count, dim=1)  # one cut, which engines do with fewer layers than two
    return [pieces[part::parts] for part in range(parts)]


def _as_it_is(part: Tensor) -> Tensor:
    """Every token has the same modulation: [B, 1, E] -> [B, 1, E]."""
    return part


def _choice_by_token(tokens: Tensor, first_tokens: int) -> ByToken:
    """Tokens of the first latent frame take the first of two parts, [B, 1, E], the others the second: [B, R, E]."""
    is_first = (torch.arange(tokens.shape[1], device=tokens.device) < first_tokens).unsqueeze(1)  # [R, 1]

    def choose(first: Tensor, others: Tensor) -> Tensor:
        return torch.where(is_first, first, others)

    return choose


def _split_heads(attn: Any, tokens: Tensor) -> Tensor:
    """[B, *, E] -> [B, *, N, D]."""
    split: Tensor = tokens.unflatten(2, (attn.heads, -1))
    return split


def _project(attn: Any, attended: Tensor) -> Tensor:
    return attn.to_out[1](attn.to_out[0](attended))  # type: ignore[no-any-return]
