# SPDX-License-Identifier: Apache-2.0
"""`VideoGenerator`: from prompts to videos, as often as you like, with everything loaded once.

    with VideoGenerator("model.bundle", "CHECKPOINT") as generator:
        generator.generate("A cat walks on grass", seed=1).save("cat.mp4")

What samples is diffusers' own pipeline, with a `VortaTransformer` in the place of its transformer.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from vorta_trt.engines.bundle import Bundle
from vorta_trt.model.transformer import RoutedTransformer
from vorta_trt.plugins.errors import VortaError
from vorta_trt.runtime.fallbacks import Fallbacks
from vorta_trt.runtime.pipelines.decoding import to_bytes
from vorta_trt.runtime.pipelines.denoiser import EngineDenoiser
from vorta_trt.runtime.pipelines.loader import PartsLoader
from vorta_trt.runtime.pipelines.memory_mode import MemoryMode, choose_memory
from vorta_trt.runtime.pipelines.planner import PlannedRequest, RequestPlanner
from vorta_trt.runtime.pipelines.sampler import OnStep, Sampled, Sampler
from vorta_trt.runtime.pipelines.staged import OnStage, sample_in_stages
from vorta_trt.runtime.pipelines.transformer import VortaTransformer
from vorta_trt.runtime.sampling.params import SamplingParams
from vorta_trt.runtime.video_file import write_frames

BUDGET = "weight_streaming_budget"
StepReport = Callable[[int, PlannedRequest], None]  # the step that begins, and the plan that it belongs to
OnVideo = Callable[[int, "GeneratedVideo"], None]  # number of the prompt


@dataclass(frozen=True, eq=False)
class GeneratedVideo:
    """A video and how it came to be.

    Attributes:
        frames: uint8 [F, H, W, 3], RGB. frames_per_second: of the model's family.
        prompt, seed: what to give to get it again. planned: schedule and steps. launches: of the transformer.
        seconds: of encoding, sampling and decoding it. fallbacks: what ran otherwise than asked for, in words.
    """

    frames: npt.NDArray[np.uint8]
    frames_per_second: float
    prompt: str
    seed: int
    planned: PlannedRequest
    launches: int
    seconds: float
    fallbacks: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Everything but the frames, and of the plan the number of its steps."""
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
        """Writes .mp4, .mkv or .mov (H.264), or .npy with the frames as they are; whole or not at all."""
        return write_frames(Path(path), self.frames, frames_per_second or self.frames_per_second)


class VideoGenerator:
    """A pipeline, loaded once; or, where it does not fit into the memory, in stages for every request.

    Requests of one generator run one after the other, whichever thread they come from (a lock); nothing of one is left
    in the next. For requests side by side, make a generator for each.

    Args:
        source, checkpoint: as for `RequestPlanner`, or a planner.
        executor, device: as for `Engine`. A routed model runs where it is. Text encoders and VAE go to the same device.
        verify, engine: as for `Engine`, the latter its further options, e.g. {"weight_streaming_budget": "auto"}.
        strict: whatever would run otherwise than asked for is an error.
        memory_mode: "resident", "staged", or "auto", which asks the memory plan; see `memory_mode`.
        cpu_offload: text encoders and VAE are on the GPU only while they are used.
        vae_tiling: decode in tiles, which takes less memory; None does for families that need it.
    Raises: what `RequestPlanner` and `Engine` raise; CheckpointError, for a folder that is not the model's pipeline.

    Attributes:
        planner: see `RequestPlanner`. fallbacks: of all requests. memory: the `MemoryChoice`.
        transformer, pipeline: our transformer, and diffusers' object with it; not if staged.
        executor: what runs the transformer: "tensorrt", "onnxruntime", "reference", "torch"; None until it is loaded.
    """

    def __init__(
        self,
        source: str | Path | Bundle | RoutedTransformer | RequestPlanner,
        checkpoint: str | Path | None = None,
        *,
        executor: str | None = None,
        device: str | int | None = None,
        verify: bool = True,
        strict: bool = False,
        memory_mode: MemoryMode | str = MemoryMode.AUTO,
        cpu_offload: bool = False,
        vae_tiling: bool | None = None,
        engine: Mapping[str, Any] | None = None,
    ) -> None:
        self.planner = source if isinstance(source, RequestPlanner) else RequestPlanner(source, checkpoint)
        self.fallbacks = Fallbacks(strict)
        self._lock = threading.Lock()
        self._planned: tuple[SamplingParams, PlannedRequest] | None = None
        self._loader = PartsLoader(self.planner, vae_tiling)  # checks the folder before an engine is loaded
        self._engine = {"executor": executor, "device": device, **(engine or {})}
        self._verify = verify
        self.executor: str | None = None
        self.memory = choose_memory(
            MemoryMode(memory_mode),
            self.planner.source,
            self.planner.require_checkpoint(),
            executor=executor,
            device=device,
            cpu_offload=cpu_offload,
            stream_weights=self._engine.get(BUDGET) is not None,
        )
        if self.memory.stream_weights and self._engine.get(BUDGET) is None:
            self._engine[BUDGET] = "auto"
        if self.memory.is_staged:
            return
        self.transformer = self._load_transformer()
        try:
            self.pipeline = self._loader.load(self.transformer.device, self.transformer)
            self._place(self.memory.cpu_offload)
        except BaseException:
            self.close()
            raise

    def plan(self, params: SamplingParams) -> PlannedRequest:
        """`RequestPlanner.plan`; that of the last parameters is kept."""
        planned = self._planned  # once: other threads may plan meanwhile
        if planned is None or planned[0] != params:
            planned = self._planned = params, self.planner.plan(params)
        return planned[1]

    def generate(
        self,
        prompt: str,
        params: SamplingParams | None = None,
        *,
        locate: bool | None = None,
        on_step: StepReport | None = None,
        **changes: Any,
    ) -> GeneratedVideo:
        """One video of the model's size; see `generate_each`, which several prompts should go to together.

        Args:
            on_step: called as every step begins; may raise to stop the request.
        """
        videos: list[GeneratedVideo] = []
        self.generate_each(
            [prompt],
            lambda _, video: videos.append(video),
            params,
            locate=locate,
            on_step=None if on_step is None else lambda _, step, planned: on_step(step, planned),
            **changes,
        )
        return videos[0]

    def generate_each(
        self,
        prompts: Sequence[str],
        on_video: OnVideo,
        params: SamplingParams | None = None,
        *,
        locate: bool | None = None,
        on_step: OnStep | None = None,
        on_stage: OnStage | None = None,
        **changes: Any,
    ) -> None:
        """A video of the model's size for every prompt. Staged, the engine is opened and closed once for all of them.

        Args:
            on_video: called with the number of a prompt and its video as soon as that is decoded; not to call this
                generator.
            params: how to sample; its seed is that of every video. changes: of these parameters, by name.
            locate: see `VortaTransformer.request`. on_step: called as every step begins. on_stage: called with what is
                done between the steps, where that is much: staged. All three callbacks may raise to stop the request.
        Raises:
            ValueError: no prompt; parameters that do not suit the family. NonFiniteError: with step and, if looked for,
                layer.
            FallbackError: in strict mode. After any error the generator is ready for the next request.
        """
        if not prompts:
            raise ValueError("prompts []: must hold at least one")
        params = (params or SamplingParams()).updated(**changes)
        with self._lock:
            planned = self.plan(params)
            arguments = self.planner.guidance(params).arguments
            seed = secrets.randbits(32) if params.seed is None else params.seed
            sampler = Sampler(self.planner, params, planned, seed, self.fallbacks, locate, on_step)
            if self.memory.is_staged:
                report: OnStage = on_stage or (lambda *_: None)
                videos = sample_in_stages(
                    prompts, arguments, sampler, self._loader, self._load_transformer, self.memory, report
                )
            else:
                videos = (
                    sampler(number, self.pipeline, self.transformer, "pt", prompt=prompt, **arguments)
                    for number, prompt in enumerate(prompts)
                )
            for number, (prompt, video) in enumerate(zip(prompts, videos, strict=True)):
                on_video(number, self._finish(prompt, seed, planned, video))

    def close(self) -> None:
        """Frees the engine; text encoders and VAE go with this object. May be called twice."""
        if not self.memory.is_staged:
            self.transformer.close()

    def __enter__(self) -> VideoGenerator:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _finish(self, prompt: str, seed: int, planned: PlannedRequest, sampled: Sampled) -> GeneratedVideo:
        return GeneratedVideo(
            to_bytes(sampled.output[0]),
            self.planner.frames_per_second,
            prompt,
            seed,
            planned,
            sampled.launches,
            sampled.seconds,
            sampled.fallbacks,
        )

    def _load_transformer(self) -> VortaTransformer:
        source = self.planner.source
        if not isinstance(source, RoutedTransformer):
            transformer = VortaTransformer.from_pretrained(
                source, verify=self._verify, fallbacks=self.fallbacks, **self._engine
            )
        elif any(value is not None for value in self._engine.values()):
            raise ValueError("executor, device and engine: a routed model runs in torch, where it is; leave them out")
        else:
            transformer = VortaTransformer.from_pretrained(source, fallbacks=self.fallbacks)
        denoiser = transformer.denoiser
        self.executor = denoiser.engine.executor if isinstance(denoiser, EngineDenoiser) else "torch"
        return transformer

    def _place(self, cpu_offload: bool) -> None:
        """Moves text encoders and VAE to where the transformer is."""
        device = self.transformer.device
        if not cpu_offload:
            self.pipeline.to(device)
        elif device.type != "cuda":
            raise VortaError(f"cpu_offload: there is no GPU to keep free, the model runs on the {device}; leave it out")
        else:
            self.pipeline.enable_model_cpu_offload(device=device)
