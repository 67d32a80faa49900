# SPDX-License-Identifier: Apache-2.0
"""The facts of HunyuanVideo: text to video, and both kinds of image to video."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from vorta_trt.model.constants import TRAIN_TIMESTEPS
from vorta_trt.model.errors import CheckpointError
from vorta_trt.model.families.authors import AuthorsNames
from vorta_trt.model.families.family import (
    DemoModel,
    ModelFamily,
    ModelInput,
    PipelineKind,
    Shape,
    attention_flops,
    linear_flops,
    mlp_flops,
    volume,
)
from vorta_trt.model.families.hunyuan_video.authors import authors_names
from vorta_trt.model.families.hunyuan_video.original import original_config

if TYPE_CHECKING:
    from torch import Tensor

FREQUENCIES = 256  # channels of the sinusoidal embeddings
REFINER_MLP_RATIO = 4  # of the token refiner, whatever the config's mlp_ratio
# The VAE decodes in tiles, or the published size fits no card: diffusers' defaults for enable_tiling.
TILE_FRAMES, TILE_PIXELS = 16, 256
# Rows of text where an image is encoded with it: 256 less the 4 that diffusers cuts out before the answer, and every
# second one of 576 image tokens. With "token_replace" it takes every fourth, but for a negative prompt every second.
IMAGE_TEXT_TOKENS = 252 + 288
LATENT_CONCAT, TOKEN_REPLACE = "latent_concat", "token_replace"  # how an image conditions a model
# The two results of a dual-stream block have no name of their own in the graph, so the block itself is not compared.
_DUAL_STREAM_BLOCK = (
    *("attn.to_q", "attn.to_k", "attn.to_v", "attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    *("attn.to_out.0", "attn.to_add_out", "ff", "ff_context"),
)
_SINGLE_STREAM_BLOCK = ("attn.to_q", "attn.to_k", "attn.to_v", "proj_out")


def replaces_tokens(config: Mapping[str, Any]) -> bool:
    """Whether an image takes the place of the first latent frame."""
    return config.get("image_condition_type") == TOKEN_REPLACE


def concatenates_latents(config: Mapping[str, Any]) -> bool:
    """Whether an image and a mask are further channels of the latents."""
    return config.get("image_condition_type") == LATENT_CONCAT


class HunyuanVideo(ModelFamily):
    """Attention over video and text in dual-stream and single-stream blocks, embedded guidance."""

    name = "hunyuan_video"
    title = "HunyuanVideo"
    transformer_class = "HunyuanVideoTransformer3DModel"
    original_types = ("hunyuan-video",)
    routed_class = "RoutedHunyuanVideoTransformer"
    training_class = "HunyuanVideoTraining"
    parts_class = "HunyuanVideoParts"
    router_stacks = ("transformer_blocks", "single_transformer_blocks")
    block_classes = ("RoutedDualStreamBlock", "RoutedSingleStreamBlock")
    always_loaded = ("time_text_embed.timestep_embedder.",)
    coreset_keys = "key"
    published_grid = (30, 45, 80)
    published_tile = (6, 9, 8)
    text_tokens = 256
    text_width = "text_embed_dim"
    guidance_scale = 6.0
    classifier_free_guidance = False
    gives_sigmas = True
    encoder_dtype = "float16"
    vae_dtype = "float16"
    tiled_vae = True
    frames_per_second = 24.0
    usual_shifts = "7"
    demo = DemoModel({"layers": 2, "single_layers": 2}, {}, "HunyuanVideo", "117x720x1280")

    def check_config(self, config: Mapping[str, Any], source: str) -> None:
        kind = config.get("image_condition_type")
        if kind not in (None, LATENT_CONCAT, TOKEN_REPLACE):
            raise CheckpointError(
                f"{source}: its config has image_condition_type {kind!r}; must be null, {LATENT_CONCAT!r} or "
                f"{TOKEN_REPLACE!r}, as in the published {self.title} checkpoints; use one of those"
            )
        channels, out_channels = config["in_channels"], self.latent_channels(config)
        wanted = 2 * out_channels + 1 if concatenates_latents(config) else out_channels
        if channels != wanted:
            what = "latents, image and a mask" if concatenates_latents(config) else "latents alone"
            raise CheckpointError(
                f"{source}: its config has in_channels {channels} and out_channels {out_channels}; with "
                f"image_condition_type {kind!r} the input is {what}, {wanted} channels; use a published {self.title} "
                f"checkpoint"
            )
        if config.get("qk_norm", "rms_norm") != "rms_norm":
            raise CheckpointError(
                f"{source}: its config has qk_norm {config['qk_norm']!r}; must be 'rms_norm', as in the published "
                f"{self.title} checkpoints; use one of those"
            )

    def pipeline_kinds(self, config: Mapping[str, Any]) -> tuple[PipelineKind, ...]:
        components: tuple[str, ...] = ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "vae")
        if config.get("image_condition_type") is None:
            return (PipelineKind("HunyuanVideoPipeline", components),)
        components = (*components, "image_processor")
        return (PipelineKind("HunyuanVideoImageToVideoPipeline", components, ("vae",), ("image",)),)

    def original_config(self, shapes: Mapping[str, tuple[int, ...]], theirs: Mapping[str, Any]) -> dict[str, Any]:
        return original_config(shapes)

    def stacks(self, config: Mapping[str, Any]) -> dict[str, int]:
        return {
            "transformer_blocks": int(config["num_layers"]),
            "single_transformer_blocks": int(config["num_single_layers"]),
        }

    def patch_of(self, config: Mapping[str, Any]) -> Shape:
        return config["patch_size_t"], config["patch_size"], config["patch_size"]

    def authors_names(self, config: Mapping[str, Any]) -> AuthorsNames:
        return authors_names(config["num_layers"], config["num_single_layers"], config["num_refiner_layers"])

    def inputs(self, config: Mapping[str, Any]) -> tuple[ModelInput, ...]:
        inputs = (
            ModelInput("hidden_states", "latents", step=True),  # [B, C, F, H, W]
            ModelInput("timestep", "uniform", high=TRAIN_TIMESTEPS, step=True),  # [B]
            ModelInput("encoder_hidden_states", "embedding", ("text", config["text_embed_dim"])),  # [B, T, ...]
            ModelInput("encoder_attention_mask", "mask", ("text",)),  # [B, T]
            ModelInput("pooled_projections", "embedding", (config["pooled_projection_dim"],)),  # [B, ...]
        )
        if not config["guidance_embeds"]:
            return inputs
        # The pipeline gives 1000 times its guidance_scale.
        return *inputs, ModelInput("guidance", "uniform", low=1000.0, high=10000.0)  # [B]

    def text_tokens_of(self, config: Mapping[str, Any]) -> int:
        return self.text_tokens if config.get("image_condition_type") is None else IMAGE_TEXT_TOKENS

    def prompt_tokens(self, config: Mapping[str, Any], rows: int) -> int:
        return rows - (self.text_tokens_of(config) - self.text_tokens)  # less what the image adds

    def text_rows(self, text_tokens: int) -> int:
        return text_tokens

    def normalise(self, vae: Any, latents: Tensor) -> Tensor:
        scaled: Tensor = latents * vae.config.scaling_factor
        return scaled

    def denormalise(self, vae: Any, latents: Tensor) -> Tensor:
        scaled: Tensor = latents / vae.config.scaling_factor
        return scaled

    def sample(self, pipeline: Any, **arguments: Any) -> Tensor:
        if not concatenates_latents(pipeline.transformer.config):
            return super().sample(pipeline, **arguments)
        # The pipeline decodes all latent frames and then drops the frames of the first one. As latents it returns the
        # other latent frames only, and these decode differently without the first.
        sampled: dict[str, Tensor] = {}

        def keep(_pipeline: Any, _step: int, _timestep: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
            sampled.update(tensors)
            return tensors

        super().sample(pipeline, callback_on_step_end=keep, **arguments)
        return sampled["latents"]

    def decode(self, config: Mapping[str, Any], vae: Any, latents: Tensor) -> Tensor:
        decoded = super().decode(config, vae, latents)
        return decoded[:, :, self.temporal_compression :] if concatenates_latents(config) else decoded

    def vae_factors(self, vae_config: Mapping[str, Any]) -> tuple[int, int]:
        return vae_config["temporal_compression_ratio"], vae_config["spatial_compression_ratio"]

    def vae_channels(self, vae_config: Mapping[str, Any]) -> int | None:
        return vae_config.get("latent_channels")

    def decoding_bytes(self, vae_config: Mapping[str, Any], frames: int, pixels: int) -> int | None:
        """The decoder runs in 16 bits on tiles."""
        channels = vae_config.get("block_out_channels")
        return None if not channels else 2 * int(channels[0]) * TILE_FRAMES * TILE_PIXELS**2 * 2

    def other_flops(self, config: Mapping[str, Any], video_tokens: int, text_tokens: int) -> dict[str, int]:
        video, text, tokens = video_tokens, text_tokens, video_tokens + text_tokens
        dual, single = config["num_layers"], config["num_single_layers"]
        dim = config["num_attention_heads"] * config["attention_head_dim"]
        hidden = self.feed_forward_width(config)
        voxels = volume(self.patch_of(config))
        timestep = mlp_flops(1, FREQUENCIES, dim, dim)
        modulation = (
            dual * 2 * linear_flops(1, dim, 6 * dim)
            + single * linear_flops(1, dim, 3 * dim)
            + linear_flops(1, dim, 2 * dim)
        )
        if replaces_tokens(config):
            modulation += dual * linear_flops(1, dim, 6 * dim) + single * linear_flops(1, dim, 3 * dim)
        conditioning = (
            timestep * (1 + replaces_tokens(config))
            + bool(config["guidance_embeds"]) * timestep
            + mlp_flops(1, config["pooled_projection_dim"], dim, dim)
            + refiner_flops(config, text, dim)
            + modulation
        )
        # A single-stream block has one output matrix for attention and feed forward; each part has its own rows of it.
        return {
            "projections": (dual + single) * 4 * linear_flops(tokens, dim, dim),
            "feed_forward": (dual + single) * mlp_flops(tokens, dim, hidden, dim),
            "cross_attention": 0,
            "conditioning": conditioning,
            "patches": linear_flops(video, config["in_channels"] * voxels, dim)
            + linear_flops(video, dim, self.latent_channels(config) * voxels),
        }

    def feed_forward_width(self, config: Mapping[str, Any]) -> int:
        return int(config["num_attention_heads"] * config["attention_head_dim"] * float(config["mlp_ratio"]))

    def dense_attentions(self, config: Mapping[str, Any]) -> tuple[int, str]:
        return config["num_refiner_layers"], "one per layer of the token refiner"

    def compared_modules(self, config: Mapping[str, Any]) -> list[str]:
        return [
            *(f"time_text_embed.{name}" for name in ("guidance_embedder", "text_embedder")),  # not all have the first
            "x_embedder",
            *refiner_modules(config),
            *(
                f"transformer_blocks.{layer}.{name}"
                for layer in range(config["num_layers"])
                for name in _DUAL_STREAM_BLOCK
            ),
            *(
                f"single_transformer_blocks.{layer}{name}"
                for layer in range(config["num_single_layers"])
                for name in (*(f".{part}" for part in _SINGLE_STREAM_BLOCK), "")
            ),
            "proj_out",
        ]


def refiner_flops(config: Mapping[str, Any], rows: int, dim: int) -> int:
    """FLOPs of the token refiner on that many rows of text, its timestep embedding included."""
    text_dim = config["text_embed_dim"]
    block = (
        4 * linear_flops(rows, dim, dim)
        + attention_flops(rows, rows, dim)
        + mlp_flops(rows, dim, REFINER_MLP_RATIO * dim, dim)
        + linear_flops(1, dim, 2 * dim)
    )
    return (
        mlp_flops(1, FREQUENCIES, dim, dim)
        + mlp_flops(1, text_dim, dim, dim)  # the mean row
        + linear_flops(rows, text_dim, dim)
        + int(config["num_refiner_layers"]) * block
    )


def refiner_modules(config: Mapping[str, Any]) -> list[str]:
    """Modules of the token refiner that a verification compares, in the order of execution."""
    blocks = range(config["num_refiner_layers"])
    return [
        "context_embedder.proj_in",
        *(f"context_embedder.token_refiner.refiner_blocks.{layer}" for layer in blocks),
    ]
