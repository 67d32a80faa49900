# SPDX-License-Identifier: Apache-2.0
"""The stages of generation: encode, condition, denoise, and (in `decoding`) decode. `Parts` loads the parts they need.

A stage does the same whether its parts stay loaded or are freed afterwards. The stages run the code of diffusers' own
pipeline, so they give the same samples: its `encode_prompt` encodes, its `__call__` denoises from the embeddings to
latents, and its VAE decodes the latents. The condition stage encodes images, for models that take some; the results are
replayed while the pipeline denoises, see `recorded`.

Letters: C latent channels, F, H, W frames, height, width, of latents or of the video.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from vorta_trt.model.errors import CheckpointError
from vorta_trt.model.families import get_family
from vorta_trt.model.families.parts import VAE_DECODER, VAE_ENCODER
from vorta_trt.model.families.training import training_family
from vorta_trt.model.images import Images
from vorta_trt.model.model_index import ModelIndex
from vorta_trt.model.pipeline_folder import (
    check_pipeline,
    component_class,
    empty_part,
    load_part,
    load_pipeline,
    vae_config,
)
from vorta_trt.model.precision import PRECISIONS, torch_dtype
from vorta_trt.plugins.errors import VortaError
from vorta_trt.runtime.parallel.ranks import Ranks
from vorta_trt.runtime.pipelines.compiled_vae import compiled_decoder
from vorta_trt.runtime.pipelines.part_engines import PartEngines
from vorta_trt.runtime.pipelines.planned import PlannedRequest
from vorta_trt.runtime.pipelines.planner import RequestPlanner
from vorta_trt.runtime.pipelines.recorded import Recorded, StandIn
from vorta_trt.runtime.pipelines.residency import CPU, ResidencyChoice
from vorta_trt.runtime.pipelines.transformers import Transformers, Turns
from vorta_trt.runtime.sampling.params import GuidanceMode, SamplingParams

VAE = ("vae",)
PROMPT_LENGTH = "prompt length"  # a kind of fallback
PURPOSE = "generation"  # named in errors as what needs the pipeline folder
OnStage = Callable[[str, int, int], None]  # (what is being done, how much of it is done, total; 0: unknown)
OnStep = Callable[[int, int, PlannedRequest], None]  # (number of the video, number of the step that begins, the plan)
Conditions = dict[str, Tensor]  # tensors [1, ...], by the name of the pipeline's argument


class Parts:
    """Text encoders, transformer and VAE; each is loaded at least while its stage runs.

    Args:
        planner: Planner of the model. Its pipeline folder is checked, and nothing is loaded yet.
        transformers: The transformers of the model, which are loaded when they are needed.
        vae_tiling: Whether to decode in tiles; None does so for the families that need it.
        engine: Executor and device of the engines of VAE and text encoders, if the source has some.
        compile_vae: Whether to decode with a compiled VAE; see `compiled_vae`.
        ranks: The ranks that make the same videos together; None for one process.
        vae_precision: Precision of a VAE in torch. None takes the family's on a GPU, and float32 on the CPU.

    Raises:
        CheckpointError: The folder is not the model's pipeline.
        FileNotFoundError: There is no such folder.
        ValueError: An option of the VAE was fixed when its engines were made, or the precision is unknown.

    Attributes:
        planner: Planner of the videos' size; the pipeline replaces it when the size changes.
        choice: The residency, which decides what stays loaded; set it before anything is loaded.
        kind: The kind of diffusers pipeline that runs; set it before a request.
        transformers: The transformers of the model.
        ranks: The ranks that make the same videos together; None for one process.
        on_stage: Called with what is being loaded.
    """

    choice: ResidencyChoice

    def __init__(
        self,
        planner: RequestPlanner,
        transformers: Transformers,
        vae_tiling: bool | None,
        engine: Mapping[str, Any] = MappingProxyType({}),
        compile_vae: bool = False,
        ranks: Ranks | None = None,
        vae_precision: str | None = None,
    ) -> None:
        self.planner, self.transformers, self.ranks = planner, transformers, ranks
        self._family = get_family(planner.family)
        self._folder = planner.require_checkpoint()
        self._tiled = self._family.tiled_vae if vae_tiling is None else vae_tiling
        self.engines = PartEngines(planner.source, planner.family, planner.config, engine)
        if vae_tiling is not None and VAE_DECODER in self.engines.parts:
            raise ValueError(
                f"vae_tiling: how {planner.name} decodes was fixed when its VAE was exported; leave it out"
            )
        if compile_vae and VAE_DECODER in self.engines.parts:
            raise ValueError(f"compile_vae: {planner.name} decodes with engines of its own; leave it out")
        if compile_vae and self._family.parts_class is None:
            raise ValueError(f"compile_vae: the VAE of {self._family} is not cut into graphs yet; leave it out")
        if compile_vae and self._tiled != self._family.tiled_vae:
            how = "in tiles" if self._family.tiled_vae else "whole frames"
            raise ValueError(f"vae_tiling {vae_tiling}: a compiled VAE of {self._family} decodes {how}; leave it out")
        self._compile_vae = compile_vae
        if vae_precision not in (None, *PRECISIONS):
            raise ValueError(f"vae_precision {vae_precision!r}: must be one of {', '.join(PRECISIONS)}")
        if vae_precision is not None and {VAE_DECODER, VAE_ENCODER} & self.engines.parts:
            raise ValueError(
                f"vae_precision: that of the VAE of {planner.name} was fixed when it was exported; leave it out"
            )
        self._vae_precision = vae_precision
        kinds = self._family.pipeline_kinds(planner.config)
        encodes = {name: any(name in kind.conditioners for kind in kinds) for name in kinds[0].components}
        self._weightless = self.engines.covers(encodes)
        self._index = check_pipeline(
            self._folder,
            self._family,
            planner.config,
            purpose=PURPOSE,
            variant=planner.variant,
            weightless=self._weightless,
        )
        self._check(self._index)
        self.kind = self._family.pipeline_kinds(planner.config)[0]
        self._kept: dict[str, Any] = {}  # components that stay loaded: all if resident, otherwise the tokenizers
        self._pipelines: dict[tuple[Any, ...], Any] = {}  # if resident, the pipeline of each stage
        self.on_stage: OnStage = lambda *_: None
        transformers.on_load = lambda: self.on_stage("loading the engine", 0, 0)

    def load(self) -> None:
        """Loads all parts; for resident pipelines."""
        device = self.transformers.load()
        self._get((), device)
        if self.choice.cpu_offload and device.type != "cuda":
            raise VortaError(f"cpu_offload: there is no GPU to keep free, the model runs on the {device}; leave it out")
        if self.choice.cpu_offload and self._compile_vae:
            raise VortaError(
                f"compile_vae: a compiled VAE stays on the GPU, and it is to leave ({self.choice.reason}); leave it out"
            )
        for names in (self._encoders if self.encodes_text else (), self.kind.conditioners, VAE):
            pipeline = self._get(names, device)
            if not self.choice.cpu_offload:
                _move(pipeline, names, device)

    def free(self) -> None:
        """Frees unreferenced objects between two stages, and torch's cached blocks, which TensorRT cannot use."""
        if self.choice.is_sequential or self.choice.cpu_offload:
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()

    @property
    def waiting(self) -> torch.device | None:
        """The device to which tensors move between the stages; None leaves them where they are."""
        return CPU if self.choice.is_sequential else None

    @property
    def encodes_text(self) -> bool:
        """Whether this process encodes texts. Of several ranks, only rank 0 does."""
        return self.ranks is None or self.ranks.world.is_first

    def tokenizing(self, tokenizers: tuple[str, ...]) -> Any:
        """A pipeline of diffusers with these tokenizers alone. They stay loaded, and `encoding` uses them again."""
        pipeline = self._get(tokenizers, self.transformers.device or self.choice.encoders)
        self._kept.update({name: getattr(pipeline, name) for name in tokenizers})
        return pipeline

    @contextmanager
    def encoding(self) -> Iterator[tuple[Any, torch.device]]:
        """Yields a pipeline of diffusers with text encoders and tokenizers, and the device they run on."""
        device = self.transformers.device or self.choice.encoders
        with self._pipeline(self._encoders, device) as pipeline:
            yield pipeline, device

    @contextmanager
    def conditioning(self) -> Iterator[tuple[Any, torch.device]]:
        """Yields a pipeline of diffusers with the components that encode images, and the device they run on."""
        device = self.transformers.device or self.choice.device
        with self._pipeline(self.kind.conditioners, device) as pipeline:
            yield pipeline, device

    @contextmanager
    def denoising(self, encoded: Mapping[str, Any] = MappingProxyType({})) -> Iterator[tuple[Any, torch.device]]:
        """Yields a pipeline of diffusers without other parts than transformers, and the device they run on.

        `Turns` puts the transformers into the pipeline.

        Args:
            encoded: Stand-ins, by name, for the components that have encoded images.
        """
        try:
            device = self.transformers.load()
            with self._pipeline((), device) as pipeline, _exchanged(pipeline, encoded):
                yield pipeline, device
        finally:
            if self.choice.is_sequential:
                self.close()

    @contextmanager
    def decoding(self) -> Iterator[tuple[Any, torch.device]]:
        """Yields a pipeline of diffusers with the VAE, and the device it runs on."""
        device = self.transformers.device or self.choice.device
        with self._pipeline(VAE, device) as pipeline:
            yield pipeline, device

    def decodes_whole(self, vae: Any) -> bool:
        """Whether a VAE runs in torch, neither compiled nor in tiles."""
        return isinstance(vae, torch.nn.Module) and not self._tiled

    @property
    def decodes_chunks(self) -> bool:
        """Whether the VAE calls its decoder once for every chunk of frames, in torch or with an engine."""
        return self._family.vae_decodes_chunks and not self._tiled

    def decodes_tiles(self, vae: Any) -> bool:
        """Whether a VAE runs in torch and its decoder is called once for each tile."""
        return isinstance(vae, torch.nn.Module) and self._tiled and not self._family.vae_decodes_chunks

    def close(self) -> None:
        """Frees the engines. Text encoders and VAE in torch are freed with this object. May be called twice."""
        self.transformers.close()
        self.engines.close()

    @contextmanager
    def _pipeline(self, names: tuple[str, ...], device: torch.device) -> Iterator[Any]:
        """Yields the pipeline with these components, which are moved to the device."""
        pipeline = self._get(names, device)
        _move(pipeline, names, device)
        try:
            yield pipeline
        finally:
            if self.choice.cpu_offload:
                _move(pipeline, names, CPU)
            if self.choice.is_sequential or self.choice.cpu_offload:
                self.engines.close()

    @property
    def _encoders(self) -> tuple[str, ...]:
        return tuple(name for name in self.kind.components if name not in (*self.kind.conditioners, *VAE))

    def _get(self, names: tuple[str, ...], device: torch.device) -> Any:
        """The pipeline with these components; those that are not loaded yet are loaded, none is moved."""
        of_size = bool(self.engines.parts) or self._compile_vae  # compiled graphs and engines have fixed shapes
        key = self.kind.pipeline, names, *((str(self.planner.size),) if of_size else ())
        pipeline = self._pipelines.get(key)
        if pipeline is None:
            if missing := [name for name in names if name not in self._kept]:
                self.on_stage(f"loading the {_what(missing)}", 0, 0)
            pipeline = self._load(names, device)
            if not self.choice.is_sequential:
                self._pipelines[key] = pipeline
                parts = {name: getattr(pipeline, name) for name in names}
                self._kept.update({name: part for name, part in parts.items() if not isinstance(part, StandIn)})
        return pipeline

    def _load(self, names: Sequence[str], device: torch.device) -> Any:
        """Loads a pipeline with these components on the CPU. The device decides every precision that was not chosen."""
        family = self._family
        encoders, vae = (
            torch_dtype(dtype) if device.type == "cuda" else torch.float32
            for dtype in (family.encoder_dtype, family.vae_dtype)
        )
        if self._vae_precision is not None:
            vae = torch_dtype(self._vae_precision)
        kept = {} if self._compile_vae and names == VAE else self._kept  # compiling uses a VAE up
        parts = {name: kept[name] for name in names if name in kept}
        encodes = names == self.kind.conditioners
        for name in names:
            if (part := self.engines.part_of(name, encodes=encodes)) is not None:
                empty = empty_part(self._index, name, self._folder)
                parts[name] = self.engines.component(part, empty, self.planner.size, device)
        if "vae" not in names:  # the pipeline still reads compression and channels from the VAE
            parts["vae"] = StandIn(empty_part(self._index, "vae", self._folder), vae, device)
        pipeline = load_pipeline(
            self._folder,
            family,
            self.planner.config,
            encoders,
            purpose=PURPOSE,
            kind=self.kind,
            parts=parts,
            without=[name for name in self.kind.components if name not in names],
            variant=self.planner.variant,
            weightless=self._weightless,
        )
        if "vae" in names and "vae" not in parts:
            # diffusers' `to` warns of modules to keep, even if there are none
            torch.nn.Module.to(pipeline.vae, vae)
            if self._tiled:
                pipeline.vae.enable_tiling()
            if self._compile_vae and names == VAE:
                where = self.planner.family, self.planner.config, self.planner.size, device
                pipeline.vae = compiled_decoder(pipeline.vae, *where)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def _check(self, index: ModelIndex) -> None:
        """Raises CheckpointError unless text encoders and VAE have the widths that the transformer takes."""
        config, family = self.planner.config, self._family
        encoder = load_part(
            component_class(index, "text_encoder", self._folder).config_class, self._folder / "text_encoder", {}
        )
        found = {
            "VAE channels": family.vae_channels(vae_config(index, family, config, self._folder)),
            "text encoder's width": getattr(encoder, "text_config", encoder).hidden_size,
        }
        wanted = {"VAE channels": family.latent_channels(config), "text encoder's width": config[family.text_width]}
        for what, value in wanted.items():
            if found[what] not in (value, None):
                raise CheckpointError(
                    f"checkpoint {self._folder}: {what} {found[what]}, but {self.planner.name} takes {value}; give "
                    f"the pipeline folder that it was made from"
                )


@contextmanager
def _exchanged(pipeline: Any, parts: Mapping[str, Any]) -> Iterator[None]:
    """Replaces components of a pipeline inside the block."""
    before = {name: getattr(pipeline, name) for name in parts}
    try:
        for name, part in parts.items():
            setattr(pipeline, name, part)
        yield
    finally:
        for name, part in before.items():
            setattr(pipeline, name, part)


def _what(names: Sequence[str]) -> str:
    """Names components in words."""
    words = {"text_encoder": "text encoder", "vae": "VAE", "image_encoder": "image encoder"}
    return " and ".join(word for name, word in words.items() if name in names) or names[0]


def _move(pipeline: Any, names: Sequence[str], device: torch.device) -> None:
    for name in names:
        if isinstance(part := getattr(pipeline, name), torch.nn.Module):
            torch.nn.Module.to(part, device)


# -- the stages --------------------------------------------------------------------------------------------------------


def tell_cut(prompts: Sequence[str], negative: str | None, parts: Parts) -> dict[str | None, str]:
    """Finds the texts with more tokens than the model takes; records one fallback, before anything is encoded.

    Args:
        prompts: The prompts, without repetition.
        negative: The negative prompt; None without guidance.
        parts: The parts of the pipeline, whose tokenizers count the tokens.

    Returns:
        For each text that is too long, what to tell the user, by the prompt; the key None is for the negative prompt.

    Raises:
        FallbackError: A text is too long, in strict mode.
    """
    family = training_family(parts.planner.family, parts.planner.config)
    pipeline = parts.tokenizing(family.tokenizers)
    texts: list[tuple[str | None, str, str]] = [
        (text, text, "the prompt" if len(prompts) == 1 else f"prompt {number} of {len(prompts)}")
        for number, text in enumerate(prompts, 1)
    ]
    if negative is not None:
        texts.append((None, negative, "the negative prompt"))
    cut: dict[str | None, str] = {}
    for key, text, name in texts:
        if long := [count for count in family.token_counts(pipeline, text) if count.tokens > count.taken]:
            cut[key] = "; ".join(f"{name} has {count}" for count in long)
    if cut:
        of_several = f" (the first of {len(cut)} such texts)" if len(cut) > 1 else ""
        parts.transformers.fallbacks.record(PROMPT_LENGTH, next(iter(cut.values())) + of_several)
    return {key: f"{PROMPT_LENGTH}: {reason}" for key, reason in cut.items()}


@torch.no_grad()
def encode(
    prompts: Sequence[str], negative: str | None, images: Images, parts: Parts
) -> tuple[dict[str, Conditions], Conditions]:
    """Encodes each prompt, and the negative prompt of guidance.

    Args:
        prompts: The prompts, without repetition.
        negative: The negative prompt; None without guidance.
        images: The images of the request, for text encoders that take them.
        parts: The parts of the pipeline that run it.

    Returns:
        The conditions of each prompt, and those of the negative prompt (empty without guidance).
    """
    family = training_family(parts.planner.family, parts.planner.config)
    encoded: dict[str, Conditions] = {}
    against: Conditions = {}
    count = len(prompts) + (negative is not None)
    with parts.encoding() as (pipeline, device):
        for number, text in enumerate(prompts):
            parts.on_stage("encoding prompts", number, count)
            tensors = family.encode_caption(pipeline, text, device, images or None)
            encoded[text] = {name: tensor[None].to(parts.waiting or device) for name, tensor in tensors.items()}
        if negative is not None:
            parts.on_stage("encoding prompts", len(prompts), count)
            tensors = family.encode_negative(pipeline, negative, device, images or None)
            against = {name: tensor[None].to(parts.waiting or device) for name, tensor in tensors.items()}
    return encoded, against


@torch.no_grad()
def condition(images: Images, parts: Parts) -> dict[str, Any]:
    """Encodes a request's images; returns stand-ins for VAE and image encoders by name, see `Parts.denoising`."""
    if not images:
        return {}
    family = training_family(parts.planner.family, parts.planner.config)
    with parts.conditioning() as (pipeline, device):
        parts.on_stage("encoding the image", 0, 0)
        loaded = {name: getattr(pipeline, name) for name in parts.kind.conditioners}
        encoded = {
            name: Recorded(part, device) if isinstance(part, torch.nn.Module | StandIn) else part
            for name, part in loaded.items()
        }
        with _exchanged(pipeline, encoded):
            family.condition(pipeline, images, parts.planner.size, device)
    for part in encoded.values():
        if isinstance(part, Recorded):
            part.release(parts.waiting)
    return encoded


@dataclass(frozen=True)
class Sampling:
    """How the videos of one request are denoised.

    Attributes:
        params: Sampling parameters of the request.
        planned: Schedule and steps.
        noise: Returns the generator of a video's noise, given the video's number.
        images: The images that every video begins or ends with.
        locate: See `VortaTransformer.request`.
        on_step: Called as every step begins; may raise to stop.
    """

    params: SamplingParams
    planned: PlannedRequest
    noise: Callable[[int], torch.Generator]
    images: Images = field(default_factory=dict)
    locate: bool | None = None
    on_step: OnStep | None = None


@dataclass(frozen=True, eq=False)
class Denoised:
    """The denoised latents of one video, and how they were made.

    Attributes:
        latents: Latents [1, C, F, H, W].
        launches: Number of launches of the transformer.
        seconds: Wall-clock seconds of denoising.
        fallbacks: In words, what ran otherwise than asked for.
    """

    latents: Tensor
    launches: int
    seconds: float
    fallbacks: tuple[str, ...]


def denoise(
    conditions: Sequence[Conditions], encoded: Mapping[str, Any], first: int, sampling: Sampling, parts: Parts
) -> list[Denoised]:
    """Samples the latents of each video.

    Args:
        conditions: Encoded texts of each video.
        encoded: The stand-ins that `condition` returned.
        first: Number of the first video, for `on_step`.
        sampling: How the videos are denoised.
        parts: The parts of the pipeline that run it.
    """
    planner, planned, on_step = parts.planner, sampling.planned, sampling.on_step
    family = get_family(planner.family)
    frames, height, width = planner.size
    scheduler = planned.schedule.instance
    arguments = {**planner.guidance(sampling.params).arguments, "num_frames": frames, "height": height, "width": width}
    arguments["negative_prompt"] = None  # already encoded; some pipelines have a text by default
    denoised = []
    with parts.denoising(encoded) as (pipeline, device):
        pipeline.scheduler = scheduler
        fallbacks = parts.transformers.fallbacks
        for number, tensors in enumerate(conditions, first):
            began, before = time.perf_counter(), dict(fallbacks.counts)
            if any(expert.steps.routes is None for expert in planned.experts):
                fallbacks.record("planned routes", f"{planner.name} does not hold its timestep path")
            noise = sampling.noise(number)
            if hasattr(scheduler, "generator"):
                scheduler.generator = noise
            with Turns(
                pipeline,
                parts.transformers,
                planned,
                guidance=sampling.params.guidance_batching if planned.guided else GuidanceMode.SEQUENTIAL,
                locate=sampling.locate,
                on_step=None if on_step is None else partial(_report, on_step, planned, number),
                ranks=parts.ranks,
            ) as turns:
                latents = family.sample(
                    pipeline,
                    num_inference_steps=len(planned.schedule.timesteps),
                    generator=noise,
                    **{name: tensor.to(device) for name, tensor in tensors.items()},
                    **sampling.images,
                    **arguments,
                    **turns.arguments,
                )
            told = tuple(
                f"{kind}: {count - before.get(kind, 0)} times"
                for kind, count in sorted(fallbacks.counts.items())
                if count > before.get(kind, 0)
            )
            if parts.ranks is not None:
                parts.ranks.compare(latents, f"latents of video {number} after the last step")
            latents = latents.to(parts.waiting or latents.device)
            denoised.append(Denoised(latents, turns.launches, time.perf_counter() - began, told))
    return denoised


def _report(on_step: OnStep, planned: PlannedRequest, number: int, step: int) -> None:
    on_step(number, step, planned)
