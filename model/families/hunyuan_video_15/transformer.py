# SPDX-License-Identifier: Apache-2.0
"""HunyuanVideo 1.5 with routed attention in its dual-stream blocks.

Blocks and token refiner have the same modules, names and numbers as HunyuanVideo's, so its classes are used here, too.

Three texts follow the video tokens: the tokens of an image (image to video only, all valid), the glyphs of quoted
words, and the prompt. The valid rows of all three come first, in that order, and padding follows, as in diffusers'
model: one number per sample says how many are valid. In text to video, diffusers' pipeline gives an image of zeros, and
its model masks the tokens of that image; here there are no such tokens. Padding is zero, and neither attended to nor
computed.

The routers see the bare embedding of the timestep: without that of `timestep_r`, which models of mean flow add.
Dtypes follow diffusers' HunyuanVideo15Transformer3DModel, as those of `hunyuan_video/transformer.py` follow its model.

Letters: B batch, C latent channels, S video tokens, R of them on this rank (S unless the model is parallelized), I
image tokens, G rows of glyphs, X rows of the prompt, T = I + G + X text tokens, E = N * D inner dimension, N heads, D
head dim, L layers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from vorta_trt.model.block_operators.layers import patch_embedding
from vorta_trt.model.boxes import Shape
from vorta_trt.model.families.hunyuan_video.blocks import JointAttention, Modulation, RoutedDualStreamBlock
from vorta_trt.model.families.hunyuan_video.fused import FusedAttention, FusedStep, fused_blocks, last_norm
from vorta_trt.model.families.hunyuan_video.token_refiner import TokenRefiner
from vorta_trt.model.geometry import AttentionGeometry
from vorta_trt.model.inputs import check_dtypes, check_per_sample, check_valid_first
from vorta_trt.model.rotary import half_tables, with_fixed_tokens
from vorta_trt.model.router import Router
from vorta_trt.model.transformer import PLUGIN_OPS, RoutedTransformer

PROMPT, GLYPHS, IMAGE = range(3)  # rows of `cond_type_embed`


class RoutedHunyuanVideo15Transformer(RoutedTransformer):
    """HunyuanVideo15Transformer3DModel with a branch per head; see `RoutedTransformer` for construction."""

    family = "hunyuan_video_15"

    def _take_modules(self, model: Any, routers: Mapping[str, list[Router | None]]) -> None:
        self.rope = model.rope
        self.x_embedder = model.x_embedder
        self.image_embedder = model.image_embedder
        self.context_embedder = TokenRefiner(model.context_embedder)
        self.context_embedder_2 = model.context_embedder_2
        self.time_embed = model.time_embed
        self.cond_type_embed = model.cond_type_embed
        self.transformer_blocks = nn.ModuleList(
            map(RoutedDualStreamBlock, model.transformer_blocks, routers["transformer_blocks"])
        )
        self.norm_out = model.norm_out

    def forward(
        self,
        hidden_states: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        encoder_attention_mask: Tensor,
        encoder_hidden_states_2: Tensor,
        encoder_attention_mask_2: Tensor,
        image_embeds: Tensor | None = None,
        timestep_r: Tensor | None = None,
        tau: Tensor | float | None = None,
        route_override: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """One denoising step.

        Args:
            hidden_states: [B, in_channels, F, H, W], latents, followed by those of the condition and its mask, in
                the model's dtype.
            timestep: [B].
            encoder_hidden_states: [B, X, text_embed_dim], the prompt, in the model's dtype.
            encoder_attention_mask: [B, X], any dtype; nonzero for valid tokens, which come first.
            encoder_hidden_states_2: [B, G, text_embed_2_dim], the glyphs, in the model's dtype.
            encoder_attention_mask_2: [B, G], like the other mask.
            image_embeds: [B, I, image_embed_dim], in the model's dtype; for image-to-video models only; all rows are
                valid.
            timestep_r: [B], the timestep that the step goes to; for mean-flow models only.
            tau: routing threshold, a number or float32 [1]; None is `self.tau`, above 1 is dense.
            route_override: int32 [L, N]; -1 lets the router decide, another id (see `Branch`) replaces its choice.

        Returns:
            sample [B, out_channels, F, H, W], and the routes taken, int32 [L, B, N].

        Raises:
            ValueError: the latents or the texts do not match the geometry or the model, or a shape or dtype is wrong.
        """
        self._check_call(route_override)
        self._check_texts(encoder_hidden_states, encoder_attention_mask, "")
        self._check_texts(encoder_hidden_states_2, encoder_attention_mask_2, "_2")
        self._check_optional(image_embeds, timestep_r)
        check_dtypes(self.dtype, hidden_states=hidden_states)
        image_rows = 0 if image_embeds is None else image_embeds.shape[1]
        rows = image_rows + encoder_hidden_states_2.shape[1] + encoder_hidden_states.shape[1]
        geometry = self._geometry_for(hidden_states, rows)
        check_per_sample(timestep=timestep, **({} if timestep_r is None else {"timestep_r": timestep_r}))
        tau = self.tau if tau is None else tau

        valid, valid_2 = encoder_attention_mask != 0, encoder_attention_mask_2 != 0  # [B, X], [B, G]
        check_valid_first("encoder_attention_mask", valid)
        check_valid_first("encoder_attention_mask_2", valid_2)
        bare = self.timestep_embedding(timestep)  # [B, E]
        temb = self._conditioning(bare, timestep_r)  # [B, E]
        if self.block_ops == PLUGIN_OPS:
            video = patch_embedding(self.x_embedder.proj, hidden_states)  # [B, S, E]
        else:
            video = self.x_embedder(hidden_states).contiguous()
        shards = self._shards(geometry)
        video, rope = shards.own(video), self._rope(shards)  # [B, R, E], [1, R+T, 1, D/2] each
        prompt = self.context_embedder(encoder_hidden_states, timestep, valid) + self._kind(PROMPT)  # [B, X, E]
        glyphs = self.context_embedder_2(encoder_hidden_states_2) + self._kind(GLYPHS)  # [B, G, E]
        image = None if image_embeds is None else self.image_embedder(image_embeds) + self._kind(IMAGE)  # [B, I, E]
        text, text_length = valid_rows_first(image, (glyphs, valid_2), (prompt, valid))  # [B, T, E], [B]

        attentions, taken = self._attentions(bare, tau, route_override, geometry=geometry, text_length=text_length)
        if self.block_ops == PLUGIN_OPS:
            over = FusedAttention.over(*rope, shards.rows, text_length)
            step = FusedStep(temb, None, 0, last_norm(self.norm_out, temb), over)
            stacks: tuple[Any, Any] = (self.transformer_blocks, ())
            video = fused_blocks(self._run_block, stacks, video, text, step, attentions)
        else:
            modulation, joint = Modulation(temb), JointAttention(rope, text_length)
            for block, attend in zip(self.transformer_blocks, attentions, strict=True):
                video, text = self._run_block(block, video, text, modulation, attend, joint)
            video = self.norm_out(video, temb)  # [B, R, E]
        return self._unpatchify(self._whole(self.proj_out(video), geometry), geometry.grid), taken

    def timestep_embedding(self, timestep: Tensor) -> Tensor:
        """The embedding of the timestep alone: [B] -> [B, E], float32."""
        frequencies = self.time_embed.time_proj(timestep)  # [B, 256], float32
        first, second = (getattr(self.time_embed.timestep_embedder, name) for name in ("linear_1", "linear_2"))
        hidden = functional.silu(functional.linear(frequencies, first.weight.float(), first.bias.float()))  # [B, E]
        return functional.linear(hidden, second.weight.float(), second.bias.float())

    def routed_blocks(self) -> list[Any]:
        return [*self.transformer_blocks]

    def _conditioning(self, bare: Tensor, timestep_r: Tensor | None) -> Tensor:
        """The embedding that modulates the blocks: [B, E] in the model's dtype."""
        conditioning = bare.to(self.dtype)
        if timestep_r is None:
            return conditioning
        frequencies = self.time_embed.time_proj_r(timestep_r)  # [B, 256], float32
        return conditioning + self.time_embed.timestep_embedder_r(frequencies.to(self.dtype))  # type: ignore[no-any-return]

    def _kind(self, row: int) -> Tensor:
        """The embedding of a kind of text, which tells it from the others: [E]."""
        kind: Tensor = self.cond_type_embed.weight[row]
        return kind

    def _rope_tables(self, geometry: AttentionGeometry) -> tuple[Tensor, Tensor]:
        latent = [axis * patch for axis, patch in zip(geometry.grid, self.patch_size, strict=True)]
        tables = self.rope(torch.empty(1, device="cpu").expand(1, 1, *latent))  # cos and sin [S, D], each value twice
        cos, sin = half_tables(*(table[None, :, None] for table in tables))  # [1, S, 1, D/2]
        return with_fixed_tokens(cos, sin, geometry.text_tokens)

    def _check_texts(self, text: Tensor, mask: Tensor, suffix: str) -> None:
        name = f"encoder_hidden_states{suffix}"
        if text.ndim != 3:
            raise ValueError(f"{name} of shape {tuple(text.shape)}: must be [B, rows, channels]")
        check_dtypes(self.dtype, **{name: text})
        if mask.shape != text.shape[:2]:
            raise ValueError(
                f"encoder_attention_mask{suffix} of shape {tuple(mask.shape)}: must be {tuple(text.shape[:2])}, one "
                f"entry per row of {name}"
            )

    def _check_optional(self, image_embeds: Tensor | None, timestep_r: Tensor | None) -> None:
        names = {spec.name for spec in self.facts().inputs(self.config)}
        for name, value in {"image_embeds": image_embeds, "timestep_r": timestep_r}.items():
            if (value is None) == (name in names):
                has, rule = ("None", "required") if value is None else ("given", "not of this model")
                settings = ", ".join(f"{key} {self.config[key]!r}" for key in ("task_type", "use_meanflow"))
                raise ValueError(
                    f"{name} {has}: {rule}, whose config has {settings}; call it as diffusers' pipeline does"
                )
        if image_embeds is not None:
            if image_embeds.ndim != 3:
                raise ValueError(f"image_embeds of shape {tuple(image_embeds.shape)}: must be [B, rows, channels]")
            check_dtypes(self.dtype, image_embeds=image_embeds)

    def _unpatchify(self, patches: Tensor, grid: Shape) -> Tensor:
        """[B, S, C * patch voxels] -> [B, C, F, H, W]."""
        voxels = patches.reshape(patches.shape[0], *grid, -1, *self.patch_size)  # [B, f, h, w, C, pf, ph, pw]
        return voxels.permute(0, 4, 1, 5, 2, 6, 3, 7).flatten(6, 7).flatten(4, 5).flatten(2, 3)


def valid_rows_first(
    image: Tensor | None, glyphs: tuple[Tensor, Tensor], prompt: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """Concatenates the rows of the image, the valid glyphs and the valid prompt; zeros follow.

    Args:
        image: [B, I, E], all valid, or None.
        glyphs: [B, G, E], and which of them are valid, bool [B, G]: the first ones.
        prompt: [B, X, E], and which of them are valid, bool [B, X]: the first ones.

    Returns:
        The rows [B, T, E], and how many of them are valid, int32 [B].
    """
    parts = [part for part in (image, glyphs[0], prompt[0]) if part is not None]
    rows = torch.cat(parts, dim=1)  # [B, T, E]
    before = 0 if image is None else image.shape[1]
    glyph_count, prompt_count = (valid.sum(dim=1, keepdim=True) for _, valid in (glyphs, prompt))  # [B, 1] each
    begins = before + glyph_count  # [B, 1], where the prompt goes to
    length = begins + prompt_count  # [B, 1]
    place = torch.arange(rows.shape[1], device=rows.device)[None]  # [1, T]
    skipped = glyphs[0].shape[1] - glyph_count  # [B, 1], padding between glyphs and prompt
    source = torch.where(place < begins, place, place + skipped).clamp(max=rows.shape[1] - 1)  # [B, T]
    source = (
        source + torch.arange(rows.shape[0], device=rows.device)[:, None] * rows.shape[1]
    )  # among all samples' rows
    moved = functional.embedding(source, rows.flatten(0, 1))  # [B, T, E]; a Gather of whole rows
    zero = torch.zeros((), dtype=rows.dtype, device=rows.device)
    return torch.where((place < length)[..., None], moved, zero), length.squeeze(1).to(torch.int32)
