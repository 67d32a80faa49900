# SPDX-License-Identifier: Apache-2.0
"""The facts of HunyuanVideo 1.5: text to video and image to video, and the latter distilled to few steps."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vorta_trt.model.constants import TRAIN_TIMESTEPS
from vorta_trt.model.errors import CheckpointError
from vorta_trt.model.families.authors import AuthorsNames
from vorta_trt.model.families.family import (
    DemoModel,
    Guidance,
    ModelFamily,
    ModelInput,
    PipelineKind,
    Shape,
    linear_flops,
    mlp_flops,
    volume,
)
from vorta_trt.model.families.hunyuan_video import FREQUENCIES, refiner_flops, refiner_modules
from vorta_trt.model.families.hunyuan_video_15.authors import authors_names

if TYPE_CHECKING:
    from torch import Tensor

# Rows to which diffusers' pipelines pad the prompt and the glyphs, and SigLIP's tokens of an image: 27 x 27.
PROMPT_ROWS, GLYPH_ROWS, IMAGE_ROWS = 1000, 256, 729
TASKS = ("t2v", "i2v")
GUIDER = "ClassifierFreeGuidance"
GLYPH_WIDTH = 2048  # hidden channels of the glyphs' projection
TILE_PIXELS = 256  # the VAE decodes in tiles of all frames, or the published size fits no card: diffusers' default
# The two results of a block have no name of their own in the graph, so the block itself is not compared.
_BLOCK = (
    *("attn.to_q", "attn.to_k", "attn.to_v", "attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    *("attn.to_out.0", "attn.to_add_out", "ff", "ff_context"),
)
_COMPONENTS = ("guider", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "vae")
_EVERY_STEP = {"start": 0.0, "stop": 1.0, "guidance_rescale": 0.0, "use_original_formulation": False}  # of a guider


class HunyuanVideo15(ModelFamily):
    """Attention over video and three texts in dual-stream blocks, classifier-free guidance by a guider."""

    name = "hunyuan_video_15"
    title = "HunyuanVideo 1.5"
    transformer_class = "HunyuanVideo15Transformer3DModel"
    routed_class = "RoutedHunyuanVideo15Transformer"
    training_class = "HunyuanVideo15Training"
    parts_class = "HunyuanVideo15Parts"
    router_stacks = ("transformer_blocks",)
    block_classes = ("RoutedDualStreamBlock",)
    always_loaded = ("time_embed.timestep_embedder.",)
    coreset_keys = "key"
    published_grid = (30, 45, 80)  # none is published for 1.5: that of HunyuanVideo
    published_tile = (6, 9, 8)
    text_tokens = GLYPH_ROWS + PROMPT_ROWS
    patch = (1, 1, 1)
    spatial_compression = 16
    text_width = "text_embed_dim"
    guidance_scale = 6.0
    classifier_free_guidance = True
    gives_sigmas = True
    draws_in_model_dtype = True
    encoder_dtype = "bfloat16"
    vae_dtype = "float16"
    tiled_vae = True
    frames_per_second = 24.0
    usual_shifts = "5 (480p), 7 (image to video, 720p), 9 (text to video, 720p)"
    demo = DemoModel({"layers": 2}, {}, "HunyuanVideo-1.5-Diffusers-720p_t2v", "121x720x1280")

    def check_config(self, config: Mapping[str, Any], source: str) -> None:
        if config["in_channels"] != 2 * config["out_channels"] + 1:
            raise CheckpointError(
                f"{source}: its config has in_channels {config['in_channels']} and out_channels "
                f"{config['out_channels']}; must be latents, latents of an image and a mask, 2 x out_channels + 1; "
                f"others are of super-resolution, which is not routed; use a T2V or I2V checkpoint of {self.title}"
            )
        if config["task_type"] not in TASKS:
            raise CheckpointError(
                f"{source}: its config has task_type {config['task_type']!r}; must be {' or '.join(map(repr, TASKS))}, "
                f"as in the published {self.title} checkpoints; use one of those"
            )
        if config["qk_norm"] != "rms_norm":
            raise CheckpointError(
                f"{source}: its config has qk_norm {config['qk_norm']!r}; must be 'rms_norm', as in the published "
                f"{self.title} checkpoints; use one of those"
            )

    def pipeline_kinds(self, config: Mapping[str, Any]) -> tuple[PipelineKind, ...]:
        if takes_image(config):
            encoders = ("image_encoder", "feature_extractor")
            return (
                PipelineKind(
                    "HunyuanVideo15ImageToVideoPipeline",
                    (*_COMPONENTS, *encoders),
                    conditioners=("vae", *encoders),
                    images=("image",),
                ),
            )
        return (PipelineKind("HunyuanVideo15Pipeline", _COMPONENTS),)

    def stacks(self, config: Mapping[str, Any]) -> dict[str, int]:
        return {"transformer_blocks": int(config["num_layers"])}

    def patch_of(self, config: Mapping[str, Any]) -> Shape:
        return config["patch_size_t"], config["patch_size"], config["patch_size"]

    # -- inputs --------------------------------------------------------------------------------------------------------

    def authors_names(self, config: Mapping[str, Any]) -> AuthorsNames:
        return authors_names(config["num_layers"], config["num_refiner_layers"])

    def inputs(self, config: Mapping[str, Any]) -> tuple[ModelInput, ...]:
        glyphs, prompt = "encoder_hidden_states_2", "encoder_hidden_states"
        steps = [
            ModelInput("hidden_states", "latents", step=True),  # [B, C, F, H, W]
            ModelInput("timestep", "uniform", high=TRAIN_TIMESTEPS, step=True),  # [B]
        ]
        if takes_next_timestep(config):
            steps.append(ModelInput("timestep_r", "uniform", high=TRAIN_TIMESTEPS, step=True))  # [B]
        texts = [
            ModelInput(prompt, "embedding", ("text", config["text_embed_dim"])),  # [B, 1000, ...]
            ModelInput("encoder_attention_mask", "mask", ("text",), masks=prompt),  # [B, 1000]
            ModelInput(glyphs, "embedding", (GLYPH_ROWS, config["text_embed_2_dim"])),  # [B, 256, ...]
            ModelInput("encoder_attention_mask_2", "mask", (GLYPH_ROWS,), masks=glyphs),  # [B, 256]
        ]
        if takes_image(config):
            texts.append(ModelInput("image_embeds", "embedding", (IMAGE_ROWS, config["image_embed_dim"])))
        return *steps, *texts

    def text_rows(self, text_tokens: int) -> int:
        return PROMPT_ROWS

    def text_tokens_of(self, config: Mapping[str, Any]) -> int:
        return self.text_tokens + IMAGE_ROWS * takes_image(config)

    def model_arguments(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Drops an image of zeros: diffusers' text-to-video pipeline gives one, and its model takes it as no image."""
        arguments = dict(given)
        image = arguments.get("image_embeds")
        if image is not None and not bool(image.any()):
            del arguments["image_embeds"]
        return arguments

    # -- guidance ------------------------------------------------------------------------------------------------------

    def guidance(
        self, config: Mapping[str, Any], *, guidance_scale: float | None, checkpoint: Path | None = None, **options: Any
    ) -> Guidance:
        """The scale goes to the pipeline's guider; its default is that of the folder's own guider."""
        if guidance_scale is None and checkpoint is not None and not options["distilled"]:
            guidance_scale = _folder_scale(checkpoint)
        guidance = super().guidance(config, guidance_scale=guidance_scale, **options)
        scale = guidance.arguments["guidance_scale"]
        if scale < 1:  # below 1 a guider guides away from the prompt
            raise ValueError(
                f"guidance_scale {scale:g}: must be at least 1, which is no guidance; use {self.guidance_scale:g}"
            )
        return guidance

    def sample(self, pipeline: Any, **arguments: Any) -> Tensor:
        """Gives the scale to the guider; with an image, keeps the pipeline from deriving the video's size from it."""
        if pipeline.guider is None:
            from diffusers import ClassifierFreeGuidance

            kind: Any = ClassifierFreeGuidance
            pipeline.guider = kind()
        pipeline.guider.guidance_scale = arguments.pop("guidance_scale")
        if takes_image(pipeline.transformer.config):
            size = arguments.pop("height"), arguments.pop("width")
            pipeline.video_processor.calculate_default_height_width = lambda *_, **__: size
        return super().sample(pipeline, **arguments)

    # -- VAE -----------------------------------------------------------------------------------------------------------

    def normalise(self, vae: Any, latents: Tensor) -> Tensor:
        scaled: Tensor = latents * vae.config.scaling_factor
        return scaled

    def denormalise(self, vae: Any, latents: Tensor) -> Tensor:
        scaled: Tensor = latents / vae.config.scaling_factor
        return scaled

    def vae_factors(self, vae_config: Mapping[str, Any]) -> tuple[int, int]:
        return vae_config["temporal_compression_ratio"], vae_config["spatial_compression_ratio"]

    def vae_channels(self, vae_config: Mapping[str, Any]) -> int | None:
        return vae_config.get("latent_channels")

    def decoding_bytes(self, vae_config: Mapping[str, Any], frames: int, pixels: int) -> int | None:
        """The decoder runs in 16 bits on tiles."""
        channels = vae_config.get("block_out_channels")
        return None if not channels else 2 * int(channels[0]) * frames * min(pixels, TILE_PIXELS**2)

    # -- cost ----------------------------------------------------------------------------------------------------------

    def other_flops(self, config: Mapping[str, Any], video_tokens: int, text_tokens: int) -> dict[str, int]:
        video, tokens, layers = video_tokens, video_tokens + text_tokens, config["num_layers"]
        dim = config["num_attention_heads"] * config["attention_head_dim"]
        hidden = self.feed_forward_width(config)
        voxels = volume(self.patch_of(config))
        glyph_dim, image_dim = config["text_embed_2_dim"], config["image_embed_dim"]
        image = IMAGE_ROWS * takes_image(config)
        prompt = text_tokens - GLYPH_ROWS - image
        timestep = mlp_flops(1, FREQUENCIES, dim, dim)
        conditioning = (
            timestep * (1 + takes_next_timestep(config))
            + refiner_flops(config, prompt, dim)
            + linear_flops(GLYPH_ROWS, glyph_dim, GLYPH_WIDTH)
            + mlp_flops(GLYPH_ROWS, GLYPH_WIDTH, GLYPH_WIDTH, dim)
            + mlp_flops(image, image_dim, image_dim, dim)
            + layers * 2 * linear_flops(1, dim, 6 * dim)
            + linear_flops(1, dim, 2 * dim)
        )
        return {
            "projections": layers * 4 * linear_flops(tokens, dim, dim),
            "feed_forward": layers * mlp_flops(tokens, dim, hidden, dim),
            "cross_attention": 0,
            "conditioning": conditioning,
            "patches": linear_flops(video, config["in_channels"] * voxels, dim)
            + linear_flops(video, dim, config["out_channels"] * voxels),
        }

    def feed_forward_width(self, config: Mapping[str, Any]) -> int:
        return int(config["num_attention_heads"] * config["attention_head_dim"] * float(config["mlp_ratio"]))

    def dense_attentions(self, config: Mapping[str, Any]) -> tuple[int, str]:
        return config["num_refiner_layers"], "one per layer of the token refiner"

    def compared_modules(self, config: Mapping[str, Any]) -> list[str]:
        return [
            "x_embedder",
            *refiner_modules(config),
            "context_embedder_2",
            "image_embedder",  # image-to-video models only
            *(f"transformer_blocks.{layer}.{name}" for layer in range(config["num_layers"]) for name in _BLOCK),
            "proj_out",
        ]


def takes_image(config: Mapping[str, Any]) -> bool:
    """Whether a model makes videos from an image: a property of the checkpoint, and so of the engines built from it."""
    return bool(config["task_type"] == "i2v")


def takes_next_timestep(config: Mapping[str, Any]) -> bool:
    """Whether the pipeline gives `timestep_r`: that of text to video does not, even if its model could take it."""
    return bool(config["use_meanflow"]) and takes_image(config)


def _folder_scale(checkpoint: Path) -> float | None:
    """The guidance scale of a pipeline folder's guider, None if it has none.

    Raises:
        CheckpointError: `generate` does not plan for such a guider.
    """
    file = checkpoint / "guider" / "guider_config.json"
    if not file.is_file():
        return None
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        kind, scale = content.get("_class_name"), float(content.get("guidance_scale", math.nan))
        rest = {name: content.get(name, usual) for name, usual in _EVERY_STEP.items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{file}: is no guider's config ({error}); restore the published file") from error
    if not content.get("enabled", True):
        scale = 1.0
    if kind != GUIDER or rest != _EVERY_STEP or not math.isfinite(scale):
        raise CheckpointError(
            f"{file}: {kind} with {rest} and guidance_scale {scale:g}; only a {GUIDER} of every step is planned; give "
            f"guidance_scale, or put the transformer into diffusers' own pipeline"
        )
    return scale
