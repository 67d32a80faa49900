# SPDX-License-Identifier: Apache-2.0
"""`VortaPipeline`: makes videos from prompts, for any number of requests, with everything loaded once.

    with VortaPipeline.from_pretrained("model.bundle", "CHECKPOINT") as pipe:
        pipe("A cat walks on grass", num_inference_steps=30, seed=1).save("cat.mp4")

Every video goes through the same stages, see `stages`: encode, condition, denoise, decode. The `residency` decides what
is freed between them.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from vorta_trt.export.onnx_file import data_file
from vorta_trt.model.images import ImageLike
from vorta_trt.model.transformer import RoutedTransformer
from vorta_trt.model.video_size import VideoSize
from vorta_trt.runtime.device.device_scratch import DeviceScratch
from vorta_trt.runtime.fallbacks import Fallbacks
from vorta_trt.runtime.parallel.ranks import Ranks
from vorta_trt.runtime.pipelines.decoding import OnFrames, decode
from vorta_trt.runtime.pipelines.denoiser import EngineDenoiser
from vorta_trt.runtime.pipelines.experts import BUNDLED, Expert, Override, Source
from vorta_trt.runtime.pipelines.planned import PlannedRequest
from vorta_trt.runtime.pipelines.planner import RequestPlanner
from vorta_trt.runtime.pipelines.residency import (
    Residency,
    check_same_residency,
    choose_residency,
    fits_beside,
)
from vorta_trt.runtime.pipelines.stages import (
    Conditions,
    OnStage,
    OnStep,
    Parts,
    Sampling,
    condition,
    denoise,
    encode,
    tell_cut,
)
from vorta_trt.runtime.pipelines.transformer import VortaTransformer
from vorta_trt.runtime.pipelines.transformers import Transformers
from vorta_trt.runtime.sampling.params import SamplingParams
from vorta_trt.runtime.target import read_target
from vorta_trt.runtime.video_file import write_frames

_MODELS = (RoutedTransformer, tuple)  # types of sources that are already loaded
MOST_TOGETHER = 32  # largest number of videos whose conditions and latents stay in memory between two stages
BUDGET = "weight_streaming_budget"
StepReport = Callable[[int, PlannedRequest], None]  # (number of the step that begins, its plan)
OnVideo = Callable[[int, "GeneratedVideo"], None]  # (number of the prompt, its video)


@dataclass(frozen=True, eq=False)
class GeneratedVideo:
    """A video and how it was made.

    Attributes:
        frames: Frames of the video, RGB, uint8 [F, H, W, 3].
        frames_per_second: Frames per second of the model family's videos.
        prompt: The prompt of the video.
        seed: The seed of the noise; with it, the same prompt and parameters give the same video again.
        planned: Schedule and steps.
        launches: Number of launches of the transformer.
        seconds: Wall-clock seconds of encoding, denoising and decoding. Encoding several prompts together counts in
            equal shares.
        fallbacks: In words, what ran otherwise than asked for.
        stage_seconds: Wall-clock seconds of each stage: "text", "condition" (with images), "denoise", "decode".
    """

    frames: npt.NDArray[np.uint8]
    frames_per_second: float
    prompt: str
    seed: int
    planned: PlannedRequest
    launches: int
    seconds: float
    fallbacks: tuple[str, ...]
    stage_seconds: Mapping[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The video's data for JSON, without the frames; the plan is reduced to its numbers of steps."""
        computed, steps = self.planned.steps.computed_steps, len(self.planned.steps.compute)
        frames, height, width, _ = self.frames.shape
        return {
            "prompt": self.prompt,
            "seed": self.seed,
            "size": [frames, height, width],
            "steps": steps,
            "reused_steps": steps - computed,
            "launches": self.launches,
            "seconds": self.seconds,
            "fallbacks": list(self.fallbacks),
        }

    def save(self, path: str | Path, frames_per_second: float | None = None) -> Path:
        """Writes .mp4, .mkv or .mov (H.264), or .npy with the unencoded frames; never leaves a partial file."""
        rate = self.frames_per_second if frames_per_second is None else frames_per_second
        return write_frames(Path(path), self.frames, rate)


class VortaPipeline:
    """A pipeline that is loaded once, or stage by stage in every request where it does not fit into the memory.

    A lock makes requests of one pipeline run one after the other, whichever thread they come from. No state of a
    request is left in the next. For concurrent requests, make one pipeline for each.

    Args:
        planner: Planner of the model; `from_pretrained` makes it.
        residency: "resident", "sequential", or "auto", which asks the memory plan; see `residency`.
        executor: Name of the executor, as for `Engine`. A routed model in torch runs on the device that it is on. Text
            encoders and VAE go to the transformer's device.
        device: Device of the engines, as for `Engine`.
        verify: Whether to check the hashes of a bundle's files, as for `Engine`.
        engine: Further options of `Engine`, e.g. {"weight_streaming_budget": "auto"}.
        strict: Whether anything that would run otherwise than asked for is an error.
        cpu_offload: Whether text encoders and VAE are on the GPU only while they are used.
        vae_tiling: Whether to decode in tiles, which takes less memory; None does so for families that need it.
        compile_vae: Whether to compile the decoder of a VAE that runs in torch. The first video then takes longer,
            later ones less.
        vae_precision: Type that a VAE in torch computes in: "fp32", "fp16" or "bf16". None takes the family's on a GPU,
            and float32 on the CPU.
        ranks: Other processes, each with such a pipeline, that make every video together with this one. All of them
            must get the same requests, and all get the videos. See `parallel`.

    Raises:
        CheckpointError: The folder is not the model's pipeline.
        VortaError: Whatever `Engine` raises.

    Attributes:
        planner: See `RequestPlanner`.
        ranks: The ranks that make the videos together; None for one process.
        fallbacks: The fallbacks of all requests of this pipeline.
        residency: The `ResidencyChoice`: what is freed between the stages.
        parts: Text encoders, transformer and VAE.
        executor: Name of what runs the transformer: "tensorrt", "onnxruntime", "reference" or "torch"; None until it is
            loaded.
        is_over: Whether the pipeline makes no more videos, such as a `GroupPipeline` whose processes have ended.
    """

    is_over = False

    def __init__(
        self,
        planner: RequestPlanner,
        *,
        residency: Residency | str = Residency.AUTO,
        executor: str | None = None,
        device: str | int | None = None,
        verify: bool = True,
        engine: Mapping[str, Any] | None = None,
        strict: bool = False,
        cpu_offload: bool = False,
        vae_tiling: bool | None = None,
        compile_vae: bool = False,
        vae_precision: str | None = None,
        ranks: Ranks | None = None,
    ) -> None:
        self.planner, self.ranks = planner, ranks
        self.fallbacks = Fallbacks(strict)
        self.executor: str | None = None
        self._lock = threading.Lock()
        self._planned: tuple[SamplingParams, RequestPlanner, PlannedRequest] | None = None
        self._engine = {"executor": executor, "device": device, **(engine or {})}
        self._verify = verify
        components = [expert.component for expert in planner.experts]
        own = str(VideoSize(*planner.size))
        self.transformers = Transformers(components, self._open, self._files_of, self.fallbacks, own)
        self._scratch: DeviceScratch | None = None
        self.transformers.on_free = self._free_shared
        where = {"executor": executor, "device": device}
        # Checks the pipeline folder before an engine is loaded.
        self.parts = Parts(planner, self.transformers, vae_tiling, where, compile_vae, ranks, vae_precision)
        self.residency = self.parts.choice = choose_residency(
            Residency(residency),
            planner.source,
            planner.require_checkpoint(),
            size=max(planner.sizes, key=_pixels),  # what fits at the largest size fits at all
            executor=executor,
            device=device,
            cpu_offload=cpu_offload,
            stream_weights=self._engine.get(BUDGET) is not None,
            vae_precision=vae_precision,
            compile_vae=compile_vae,
        )
        if ranks is not None:
            check_same_residency(ranks.world.gather(self.residency))
        self.transformers.in_turn = self.residency.in_turn
        if self.residency.stream_weights and self._engine.get(BUDGET) is None:
            self._engine[BUDGET] = "auto"
        if not self.residency.is_sequential:
            try:
                self.parts.load()
            except BaseException:
                self.close()
                raise

    @classmethod
    def from_pretrained(
        cls,
        source: Source,
        checkpoint: str | Path | None = None,
        *,
        route_override: Override | Mapping[str, Override] = BUNDLED,
        variant: str | None = None,
        size: str | VideoSize | None = None,
        **options: Any,
    ) -> VortaPipeline:
        """Loads a bundle, an exported ONNX file, or a routed model in torch; with two experts, both of them.

        Args:
            source: See `RequestPlanner`.
            checkpoint: The diffusers pipeline folder; see `RequestPlanner`.
            route_override: Calibrated routes; see `RequestPlanner`.
            variant: Variant of the pipeline folder's weight files; see `RequestPlanner`.
            size: The video size of requests that do not choose one, for a bundle of several sizes; see
                `RequestPlanner`.
            options: Further arguments of the class.
        """
        planner = RequestPlanner(source, checkpoint, route_override=route_override, variant=variant, size=size)
        return cls(planner, **options)

    def plan(self, params: SamplingParams, size: str | VideoSize | None = None) -> PlannedRequest:
        """`RequestPlanner.plan` for a size of the bundle; the plan of the last call is kept for the same arguments."""
        planner = self.planner.at(size)
        planned = self._planned  # read once, since other threads may plan meanwhile
        if planned is None or planned[:2] != (params, planner):
            planned = self._planned = params, planner, planner.plan(params)
        return planned[2]

    def __call__(
        self,
        prompt: str,
        params: SamplingParams | None = None,
        *,
        on_step: StepReport | None = None,
        **options: Any,
    ) -> GeneratedVideo:
        """Makes one video. For several prompts, one call of `generate_each` is faster.

        Args:
            prompt: What the video shows.
            params: How to sample.
            on_step: Called as every step begins; may raise to stop the request.
            options: Further arguments of `generate_each`, including all fields of `SamplingParams` by name.
        """
        videos: list[GeneratedVideo] = []
        report = None if on_step is None else lambda _, step, planned: on_step(step, planned)
        self.generate_each([prompt], lambda _, video: videos.append(video), params, on_step=report, **options)
        return videos[0]

    def generate_each(
        self,
        prompts: Sequence[str],
        on_video: OnVideo,
        params: SamplingParams | None = None,
        *,
        size: str | VideoSize | None = None,
        image: ImageLike | None = None,
        last_image: ImageLike | None = None,
        generator: torch.Generator | None = None,
        seeds: Sequence[int] | None = None,
        locate: bool | None = None,
        on_step: OnStep | None = None,
        on_stage: OnStage | None = None,
        on_frames: OnFrames | None = None,
        **changes: Any,
    ) -> None:
        """Makes a video for every prompt. With sequential residency, the engine is opened once per 32 prompts.

        After any error the pipeline is ready for the next request.

        Args:
            prompts: What the videos show.
            on_video: Called with the number of a prompt and its video as soon as the video is decoded. It must not call
                this pipeline.
            params: How to sample. Its seed is used for every video.
            size: Size of the videos, as "81x480x832", for a bundle of several sizes. None takes the size whose aspect
                ratio is closest to that of the image, or without an image the pipeline's own.
            image: The image that every video begins with, for models that take one: a file, or an image of PIL.
            last_image: The image that every video ends with, for models that take one.
            generator: Generator of the noise, instead of a seed.
            seeds: Seeds, one for each video, instead of one for all.
            locate: See `VortaTransformer.request`.
            on_step: Called as every step begins.
            on_stage: Called with the name and progress of the other stages.
            on_frames: Called with the number of a prompt and the next frames of its video, uint8 [F, H, W, 3], in
                order, while later frames are decoded. All four callbacks may raise to stop the request.
            changes: Parameters to change in `params`, by name: `num_inference_steps=30`, `seed=1`, `dense_first=2`, ...

        Raises:
            ValueError: There is no prompt, or parameters or images do not suit the model.
            NonFiniteError: A sample is not finite. The error names the step and, if it was looked for, the layer.
            FallbackError: Something would run otherwise than asked for, in strict mode.
        """
        if isinstance(prompts, str) or not prompts or not all(isinstance(prompt, str) for prompt in prompts):
            raise ValueError(f"prompts {prompts!r}: must be a list of strings, and must hold at least one")
        if params is not None and not isinstance(params, SamplingParams):
            raise ValueError(f"params {params!r}: must be SamplingParams; give its fields by name, e.g. seed=1")
        if generator is not None and not isinstance(generator, torch.Generator):
            raise ValueError(
                f"generator {generator!r}: must be a torch.Generator, which serves all videos; or give seed, a number"
            )
        params = (params or SamplingParams()).updated(**changes)
        for text in (*prompts, params.negative_prompt or ""):
            if any("\ud800" <= letter <= "\udfff" for letter in text):
                raise ValueError(f"prompt {ascii(text)}: has half of a surrogate pair, so it is no text; write it anew")
        if generator is not None and params.seed is not None:
            raise ValueError(f"seed {params.seed}: the generator has one of its own; give one of them")
        if seeds is not None and (len(seeds) != len(prompts) or generator is not None or params.seed is not None):
            raise ValueError(
                f"seeds: {len(seeds)} of them; must be one for each of {len(prompts)} prompts, in the place of a seed "
                f"and a generator"
            )
        arguments = {"image": image, "last_image": last_image}
        given = {name: one for name, one in arguments.items() if one is not None}
        planner = self.planner.for_images(given) if size is None else self.planner.at(size)
        kind, images = planner.read_images(given)
        with self._lock:
            self._use(planner)
            seed = secrets.randbits(32) if params.seed is None else params.seed
            planned = self.plan(params, VideoSize(*planner.size))
            noise = _noise(seeds or [seed] * len(prompts), generator)
            sampling = Sampling(params, planned, noise, images, locate, self._together(on_step))
            request = {"params": params.updated(seed=None), "seeds": seeds or [seed] * len(prompts), "locate": locate}
            self.parts.kind = kind
            self.parts.on_stage = on_stage or (lambda *_: None)
            cut = self._tell_cut(prompts, sampling)
            self._announce(prompts, size=VideoSize(*planner.size), **request, **given)
            # Parts that are freed between the stages are loaded once for several prompts.
            together = min(len(prompts), MOST_TOGETHER) if self.residency.is_sequential else 1
            for first in range(0, len(prompts), together):
                videos = self._videos(prompts[first : first + together], first, sampling, cut, on_frames)
                for number, video in enumerate(videos, first):
                    on_video(number, video)

    def _announce(self, prompts: Sequence[str], **request: Any) -> None:
        """Called with a checked request before it runs. A pipeline of several processes sends it to the others."""

    def _together(self, on_step: OnStep | None) -> OnStep | None:
        """The callback for the beginning of a step. With several ranks, rank 0 may stop all of them there."""
        ranks = self.ranks
        if ranks is None:
            return on_step

        def step(number: int, step: int, planned: PlannedRequest) -> None:
            stops: BaseException | None = None
            if on_step is not None:
                try:
                    on_step(number, step, planned)
                except BaseException as error:
                    if not ranks.world.is_first:
                        raise
                    stops = error
            ranks.agree(stops)

        return step

    def _videos(
        self,
        prompts: Sequence[str],
        first: int,
        sampling: Sampling,
        cut: Mapping[str | None, str],
        on_frames: OnFrames | None,
    ) -> Iterator[GeneratedVideo]:
        """Runs the stages one after the other; yields each video as soon as it is decoded."""
        began = time.perf_counter()
        conditions = self._conditions(prompts, sampling)
        self.parts.free()
        text = time.perf_counter() - began
        encoded = condition(sampling.images, self.parts)
        self.parts.free()
        encoding = (time.perf_counter() - began) / len(prompts)  # an equal share
        shared = {"text": text / len(prompts)}
        if sampling.images:
            shared["condition"] = encoding - shared["text"]
        denoised = denoise(conditions, encoded, first, sampling, self.parts)
        del conditions, encoded
        self.parts.free()
        began = time.perf_counter()
        latents = [each.latents for each in denoised]
        together = zip(prompts, denoised, decode(latents, self.parts, first, on_frames), strict=True)
        for number, (prompt, each, frames) in enumerate(together, first):
            decoding = time.perf_counter() - began
            yield GeneratedVideo(
                frames,
                self.planner.frames_per_second,
                prompt,
                sampling.noise(number).initial_seed(),
                sampling.planned,
                each.launches,
                encoding + each.seconds + decoding,
                (*(cut[text] for text in (prompt, None) if text in cut), *each.fallbacks),
                {**shared, "denoise": each.seconds, "decode": decoding},
            )
            began = time.perf_counter()
        self.parts.free()

    def _tell_cut(self, prompts: Sequence[str], sampling: Sampling) -> dict[str | None, str]:
        """The result of `tell_cut` in the process that encodes the texts; empty in the others."""
        if not self.parts.encodes_text:
            return {}
        return tell_cut(list(dict.fromkeys(prompts)), _negative(sampling), self.parts)

    def _conditions(self, prompts: Sequence[str], sampling: Sampling) -> list[Conditions]:
        """The encoded texts for each prompt, which the transformer gets; equal prompts are encoded once."""
        made: list[Conditions] = [{} for _ in prompts]
        if self.parts.encodes_text:
            negative = _negative(sampling)
            encoded, against = encode(list(dict.fromkeys(prompts)), negative, sampling.images, self.parts)
            negatives = {f"negative_{name}": tensor for name, tensor in against.items()}
            made = [encoded[prompt] | negatives for prompt in prompts]
        if self.ranks is None:
            return made
        device = self.parts.waiting or self.transformers.device or self.residency.device
        return [self.ranks.from_first(each, device) for each in made]

    def close(self) -> None:
        """Frees the engines. Text encoders and VAE in torch are freed with this object. May be called twice."""
        self.parts.close()

    def __enter__(self) -> VortaPipeline:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _use(self, planner: RequestPlanner) -> None:
        """Sets the video size of the next requests to the planner's; engines of other sizes stay if they fit."""
        if planner is self.parts.planner:
            return
        size, source, device = VideoSize(*planner.size), planner.source, self.transformers.device

        def has_room() -> bool:
            if self.residency.in_turn or self.residency.stream_weights or device is None or isinstance(source, _MODELS):
                return False
            components = [expert.component for expert in planner.experts]
            return fits_beside([read_target(source, component=each, size=size) for each in components], device)

        self.transformers.use(str(size), has_room)
        self.parts.planner = planner

    def _open(self, component: str) -> VortaTransformer:
        source = self._expert(component).source
        if isinstance(source, RoutedTransformer):
            if self.ranks is not None and self.ranks.sharing is not None:
                source.parallelize(self.ranks.sharing, timeout=self.ranks.world.timeout)
            given = {name: value for name, value in self._engine.items() if value is not None}
            transformer = VortaTransformer.from_pretrained(source, fallbacks=self.fallbacks, **given)
        else:
            options = {
                **self._engine,
                **self._shared(),
                "component": component,
                "size": self._size,
                "verify": self._verify,
            }
            transformer = VortaTransformer.from_pretrained(source, fallbacks=self.fallbacks, **options)
            self._verify = False  # the files of both experts are hashed once
        denoiser = transformer.denoiser
        self.executor = denoiser.engine.executor if isinstance(denoiser, EngineDenoiser) else "torch"
        return transformer

    def _shared(self) -> dict[str, Any]:
        """Engine options that let several engines share one activation memory, since they never run concurrently."""
        source = self.planner.source
        if len(self.planner.experts) == len(self.planner.sizes) == 1 or isinstance(source, _MODELS):
            return {}
        if self._engine["executor"] not in (None, "tensorrt") or read_target(source).bundle is None:
            return {}
        self._scratch = self._scratch or DeviceScratch()
        return {"scratch": self._scratch}

    def _free_shared(self) -> None:
        """Frees the shared activation memory together with the engines, since the next stage needs the memory."""
        scratch, self._scratch = self._scratch, None
        if scratch is not None:
            scratch.close()

    def _expert(self, component: str) -> Expert:
        return next(expert for expert in self.parts.planner.experts if expert.component == component)

    @property
    def _size(self) -> VideoSize:
        """Size of the videos of the current request."""
        return VideoSize(*self.parts.planner.size)

    def _files_of(self, component: str) -> list[Path]:
        """The files that are read when a transformer is loaded."""
        source = self._expert(component).source
        if isinstance(source, RoutedTransformer):
            return []
        target = read_target(source, component=component, size=self._size)
        if target.bundle is not None:
            return [path for path in (target.bundle.plan_path, target.bundle.plan_base) if path is not None]
        return [target.path, data_file(target.path)]


def _pixels(size: str) -> int:
    video = VideoSize.parse(size)
    return video.frames * video.height * video.width


def _negative(sampling: Sampling) -> str | None:
    """The text that guidance leads away from; None without guidance."""
    return (sampling.params.negative_prompt or "") if sampling.planned.guided else None


def _noise(seeds: Sequence[int], generator: torch.Generator | None) -> Callable[[int], torch.Generator]:
    """A function from a video's number to its generator: the caller's, or a new one with the video's seed."""
    if generator is not None:
        return lambda number: generator
    return lambda number: torch.Generator().manual_seed(seeds[number])
