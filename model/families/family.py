# SPDX-License-Identifier: Apache-2.0
"""`ModelFamily`: everything that is true of one family of models and of no other.

A family's facts need no torch. Code that does is in modules of the family's folder, which the facts name and `load`
imports: the routed transformer, the conditions of training, the random checkpoints.

Letters: B batch, C latent channels, F, H, W latent frames, height, width, S video tokens, T text tokens, E inner
dimension, L layers, N heads, D head dimension.
"""

from __future__ import annotations

import abc
import importlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

from vorta_trt.model.errors import CheckpointError
from vorta_trt.model.families.authors import AuthorsNames

if TYPE_CHECKING:
    from torch import Tensor

Shape = tuple[int, int, int]
InputKind = Literal["latents", "embedding", "uniform", "mask"]


@dataclass(frozen=True)
class ModelInput:
    """An input of a family's transformer.

    Attributes:
        name: name of the argument of diffusers' model, and of the input of the exported engine.
        kind: "latents" [B, C, F, H, W] and "embedding" are in the type of the activations; "uniform" is float32; "mask"
            is int32, nonzero for valid entries, which come first.
        sizes: sizes of the axes after B, empty for a "uniform" input of one number per sample; "text" stands for the
            number of text rows.
        low: lower bound of a "uniform" input, for examples.
        high: upper bound of a "uniform" input, for examples.
        step: whether it changes at every denoising step; the others are conditions.
        masks: name of the embedding whose valid rows a "mask" tells from padding.
    """

    name: str
    kind: InputKind
    sizes: tuple[int | str, ...] = ()
    low: float = 0.0
    high: float = 1.0
    step: bool = False
    masks: str = "encoder_hidden_states"

    def shape(self, text_rows: int) -> tuple[int, ...]:
        """The sizes of the axes after B as numbers; empty for latents."""
        return tuple(text_rows if size == "text" else int(size) for size in self.sizes)


@dataclass(frozen=True)
class Guidance:
    """How a request is guided.

    Attributes:
        arguments: guidance arguments of the call of diffusers' pipeline.
        passes: passes of a step, 2 with classifier-free guidance.
        passes_2: passes of a step of the second of two experts; None: as many as `passes`.
    """

    arguments: dict[str, Any]
    passes: int
    passes_2: int | None = None


@dataclass(frozen=True)
class PublishedTeaCache:
    """The numbers that the authors of TeaCache publish for one checkpoint and one signal.

    Attributes:
        coefficients: coefficients of the polynomial, highest power first.
        threshold: threshold of the faster of the published settings.
        first: how many first steps are always computed.
    """

    coefficients: tuple[float, ...]
    threshold: float
    first: int


@dataclass(frozen=True)
class PipelineKind:
    """A pipeline of diffusers that runs a transformer.

    Attributes:
        pipeline: diffusers' class, `_class_name` of a model_index.json.
        components: the folders of a pipeline folder that are run, beside the transformer and the scheduler.
        conditioners: names of the `components` that turn the images of a request into conditions, before denoising.
        images: arguments of the pipeline's call that take an image and must be given.
        optional_images: arguments that take an image and may be left out.
        encodes_video: whether the images, filled up with zeros to a whole video, are encoded by the VAE.
        settings: entries of model_index.json that every such pipeline has, with the values that they must have.
        two_experts: whether it can have a second transformer, see `model/experts.py`.
    """

    pipeline: str
    components: tuple[str, ...]
    conditioners: tuple[str, ...] = ()
    images: tuple[str, ...] = ()
    optional_images: tuple[str, ...] = ()
    encodes_video: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict)
    two_experts: bool = False


@dataclass(frozen=True)
class DemoModel:
    """The small model of `vorta-trt demo`, and what to try after it.

    Attributes:
        blocks: lengths of the stacks of blocks, as arguments of the random checkpoint and the random router.
        sizes: further arguments of the family's random checkpoint.
        checkpoint: the name of a real checkpoint.
        size: size of that checkpoint's videos, frames x height x width.
        head_dim: D of the small model, which the family's rotary embedding must be able to divide.
    """

    blocks: Mapping[str, int]
    sizes: Mapping[str, int]
    checkpoint: str
    size: str
    head_dim: int = 64


class ModelFamily(abc.ABC):
    """The facts of a family; stateless, so that a registry holds one object of each.

    Attributes:
        name: name in metadata, bundles and calibrated routes; also that of the folder under `model/families/`.
        title: name for people.
        transformer_class: diffusers' class of the transformer, `_class_name` of its config.
        authors_class: `_class_name` of checkpoints in the layout of the model's authors, None if they have none.
        original_types: names that diffusers' `infer_diffusers_model_type` gives weights in that layout or in ComfyUI's.
        original_names: name of a tensor of that layout that diffusers' converter does not rename -> diffusers' name.
        neutral_settings: settings of model_index.json that change nothing unless a pipeline kind asks for them.
        routed_class: class of the routed transformer in the folder's transformer.py.
        training_class: class of the training conditions in the folder's training.py.
        parts_class: class of VAE and text encoders as graphs in the folder's parts.py; None if none is exported.
        router_stacks: names of the lists of blocks in a router's keys, in the order that they run in.
        block_classes: names of the routed block classes, which are the units that FSDP shards.
        always_loaded: prefixes of parameters that are never left on disk, which are those of the timestep embedder.
        modulation_projection: name of the module that projects the timestep embedding alone to the blocks' modulation;
            None if there is none.
        linear_keep: patterns of linear layers without fp8 products by default, see `linear_choice`.
        coreset_keys: whose similarities choose a coreset's keys, see `AttentionGeometry`.
        published_grid: token grid of the authors' published setting of routed attention.
        published_tile: sliding tile of that setting; other grids get one whose window covers as large a share.
        text_tokens: T of the self-attention of the published models, 0 if it is over video alone; see `text_tokens_of`.
        patch: latent voxels per token (frames, height, width), as published.
        temporal_compression: frames per latent frame of the VAE: 1 + n * temporal_compression frames become 1 + n
            latent frames. See `compression`.
        spatial_compression: pixels a side per latent voxel of the VAE. See `compression`.
        text_width: name of the config entry that holds the width of the text embeddings.
        guidance_scale: the pipeline's default guidance scale.
        classifier_free_guidance: whether the guidance scale costs a second pass; otherwise the model embeds it, or has
            none.
        gives_sigmas: the pipeline gives its scheduler the sigmas, and rounds timesteps to the type of the latents.
        draws_in_model_dtype: the pipeline draws the noise in the transformer's type, not in float32.
        encoder_dtype: torch type of the text encoders on a GPU; everything is float32 on the CPU.
        vae_dtype: torch type of the VAE on a GPU.
        tiled_vae: the VAE takes videos of published size only in tiles.
        vae_needs_all_rows: class names of the modules of the VAE's decoder that need all rows of a frame. All other
            modules are convolutions or elementwise in height, so several GPUs can decode a part of the rows each; None
            where that is not so.
        vae_decodes_chunks: the VAE calls its decoder once for every chunk of frames, in order, unless it decodes in
            tiles; see `frames_of_chunk`.
        decoding_tensors: how many tensors as large as the widest, see `decoding_bytes`, are alive at the peak of
            decoding in torch, eager and compiled. The default, which VAEs that decode in tiles have, is an estimate.
        frames_per_second: frame rate of the family's videos; see `frame_rate`.
        usual_shifts: flow shifts in use, for help and errors.
        presets: names of the published settings that models of the family are sampled with, see `Preset`.
        demo: see `DemoModel`.
    """

    name: str
    title: str
    transformer_class: str
    authors_class: str | None = None
    original_types: tuple[str, ...] = ()
    original_names: Mapping[str, str] = MappingProxyType({})
    neutral_settings: tuple[str, ...] = ()
    routed_class: str
    training_class: str
    parts_class: str | None = None
    router_stacks: tuple[str, ...]
    block_classes: tuple[str, ...]
    always_loaded: tuple[str, ...]
    modulation_projection: str | None = None
    linear_keep: tuple[str, ...] = ("*embed*", "*norm*", "proj_out")
    coreset_keys: str
    published_grid: Shape
    published_tile: Shape
    text_tokens: int = 0
    patch: Shape = (1, 2, 2)
    temporal_compression: int = 4
    spatial_compression: int = 8
    text_width: str
    guidance_scale: float
    classifier_free_guidance: bool
    gives_sigmas: bool
    draws_in_model_dtype: bool = False
    encoder_dtype: str
    vae_dtype: str
    tiled_vae: bool = False
    vae_needs_all_rows: tuple[str, ...] | None = None
    vae_decodes_chunks: bool = False
    decoding_tensors: tuple[int, int] = (3, 6)
    frames_per_second: float
    usual_shifts: str
    presets: tuple[str, ...] = ()
    demo: DemoModel

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"

    def __str__(self) -> str:
        return self.title

    # -- modules that need torch ---------------------------------------------------------------------------------------

    def load(self, part: Literal["transformer", "training", "random", "parts"]) -> Any:
        """A module of the family's folder."""
        return importlib.import_module(f"{type(self).__module__}.{part}")

    def diffusers_transformer(self) -> Any:
        """The transformer's class in diffusers."""
        import diffusers

        return getattr(diffusers, self.transformer_class)

    def float32_modules(self) -> frozenset[str]:
        """Names of modules whose parameters stay in float32 in every precision: diffusers' rule."""
        return frozenset(getattr(self.diffusers_transformer(), "_keep_in_fp32_modules", None) or ())

    # -- configs -------------------------------------------------------------------------------------------------------

    @abc.abstractmethod
    def check_config(self, config: Mapping[str, Any], source: str) -> None:
        """Raises CheckpointError if a transformer config of the family's class describes a model that is not routed."""

    def original_config(self, shapes: Mapping[str, tuple[int, ...]], theirs: Mapping[str, Any]) -> dict[str, Any]:
        """The diffusers config of weights that come without one.

        Args:
            shapes: shapes of the tensors, by diffusers' names.
            theirs: the config.json of the authors' layout; may be empty.

        Raises:
            KeyError: A tensor is missing that every model of the family has.
            ValueError: The tensors are those of another model.
        """
        raise ValueError("a config.json of diffusers' layout is needed for this family")

    @abc.abstractmethod
    def pipeline_kinds(self, config: Mapping[str, Any]) -> tuple[PipelineKind, ...]:
        """The pipelines of diffusers that run a model, by its config; the first is that of published folders.

        A model that makes videos of text and of text with images has one for each; a request runs the first pipeline
        that takes its images.
        """

    def published_boundary(self, config: Mapping[str, Any]) -> float | None:
        """Where the second of two experts takes over in the published model of a config, whose files do not say it."""
        return None

    @abc.abstractmethod
    def stacks(self, config: Mapping[str, Any]) -> dict[str, int]:
        """The lists of routed blocks and their lengths, in the order that they run in; names are `router_stacks`."""

    @abc.abstractmethod
    def patch_of(self, config: Mapping[str, Any]) -> Shape:
        """Latent voxels (frames, height, width) per token."""

    def authors_names(self, config: Mapping[str, Any]) -> AuthorsNames:
        """Modules by the names of the model's authors, which LoRA files use beside those of diffusers.

        Modules that only other models of the family have may be among them.
        """
        return {}

    # -- sizes ---------------------------------------------------------------------------------------------------------

    def latent_shape(self, config: Mapping[str, Any], grid: Shape) -> tuple[int, int, int, int]:
        """C, F, H, W of the `hidden_states` of a token grid; C includes the channels of conditions."""
        frames, height, width = (axis * side for axis, side in zip(grid, self.patch_of(config), strict=True))
        return config["in_channels"], frames, height, width

    def sample_shape(self, config: Mapping[str, Any], grid: Shape) -> tuple[int, int, int, int]:
        """C, F, H, W of the latents of a token grid, which the VAE gives and the transformer denoises."""
        return self.latent_channels(config), *self.latent_shape(config, grid)[1:]

    def latent_channels(self, config: Mapping[str, Any]) -> int:
        """Channels of the transformer's output and of the VAE's latents; the input may have a condition's, too."""
        return int(config.get("out_channels") or config["in_channels"])

    def compression(self, config: Mapping[str, Any] | None) -> tuple[int, int]:
        """Frames and pixels a side that one latent of a model's VAE stands for; for usual models without a config.

        Frame 0 has a latent frame of its own: 1 + n * frames become 1 + n latent frames.
        """
        return self.temporal_compression, self.spatial_compression

    def video_size(self, config: Mapping[str, Any], frames: int, height: int, width: int) -> Shape:
        """Pixels (frames, height, width) of a video of that many latent frames, rows and columns."""
        temporal, spatial = self.compression(config)
        return temporal * (frames - 1) + 1, spatial * height, spatial * width

    def frame_rate(self, config: Mapping[str, Any]) -> float:
        """Frames per second of a model's videos."""
        return self.frames_per_second

    # -- inputs --------------------------------------------------------------------------------------------------------

    @abc.abstractmethod
    def inputs(self, config: Mapping[str, Any]) -> tuple[ModelInput, ...]:
        """The transformer's inputs, in order; latents and timestep come first."""

    def text_tokens_of(self, config: Mapping[str, Any]) -> int:
        """T of the self-attention of a model with that config, padding included; 0 if it is over video alone."""
        return self.text_tokens

    def prompt_tokens(self, config: Mapping[str, Any], rows: int) -> int:
        """`max_sequence_length` for the pipeline's call so that it gives `rows` rows of text."""
        return rows

    @abc.abstractmethod
    def text_rows(self, text_tokens: int) -> int:
        """Rows of `encoder_hidden_states` of a model whose self-attention has that many text tokens."""

    def model_arguments(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Arguments of the routed transformer from those that diffusers' pipeline gives its transformer, by name.

        A family whose pipeline gives what the routed transformer computes itself, such as rotary tables, or gives an
        input in another shape than `inputs` says, changes it here. Whatever then is no input is refused.
        """
        return dict(given)

    @property
    def joint_attention(self) -> bool:
        """Whether the self-attention is over video and text; then a mask tells text from padding."""
        return self.text_tokens > 0

    # -- guidance ------------------------------------------------------------------------------------------------------

    def guidance(
        self,
        config: Mapping[str, Any],
        *,
        guidance_scale: float | None,
        guidance_scale_2: float | None,
        true_cfg_scale: float,
        negative_prompt: str | None,
        distilled: bool,
        two_experts: bool = False,
        checkpoint: Path | None = None,
    ) -> Guidance:
        """The guidance arguments that the pipeline is called with.

        Args:
            config: config of the diffusers transformer.
            guidance_scale: guidance scale of the request; None takes the default.
            guidance_scale_2: guidance scale of the second of two experts; None takes that of the first.
            true_cfg_scale: scale of classifier-free guidance, for models that take `guidance_scale` as an input; 1 is
                off.
            negative_prompt: text that guidance leads away from; None if the request has none.
            distilled: whether the request gives the steps themselves, as distilled models need; guidance is then off by
                default.
            two_experts: whether the pipeline has two.
            checkpoint: the pipeline folder, whose own guidance may be the default.

        Raises:
            ValueError: an argument would have no effect.
        """
        if guidance_scale_2 is not None and not two_experts:
            raise ValueError(
                f"guidance_scale_2 {guidance_scale_2:g}: is for models with two experts, and this one has one; leave "
                f"it out"
            )
        passes_2 = None
        if self.classifier_free_guidance:
            if true_cfg_scale != 1:
                raise ValueError(
                    f"true_cfg_scale {true_cfg_scale:g}: is for models whose guidance_scale is an input; the "
                    f"guidance_scale of this one is the true one, give that"
                )
            scale = (1.0 if distilled else self.guidance_scale) if guidance_scale is None else guidance_scale
            guided, arguments, switch = scale > 1, {"guidance_scale": scale}, "guidance_scale"
            scale_2 = scale if guidance_scale_2 is None else guidance_scale_2
            if two_experts:
                arguments["guidance_scale_2"] = scale_2
            if not guided and scale_2 > 1:
                raise ValueError(
                    f"guidance_scale_2 {scale_2:g} with guidance_scale {scale:g}: has no effect, because the pipeline "
                    f"guides neither expert unless guidance_scale is above 1; give one above 1, or leave it out"
                )
            if guided and two_experts and scale_2 == 1:
                passes_2 = 1  # (cond - uncond) x 1 + uncond: the unconditional sample cancels out
        else:
            if guidance_scale is not None and not self.embeds_guidance(config):
                raise ValueError(
                    f"guidance_scale {guidance_scale:g}: this model has no guidance embedding, so it would have no "
                    f"effect; leave it out, or give true_cfg_scale"
                )
            guided, switch = true_cfg_scale > 1, "true_cfg_scale"
            default = self.guidance_scale if self.embeds_guidance(config) else 1.0
            arguments = {
                "guidance_scale": default if guidance_scale is None else guidance_scale,
                "true_cfg_scale": true_cfg_scale,
            }
        if negative_prompt is not None and not guided:
            raise ValueError(
                f"negative_prompt {negative_prompt!r}: has no effect without guidance; give a {switch} above 1, or "
                f"leave it out"
            )
        negative = {"negative_prompt": negative_prompt or ""} if guided else {}
        return Guidance({**arguments, **negative}, 2 if guided else 1, passes_2)

    def embeds_guidance(self, config: Mapping[str, Any]) -> bool:
        """Whether the guidance scale is an input of the transformer."""
        return any(spec.name == "guidance" for spec in self.inputs(config))

    # -- VAE -----------------------------------------------------------------------------------------------------------

    @abc.abstractmethod
    def normalise(self, vae: Any, latents: Tensor) -> Tensor:
        """Converts latents of the VAE's encoder to those that the transformer denoises; [B, C, F, H, W] both."""

    @abc.abstractmethod
    def denormalise(self, vae: Any, latents: Tensor) -> Tensor:
        """Inverse of `normalise`, bit for bit as diffusers' pipeline computes it before its VAE decodes."""

    def sample(self, pipeline: Any, **arguments: Any) -> Tensor:
        """Runs diffusers' pipeline and returns the latents that its VAE decodes, [B, C, F, H, W].

        Args:
            pipeline: diffusers' pipeline, with the transformer in it.
            arguments: arguments of the pipeline's call, without `output_type`.
        """
        sampled: Tensor = pipeline(output_type="latent", **arguments).frames
        return sampled

    def decode(self, config: Mapping[str, Any], vae: Any, latents: Tensor) -> Tensor:
        """Decodes denoised latents to the video [B, 3, F, H, W] in the VAE's type, as diffusers' pipeline does.

        Where the VAE gives more frames, rows or columns than were asked for, the caller cuts off the last ones.
        """
        decoded: Tensor = vae.decode(self.denormalise(vae, latents), return_dict=False)[0]
        return decoded

    def frames_of_chunk(self, vae: Any, chunk: Tensor) -> Tensor:
        """Frames [B, 3, F, H, W] from the decoder's output for a chunk, bit for bit as the VAE makes them."""
        raise NotImplementedError(f"{self}: its VAE does not decode in chunks")

    @abc.abstractmethod
    def vae_factors(self, vae_config: Mapping[str, Any]) -> tuple[int, int]:
        """How many frames, and pixels a side, one latent of a VAE's config stands for."""

    def check_vae(self, vae_config: Mapping[str, Any], config: Mapping[str, Any], source: str) -> None:
        """Raises CheckpointError unless a VAE makes the latents that a transformer takes.

        Args:
            vae_config: config of the VAE.
            config: config of the transformer.
            source: where the VAE's config comes from, for errors.
        """
        frames, pixels = self.vae_factors(vae_config)
        if (frames, pixels) != (wanted := self.compression(config)):
            raise CheckpointError(
                f"{source}: one latent stands for {frames} frames and {pixels} pixels a side; this {self} transformer "
                f"is of {wanted[0]} and {wanted[1]}; use the pipeline that the transformer comes from"
            )

    @abc.abstractmethod
    def vae_channels(self, vae_config: Mapping[str, Any]) -> int | None:
        """Latent channels of a VAE's config, None if it does not say."""

    @abc.abstractmethod
    def decoding_bytes(self, vae_config: Mapping[str, Any], frames: int, pixels: int) -> int | None:
        """Bytes of the widest tensor while a VAE decodes a video, None if they are unknown.

        Args:
            vae_config: config of the VAE.
            frames: number of frames of the video.
            pixels: number of pixels of each frame.
        """

    # -- cost ----------------------------------------------------------------------------------------------------------

    @abc.abstractmethod
    def other_flops(self, config: Mapping[str, Any], video_tokens: int, text_tokens: int) -> dict[str, int]:
        """FLOPs of one step of one sample outside the routed self-attention and the routers, by part.

        The parts, and what is counted, are those of `transformer_flops.other_flops`.
        """

    @abc.abstractmethod
    def feed_forward_width(self, config: Mapping[str, Any]) -> int:
        """Hidden channels of a block's feed forward, for estimates of memory."""

    @abc.abstractmethod
    def dense_attentions(self, config: Mapping[str, Any]) -> tuple[int, str]:
        """The most attention operators that an exported graph has beside the routed ones, and what they are."""

    @abc.abstractmethod
    def compared_modules(self, config: Mapping[str, Any]) -> list[str]:
        """Submodules that a verification compares to find where two runs depart, in the order of execution."""

    # -- step caching --------------------------------------------------------------------------------------------------

    def tea_cache_models(self) -> tuple[str, ...]:
        """The published names of checkpoints with TeaCache coefficients."""
        return ()

    def tea_cache_model(self, checkpoint: str | None, layers: int, heads: int) -> str | None:
        """Which of `tea_cache_models` a model is, None if it is not known to be one.

        Only a folder's name says which weights it holds: the configs of a fine-tuned or distilled model, and of another
        release of the same size, are the same. So the name must be the published one, with or without "-Diffusers"; for
        any other name, the user must say which model it is.

        Args:
            checkpoint: name of the checkpoint's folder, None if the model came from none.
            layers: L of the model.
            heads: N of the model.
        """
        name = (checkpoint or "").lower().removesuffix("-diffusers")
        return next((model for model in self.tea_cache_models() if model.lower() == name), None)

    def tea_cache(self, model: str, signal: str) -> PublishedTeaCache | None:
        """The published numbers for a checkpoint of `tea_cache_models` and a signal; None if there are none."""
        return None


def linear_flops(rows: int, inputs: int, outputs: int) -> int:
    """FLOPs of [rows, inputs] x [inputs, outputs]."""
    return 2 * rows * inputs * outputs


def attention_flops(queries: int, keys: int, dim: int) -> int:
    """FLOPs of Q K^T and P V over all heads, `dim` = N * D."""
    return 4 * queries * keys * dim


def mlp_flops(rows: int, inputs: int, hidden: int, outputs: int) -> int:
    """FLOPs of two linear layers."""
    return linear_flops(rows, inputs, hidden) + linear_flops(rows, hidden, outputs)


def volume(shape: Shape) -> int:
    """Voxels of a patch."""
    return math.prod(shape)
