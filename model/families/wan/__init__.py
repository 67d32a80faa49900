# SPDX-License-Identifier: Apache-2.0
"""The facts of Wan 2.1 and 2.2: text to video, image to video, first and last frame to video."""

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
    PublishedTeaCache,
    Shape,
    attention_flops,
    linear_flops,
    mlp_flops,
    volume,
)
from vorta_trt.model.families.wan.authors import authors_names
from vorta_trt.model.families.wan.original import original_config

if TYPE_CHECKING:
    from torch import Tensor

TEXT_SEQUENCE = 512  # tokens of the text encoder, to which Wan pads every prompt
IMAGE_ROWS = 257  # embeddings that CLIP makes of an image: 16 x 16 patches and one of the whole
_USE = "use a Wan T2V, I2V, FLF2V or TI2V checkpoint"
_COMPONENTS = ("text_encoder", "tokenizer", "vae")
_CLIP = ("image_encoder", "image_processor")
_TI2V_CHANNELS = 48  # latent channels of Wan 2.2's VAE of 4 x 16 x 16, which only TI2V 5B has
_BLOCK = ("attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0", "attn2.to_out.0", "ffn")

# Checkpoint, signal -> TeaCache4Wan2.1 of ali-vilab/TeaCache.
_TEA_CACHE: Mapping[tuple[str, str], PublishedTeaCache] = {
    ("Wan2.1-T2V-1.3B", "embedding"): PublishedTeaCache(
        (2.39676752e03, -1.31110545e03, 2.01331979e02, -8.29855975e00, 1.37887774e-01), 0.08, 1
    ),
    ("Wan2.1-T2V-1.3B", "modulation"): PublishedTeaCache(
        (-5.21862437e04, 9.23041404e03, -5.28275948e02, 1.36987616e01, -4.99875664e-02), 0.1, 5
    ),
    ("Wan2.1-T2V-14B", "embedding"): PublishedTeaCache(
        (-5784.54975374, 5449.50911966, -1811.16591783, 256.27178429, -13.02252404), 0.2, 1
    ),
    ("Wan2.1-T2V-14B", "modulation"): PublishedTeaCache(
        (-3.03318725e05, 4.90537029e04, -2.65530556e03, 5.87365115e01, -3.15583525e-01), 0.2, 5
    ),
    ("Wan2.1-I2V-14B-480P", "embedding"): PublishedTeaCache(
        (-3.02331670e02, 2.23948934e02, -5.25463970e01, 5.87348440e00, -2.01973289e-01), 0.26, 1
    ),
    ("Wan2.1-I2V-14B-720P", "embedding"): PublishedTeaCache(
        (-114.36346466, 65.26524496, -18.82220707, 4.91518089, -0.23412683), 0.3, 1
    ),
}
_TEA_CACHE_SIZES = {  # layers, heads
    "Wan2.1-T2V-1.3B": (30, 12),
    "Wan2.1-T2V-14B": (40, 40),
    "Wan2.1-I2V-14B-480P": (40, 40),
    "Wan2.1-I2V-14B-720P": (40, 40),
}


class Wan(ModelFamily):
    """Self-attention over video alone, cross-attention to the text, classifier-free guidance."""

    name = "wan"
    title = "Wan"
    transformer_class = "WanTransformer3DModel"
    authors_class = "WanModel"
    original_types = ("wan-t2v-1.3B", "wan-t2v-14B", "wan-i2v-14B")
    original_names = {"img_emb.emb_pos": "condition_embedder.image_embedder.pos_embed"}
    # With expand_timesteps, a model of one timestep gets it for every token.
    neutral_settings = ("expand_timesteps",)
    routed_class = "RoutedWanTransformer"
    training_class = "WanTraining"
    parts_class = "WanParts"
    vae_needs_all_rows = ("WanAttentionBlock",)
    vae_decodes_chunks = True
    # Measured with Wan 2.1's VAE (77x720x1280, H200, torch 2.11): 7.7 eager, 12.4 compiled in 16 bits. Compiled float32
    # was not measured by itself, nor was the VAE of 4 x 16 x 16.
    decoding_tensors = (8, 13)
    router_stacks = ("blocks",)
    block_classes = ("RoutedWanBlock",)
    always_loaded = ("condition_embedder.time_embedder.",)
    modulation_projection = "condition_embedder.time_proj"
    linear_keep = (
        *ModelFamily.linear_keep,
        "*.attn2.to_k",
        "*.attn2.to_v",
        "*.attn2.add_?_proj",
    )  # keys and values of the cross-attention: few rows
    coreset_keys = "query"
    published_grid = (20, 45, 80)
    published_tile = (5, 9, 8)
    text_width = "text_dim"
    guidance_scale = 5.0
    classifier_free_guidance = True
    gives_sigmas = False
    encoder_dtype = "bfloat16"
    vae_dtype = "float32"
    frames_per_second = 16.0
    presets = ("mlperf", "lightx2v-4step", "lightning", "fastwan-3step")
    usual_shifts = "3 at 480p, 5 at 720p"
    demo = DemoModel({"layers": 4}, {"ffn_dim": 768}, "Wan2.1-T2V-14B-Diffusers", "77x720x1280")

    def check_config(self, config: Mapping[str, Any], source: str) -> None:
        channels, outputs = config["in_channels"], self.latent_channels(config)
        conditioned = channels - outputs
        if conditioned not in (0, self.temporal_compression + outputs):
            raise CheckpointError(
                f"{source}: its config has in_channels {channels} and out_channels {outputs}; the other "
                f"{abs(conditioned)} channels are a condition that is not routed, as of a control model: an "
                f"image-to-video model has {self.temporal_compression} of a mask and {outputs} of the image; {_USE}"
            )
        image, added = config["image_dim"], config["added_kv_proj_dim"]
        if (image is None) != (added is None) or (image is not None and not conditioned):
            raise CheckpointError(
                f"{source}: its config has image_dim {image}, added_kv_proj_dim {added} and {conditioned} channels of "
                f"a condition; a model that sees images has all three, or the channels alone; {_USE}"
            )
        rows = config["pos_embed_seq_len"]
        if rows is not None and (image is None or rows % 2):
            raise CheckpointError(
                f"{source}: its config has pos_embed_seq_len {rows} and image_dim {image}; positions are those of the "
                f"embeddings of two images; {_USE}"
            )

    def pipeline_kinds(self, config: Mapping[str, Any]) -> tuple[PipelineKind, ...]:
        if two_timesteps(config):
            settings = {"expand_timesteps": True}
            return (
                PipelineKind("WanPipeline", _COMPONENTS, settings=settings),
                PipelineKind(
                    "WanImageToVideoPipeline", _COMPONENTS, conditioners=("vae",), images=("image",), settings=settings
                ),
            )
        if config["in_channels"] == self.latent_channels(config):
            return (PipelineKind("WanPipeline", _COMPONENTS, two_experts=True),)
        clip = () if config["image_dim"] is None else _CLIP
        ends = ("last_image",)
        required = ("image", *(ends if config["pos_embed_seq_len"] is not None else ()))
        return (
            PipelineKind(
                "WanImageToVideoPipeline",
                (*_COMPONENTS, *clip),
                conditioners=("vae", *clip),
                images=required,
                # CLIP's embeddings of a last image need a model with positions for them.
                optional_images=() if clip else ends,
                encodes_video=True,
                two_experts=not clip,
            ),
        )

    def published_boundary(self, config: Mapping[str, Any]) -> float | None:
        """The boundary ratio of Wan 2.2 A14B: 0.875 for text to video, 0.9 for image to video."""
        return 0.875 if config["in_channels"] == self.latent_channels(config) else 0.9

    def original_config(self, shapes: Mapping[str, tuple[int, ...]], theirs: Mapping[str, Any]) -> dict[str, Any]:
        return original_config(shapes, theirs)

    def stacks(self, config: Mapping[str, Any]) -> dict[str, int]:
        return {"blocks": int(config["num_layers"])}

    def patch_of(self, config: Mapping[str, Any]) -> Shape:
        frames, height, width = config["patch_size"]
        return frames, height, width

    def frames_of_chunk(self, vae: Any, chunk: Tensor) -> Tensor:
        """See the base class."""
        from diffusers.models.autoencoders.autoencoder_kl_wan import unpatchify

        patch = vae.config.patch_size
        frames: Tensor = chunk if patch is None else unpatchify(chunk, patch_size=patch)  # type: ignore[no-untyped-call]
        return frames.clamp(min=-1.0, max=1.0)

    def compression(self, config: Mapping[str, Any] | None) -> tuple[int, int]:
        return (4, 16) if config is not None and two_timesteps(config) else super().compression(config)

    def frame_rate(self, config: Mapping[str, Any]) -> float:
        return 24.0 if two_timesteps(config) else super().frame_rate(config)

    def authors_names(self, config: Mapping[str, Any]) -> AuthorsNames:
        return authors_names(config["num_layers"])

    def inputs(self, config: Mapping[str, Any]) -> tuple[ModelInput, ...]:
        return (
            ModelInput("hidden_states", "latents", step=True),  # [B, C, F, H, W]
            ModelInput("timestep", "uniform", (2,) if two_timesteps(config) else (), high=TRAIN_TIMESTEPS, step=True),
            ModelInput("encoder_hidden_states", "embedding", ("text", config["text_dim"])),  # [B, X, text_dim]
            *self._image_inputs(config),
        )

    def _image_inputs(self, config: Mapping[str, Any]) -> tuple[ModelInput, ...]:
        if config["image_dim"] is None:
            return ()
        sizes = (self.image_rows(config), config["image_dim"])
        return (ModelInput("encoder_hidden_states_image", "embedding", sizes),)  # [B, Y, image_dim]

    def image_rows(self, config: Mapping[str, Any]) -> int:
        """Rows of `encoder_hidden_states_image`, 0 if the model has none."""
        rows = config["pos_embed_seq_len"] or IMAGE_ROWS
        return 0 if config["image_dim"] is None else int(rows)

    def text_rows(self, text_tokens: int) -> int:
        return TEXT_SEQUENCE

    def normalise(self, vae: Any, latents: Tensor) -> Tensor:
        mean, std = _statistics(vae, latents)  # [1, C, 1, 1, 1]
        return (latents - mean) / std

    def denormalise(self, vae: Any, latents: Tensor) -> Tensor:
        mean, std = _statistics(vae, latents)  # [1, C, 1, 1, 1]
        # Not `latents * std`, which rounds otherwise than the pipeline does.
        return latents / (1.0 / std) + mean

    def vae_factors(self, vae_config: Mapping[str, Any]) -> tuple[int, int]:
        return vae_config["scale_factor_temporal"], vae_config["scale_factor_spatial"]

    def check_vae(self, vae_config: Mapping[str, Any], config: Mapping[str, Any], source: str) -> None:
        super().check_vae(vae_config, config, source)
        for name in ("latents_mean", "latents_std"):
            if len(vae_config[name]) != vae_config["z_dim"]:
                raise CheckpointError(
                    f"{source}: {name} has {len(vae_config[name])} numbers; must have one for each of the "
                    f"{vae_config['z_dim']} channels of z_dim; restore the original file of the checkpoint"
                )

    def vae_channels(self, vae_config: Mapping[str, Any]) -> int | None:
        return vae_config.get("z_dim")

    def decoding_bytes(self, vae_config: Mapping[str, Any], frames: int, pixels: int) -> int | None:
        """The decoder takes one latent frame at a time in float32, with 2 x its base_dim channels at full resolution.

        A VAE with a patch_size decodes patches of that many pixels a side, which it spreads out last.
        """
        base = vae_config.get("decoder_base_dim") or vae_config.get("base_dim")
        if base is None:
            return None
        patches = pixels // (vae_config.get("patch_size") or 1) ** 2
        return 2 * int(base) * self.temporal_compression * patches * 4

    def other_flops(self, config: Mapping[str, Any], video_tokens: int, text_tokens: int) -> dict[str, int]:
        video, text, layers = video_tokens, TEXT_SEQUENCE, config["num_layers"]
        image = self.image_rows(config)
        dim = config["num_attention_heads"] * config["attention_head_dim"]
        voxels = volume(self.patch_of(config))
        outputs = self.latent_channels(config)
        cross = (
            2 * linear_flops(video, dim, dim)  # query, output
            + 2 * linear_flops(text + image, dim, dim)  # key, value
            + attention_flops(video, text + image, dim)
        )
        timesteps = 2 if two_timesteps(config) else 1
        conditioning = (
            mlp_flops(timesteps, config["freq_dim"], dim, dim)
            + linear_flops(timesteps, dim, 6 * dim)  # modulation, shared by the layers
            + mlp_flops(text, config["text_dim"], dim, dim)
            + (mlp_flops(image, config["image_dim"], config["image_dim"], dim) if image else 0)
        )
        return {
            "projections": layers * 4 * linear_flops(video, dim, dim),
            "feed_forward": layers * mlp_flops(video, dim, config["ffn_dim"], dim),
            "cross_attention": layers * cross,
            "conditioning": conditioning,
            "patches": linear_flops(video, config["in_channels"] * voxels, dim)
            + linear_flops(video, dim, outputs * voxels),
        }

    def feed_forward_width(self, config: Mapping[str, Any]) -> int:
        return int(config["ffn_dim"])

    def dense_attentions(self, config: Mapping[str, Any]) -> tuple[int, str]:
        if config["image_dim"] is None:
            return config["num_layers"], "one cross-attention per layer"
        return 2 * config["num_layers"], "two cross-attentions per layer, to text and image"

    def compared_modules(self, config: Mapping[str, Any]) -> list[str]:
        return [
            "patch_embedding",
            *(f"condition_embedder.{name}" for name in ("time_embedder", "time_proj", "text_embedder")),
            *(() if config["image_dim"] is None else ("condition_embedder.image_embedder.norm2",)),
            *(
                f"blocks.{layer}{name}"
                for layer in range(config["num_layers"])
                for name in (*(f".{part}" for part in _BLOCK), "")
            ),
            "proj_out",
        ]

    def tea_cache_models(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(model for model, _ in _TEA_CACHE))

    def tea_cache_model(self, checkpoint: str | None, layers: int, heads: int) -> str | None:
        model = super().tea_cache_model(checkpoint, layers, heads)
        return model if model is not None and _TEA_CACHE_SIZES[model] == (layers, heads) else None

    def tea_cache(self, model: str, signal: str) -> PublishedTeaCache | None:
        return _TEA_CACHE.get((model, signal))


def two_timesteps(config: Mapping[str, Any]) -> bool:
    """Whether a model takes two timesteps, one of the first latent frame and one of the others: Wan 2.2 TI2V.

    Its pipeline sets the first one to 0 where the first latent frame is that of a given image; otherwise both are the
    same. In the config, only the number of latent channels shows such a model.
    """
    return bool(config["in_channels"] == _TI2V_CHANNELS)


def _statistics(vae: Any, latents: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the VAE's latents, [1, C, 1, 1, 1] in the type and place of `latents`."""
    import torch

    mean, std = (
        torch.tensor(values).view(1, -1, 1, 1, 1).to(latents)
        for values in (vae.config.latents_mean, vae.config.latents_std)
    )
    return mean, std
