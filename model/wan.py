# SPDX-License-Identifier: Apache-2.0
"""Wan 2.1 (text to video) with routed self-attention.

Dtypes follow diffusers' WanTransformer3DModel to the letter: norms, modulation and residual sums in float32, the
timestep embedder in float32 with its result rounded to the activations' dtype; the router computes in float32 from that
result.

Letters: B batch, C latent channels, S video tokens, E = N * D inner dimension, N heads, D head dim, L layers, X text
tokens of the cross-attention.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from vorta_trt.model.checkpoint import CheckpointError
from vorta_trt.model.geometry import AttentionGeometry
from vorta_trt.model.operator import SAME_PRECISION, routed_attention
from vorta_trt.model.router import ROUTER_DECIDES, Router, hard_routes
from vorta_trt.model.tiling import Shape
from vorta_trt.model.transformer import DEFAULT_TAU, RoutedTransformer

TEXT_SEQUENCE = 512  # tokens of the text encoder, to which Wan pads every prompt
MAX_TIMESTEP = 1000


class RoutedWanBlock(nn.Module):
    """A diffusers WanTransformerBlock, its self-attention routed; holds that block's own modules."""

    def __init__(self, block: Any, router: Router | None) -> None:
        super().__init__()
        self.norm1, self.attn1 = block.norm1, block.attn1
        self.norm2, self.attn2 = block.norm2, block.attn2
        self.norm3, self.ffn = block.norm3, block.ffn
        self.scale_shift_table = block.scale_shift_table
        self.router = router

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        modulation: Tensor,
        rope: tuple[Tensor, Tensor],
        routes: Tensor,
        geometry: AttentionGeometry,
        attention_precision: str = SAME_PRECISION,
    ) -> Tensor:
        """hidden_states [B, S, E], encoder_hidden_states [B, X, E], modulation [B, 6, E], routes [B, N] -> [B, S, E]"""
        modulation = self.scale_shift_table + modulation.float()  # [B, 6, E]
        shift, scale, gate, ffn_shift, ffn_scale, ffn_gate = modulation.chunk(6, dim=1)  # [B, 1, E] each

        normed = (self.norm1(hidden_states.float()) * (1 + scale) + shift).type_as(hidden_states)  # [B, S, E]
        attended = self._self_attention(normed, rope, routes, geometry, attention_precision)  # [B, S, E]
        hidden_states = (hidden_states.float() + attended * gate).type_as(hidden_states)

        normed = self.norm2(hidden_states.float()).type_as(hidden_states)
        hidden_states = hidden_states + self._cross_attention(normed, encoder_hidden_states)

        normed = (self.norm3(hidden_states.float()) * (1 + ffn_scale) + ffn_shift).type_as(hidden_states)
        fed: Tensor = self.ffn(normed)  # [B, S, E]
        return (hidden_states.float() + fed.float() * ffn_gate).type_as(hidden_states)

    def _self_attention(
        self,
        hidden_states: Tensor,
        rope: tuple[Tensor, Tensor],
        routes: Tensor,
        geometry: AttentionGeometry,
        attention_precision: str,
    ) -> Tensor:
        attn = self.attn1
        query = rotate(_split_heads(attn, attn.norm_q(attn.to_q(hidden_states))), *rope)  # [B, S, N, D]
        key = rotate(_split_heads(attn, attn.norm_k(attn.to_k(hidden_states))), *rope)  # [B, S, N, D]
        value = _split_heads(attn, attn.to_v(hidden_states))  # [B, S, N, D]
        attended = routed_attention(
            query, key, value, routes, geometry, attention_precision=attention_precision
        )  # [B, S, N, D]
        return _project(attn, attended.flatten(2, 3))

    def _cross_attention(self, hidden_states: Tensor, encoder_hidden_states: Tensor) -> Tensor:
        attn = self.attn2
        query = _split_heads(attn, attn.norm_q(attn.to_q(hidden_states))).transpose(1, 2)  # [B, N, S, D]
        key = _split_heads(attn, attn.norm_k(attn.to_k(encoder_hidden_states))).transpose(1, 2)  # [B, N, X, D]
        value = _split_heads(attn, attn.to_v(encoder_hidden_states)).transpose(1, 2)  # [B, N, X, D]
        attended = functional.scaled_dot_product_attention(query, key, value)  # [B, N, S, D]
        return _project(attn, attended.transpose(1, 2).flatten(2, 3))


class RoutedWanTransformer(RoutedTransformer):
    """WanTransformer3DModel with a branch per head; see `RoutedTransformer` for construction."""

    family = "wan"
    always_loaded = ("condition_embedder.time_embedder.",)

    def __init__(
        self,
        model: Any,
        router_state: Mapping[str, Tensor] | None = None,
        geometry: AttentionGeometry | None = None,
        tau: float = DEFAULT_TAU,
        *,
        attention_precision: str = SAME_PRECISION,
    ) -> None:
        super().__init__(model.config, geometry, tau, attention_precision)
        self.patch_size: Shape = tuple(self.config["patch_size"])
        self.rope = model.rope
        self.patch_embedding = model.patch_embedding
        self.condition_embedder = model.condition_embedder
        dim = self.num_heads * self.head_dim
        routers = self._make_routers(router_state, "blocks", dim)
        self.has_router = router_state is not None
        self.blocks = nn.ModuleList(map(RoutedWanBlock, model.blocks, routers))
        self.norm_out = model.norm_out
        self.proj_out = model.proj_out
        self.scale_shift_table = model.scale_shift_table
        self._geometry_is_given = geometry is not None
        if geometry is not None:
            self._check_geometry(geometry)
            self._prepare_rope(geometry.grid)

    @classmethod
    def from_model(
        cls,
        model: nn.Module,
        router_state: Mapping[str, Tensor] | None = None,
        geometry: AttentionGeometry | None = None,
        tau: float = DEFAULT_TAU,
        *,
        attention_precision: str = SAME_PRECISION,
    ) -> RoutedWanTransformer:
        source = f"model {type(model).__name__}"
        if type(model).__name__ != "WanTransformer3DModel":
            raise TypeError(f"{source}: must be a WanTransformer3DModel; for a pipeline use pipeline.transformer")
        cls.check_config(model.config, source)  # type: ignore[arg-type]
        if any(getattr(module, "fused_projections", False) for module in model.modules()):
            raise ValueError(f"{source}: fused projections are not routed; call model.unfuse_qkv_projections() first")
        if router_state is not None:
            cls.check_router_state(model, router_state, "router_state")
            if geometry is None:
                raise ValueError("geometry None: required with a router; pass AttentionGeometry.for_video(...)")
        routed = cls(model, router_state, geometry, tau, attention_precision=attention_precision)
        return routed.train(model.training)

    @classmethod
    def check_config(cls, config: Mapping[str, Any], source: str) -> None:
        for name in ("image_dim", "added_kv_proj_dim"):
            if config.get(name) is not None:
                raise CheckpointError(
                    f"{source}: its config has {name} {config[name]}, an image-to-video model; only text-to-video is "
                    f"routed so far; use a Wan 2.1 T2V checkpoint"
                )

    @classmethod
    def empty_diffusers_model(cls, config: Mapping[str, Any]) -> nn.Module:
        from diffusers import WanTransformer3DModel
        from diffusers.models.transformers.transformer_wan import WanRotaryPosEmbed

        with torch.device("meta"):
            model: Any = WanTransformer3DModel.from_config(dict(config))  # type: ignore[no-untyped-call]
        settings = model.config
        model.rope = WanRotaryPosEmbed(settings.attention_head_dim, settings.patch_size, settings.rope_max_seq_len)
        empty: nn.Module = model
        return empty

    @property
    def dtype(self) -> torch.dtype:
        return self.proj_out.weight.dtype  # type: ignore[no-any-return]

    def forward(
        self,
        hidden_states: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        tau: Tensor | float | None = None,
        route_override: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """One denoising step.

        Args:
            hidden_states: [B, C, F, H, W] latents, in the model's dtype.
            timestep: [B].
            encoder_hidden_states: [B, X, text_dim], in the model's dtype.
            tau: routing threshold, a number or float32 [1]; None is `self.tau`, above 1 is dense.
            route_override: int32 [L, N]; -1 lets the router decide, another id (see `Branch`) replaces its choice.

        Returns:
            sample [B, C, F, H, W], and the routes taken, int32 [L, B, N].

        Raises:
            ValueError: the latents do not match the geometry, or a shape or dtype is wrong.
        """
        geometry = self._geometry_for(hidden_states)
        self._check_inputs(hidden_states, timestep, encoder_hidden_states, route_override)
        tau = self.tau if tau is None else tau
        rope = (self.rope_cos, self.rope_sin)

        tokens = self.patch_embedding(hidden_states).flatten(2).transpose(1, 2).contiguous()  # [B, S, E]
        temb = self.timestep_embedding(timestep, encoder_hidden_states.dtype)  # [B, E]
        embedder = self.condition_embedder
        modulation = embedder.time_proj(embedder.act_fn(temb)).unflatten(1, (6, -1))  # [B, 6, E]
        text = embedder.text_embedder(encoder_hidden_states)  # [B, X, E]

        taken = []
        for layer, block in enumerate(self.blocks):
            scores = self._scores(block, temb)  # [B, N, 3]
            routes = hard_routes(scores, tau, None if route_override is None else route_override[layer])  # [B, N]
            tokens = block(tokens, text, modulation, rope, routes, geometry, self.attention_precision)  # [B, S, E]
            taken.append(routes)

        shift, scale = (self.scale_shift_table + temb.unsqueeze(1)).chunk(2, dim=1)  # [B, 1, E]
        tokens = (self.norm_out(tokens.float()) * (1 + scale) + shift).type_as(tokens)
        return self._unpatchify(self.proj_out(tokens), geometry.grid), torch.stack(taken)

    def timestep_embedding(self, timestep: Tensor, dtype: torch.dtype) -> Tensor:
        """The embedding before the adaLN projection, which the router sees: [B] -> [B, E] in `dtype`."""
        embedder = self.condition_embedder
        frequencies = embedder.timesteps_proj(timestep)  # [B, freq_dim], float32
        weight_dtype = embedder.time_embedder.linear_1.weight.dtype
        return embedder.time_embedder(frequencies.to(weight_dtype)).to(dtype)  # type: ignore[no-any-return]

    def route_scores(self, timestep: Tensor) -> Tensor:
        temb = self.timestep_embedding(timestep, self.dtype)  # [B, E]
        return torch.stack([self._scores(block, temb) for block in self.blocks])  # [L, B, N, 3]

    def inputs(self, batch: int = 1, seed: int = 0) -> dict[str, Tensor]:
        """Random example inputs of the model's geometry and dtype, by the exported names and in their order."""
        if self.geometry is None:
            raise ValueError("geometry None: example inputs need it; pass geometry= when building the model")
        generator = torch.Generator().manual_seed(seed)
        device = self.proj_out.weight.device

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator).to(device, self.dtype)

        latent = [axis * patch for axis, patch in zip(self.geometry.grid, self.patch_size, strict=True)]
        return {
            "hidden_states": normal(batch, self.config["in_channels"], *latent),  # [B, C, F, H, W]
            "timestep": (torch.rand(batch, generator=generator) * MAX_TIMESTEP).to(device),  # [B]
            "encoder_hidden_states": normal(batch, TEXT_SEQUENCE, self.config["text_dim"]),  # [B, X, text_dim]
            "tau": torch.tensor([self.tau], device=device),  # [1]
            "route_override": torch.full(
                (self.num_layers, self.num_heads), ROUTER_DECIDES, dtype=torch.int32, device=device
            ),  # [L, N]
        }

    # -- geometry ------------------------------------------------------------------------------------------------------

    def _geometry_for(self, hidden_states: Tensor) -> AttentionGeometry:
        """The geometry of these latents [B, C, F, H, W]; derived from them if the model was given none."""
        if hidden_states.ndim != 5:
            raise ValueError(f"hidden_states of shape {tuple(hidden_states.shape)}: must be latents [B, C, F, H, W]")
        latent = tuple(hidden_states.shape[2:])
        if any(size % patch for size, patch in zip(latent, self.patch_size, strict=True)):
            raise ValueError(
                f"hidden_states with latent frames, height, width {latent}: must be multiples of the patch "
                f"{self.patch_size}; pad or resize the video"
            )
        grid = tuple(size // patch for size, patch in zip(latent, self.patch_size, strict=True))
        if self.geometry is not None and self.geometry.grid == grid:
            return self.geometry
        if self._geometry_is_given and self.geometry is not None:
            fitting = tuple(axis * patch for axis, patch in zip(self.geometry.grid, self.patch_size, strict=True))
            raise ValueError(
                f"hidden_states with token grid {grid}: must match the model's geometry, grid {self.geometry.grid}; "
                f"pass latents of frames, height, width {fitting}, or build the model with "
                f"geometry=AttentionGeometry.for_grid({grid})"
            )
        if torch.compiler.is_exporting():
            raise ValueError("geometry None: must be known before export; pass geometry= when building the model")
        self.geometry = AttentionGeometry.for_grid(grid, self.family)
        self._prepare_rope(self.geometry.grid)
        return self.geometry

    def _check_geometry(self, geometry: AttentionGeometry) -> None:
        if geometry.text_tokens:
            raise ValueError(
                f"geometry with {geometry.text_tokens} text tokens: must have none, Wan's self-attention is over video "
                f"alone; make it for family 'wan'"
            )

    def _prepare_rope(self, grid: Shape) -> None:
        """Rotary tables of the grid, as diffusers makes them: cos and sin [1, S, 1, D/2], float32."""
        longest = self.config["rope_max_seq_len"]
        if max(grid) > longest:
            raise ValueError(f"grid {grid}: every axis must be at most rope_max_seq_len {longest}; use a smaller video")
        latent = [axis * patch for axis, patch in zip(grid, self.patch_size, strict=True)]
        cos, sin = self.rope(torch.empty(1, 1, *latent, device="meta"))  # [1, S, 1, D], each value twice
        device = self.proj_out.weight.device
        self.register_buffer("rope_cos", cos[..., 0::2].contiguous().to(device), persistent=False)
        self.register_buffer("rope_sin", sin[..., 1::2].contiguous().to(device), persistent=False)

    def _check_inputs(
        self, hidden_states: Tensor, timestep: Tensor, encoder_hidden_states: Tensor, route_override: Tensor | None
    ) -> None:
        if not self.materialized and not torch.compiler.is_exporting():
            raise RuntimeError("model with materialize=False: its weights are on disk, for export; load it with True")
        for name, tensor in (("hidden_states", hidden_states), ("encoder_hidden_states", encoder_hidden_states)):
            if tensor.dtype != self.dtype:
                raise ValueError(f"{name} of dtype {tensor.dtype}: must be the model's; use {name}.to({self.dtype})")
        if timestep.ndim != 1:
            raise ValueError(f"timestep of shape {tuple(timestep.shape)}: must be [B], one per sample")
        if route_override is None:
            return
        shape, expected = tuple(route_override.shape), (self.num_layers, self.num_heads)
        if route_override.dtype != torch.int32 or shape != expected:
            raise ValueError(
                f"route_override of shape {shape}, {route_override.dtype}: must be int32 {expected}, layers and heads; "
                f"use torch.full({expected}, -1, dtype=torch.int32) to let the router decide"
            )

    def _unpatchify(self, patches: Tensor, grid: Shape) -> Tensor:
        """[B, S, patch voxels * C] -> [B, C, F, H, W]"""
        voxels = patches.reshape(patches.shape[0], *grid, *self.patch_size, -1)  # [B, f, h, w, pf, ph, pw, C]
        return voxels.permute(0, 7, 1, 4, 2, 5, 3, 6).flatten(6, 7).flatten(4, 5).flatten(2, 3)


def rotate(tokens: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of neighbouring pairs: tokens [B, S, N, D], cos and sin [1, S, 1, D/2] -> [B, S, N, D].

    As stack and flatten, where diffusers assigns to slices: the same numbers without a scatter in the exported graph.
    """
    even, odd = tokens.unflatten(-1, (-1, 2)).unbind(-1)  # [B, S, N, D/2]
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2).type_as(tokens)


def _split_heads(attn: Any, tokens: Tensor) -> Tensor:
    """[B, *, E] -> [B, *, N, D]"""
    split: Tensor = tokens.unflatten(2, (attn.heads, -1))
    return split


def _project(attn: Any, attended: Tensor) -> Tensor:
    return attn.to_out[1](attn.to_out[0](attended))  # type: ignore[no-any-return]
