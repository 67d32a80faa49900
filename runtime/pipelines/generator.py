# SPDX-License-Identifier: Apache-2.0
"""`VideoGenerator`: from prompts to videos, as often as you like, with everything loaded once.

    with VideoGenerator("wan.bundle", "Wan2.1-T2V-14B-Diffusers") as generator:
        generator.generate("A cat walks on grass", seed=1).save("cat.mp4")

What samples is diffusers' own pipeline, with a `VortaTransformer` in the place of its transformer.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from vorta_trt.engines.bundle import Bundle
from vorta_trt.model.checkpoint import CheckpointError
from vorta_trt.model.pipeline_folder import check_pipeline, load_pipeline
from vorta_trt.model.transformer import RoutedTransformer
from vorta_trt.plugins.errors import VortaError
from vorta_trt.runtime.fallbacks import Fallbacks
from vorta_trt.runtime.pipelines.denoiser import EngineDenoiser
from vorta_trt.runtime.pipelines.guidance import GuidanceMode
from vorta_trt.runtime.pipelines.planner import PlannedRequest, RequestPlanner
from vorta_trt.runtime.pipelines.settings import FAMILY_SAMPLING, SamplingSettings, guidance_arguments
from vorta_trt.runtime.pipelines.transformer import VortaTransformer
from vorta_trt.runtime.video_file import write_frames

PURPOSE = "generation"  # what needs the pipeline folder, in errors
StepReport = Callable[[int, PlannedRequest], None]  # the step that begins, and the plan that it belongs to


@dataclass(frozen=True, eq=False)
class GeneratedVideo:
    """A video and how it came to be.

    Attributes:
        frames: uint8 [F, H, W, 3], RGB. frames_per_second: of the model's family.
        prompt, seed: what to give to get it again. planned: schedule and steps. launches: of the transformer.
        seconds: from the prompt to the frames. fallbacks: what ran otherwise than asked for, in words.
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
    """A loaded pipeline.

    Requests of one generator run one after the other, whichever thread they come from (a lock); nothing of one is left
    in the next. For requests side by side, make a generator for each.

    Args:
        source, checkpoint: as for `RequestPlanner`, or a planner.
        executor, device: as for `Engine`. A routed model runs where it is. Text encoders and VAE go to the same device.
        verify, engine: as for `Engine`, the latter its further options, e.g. {"weight_streaming_budget": "auto"}.
        strict: whatever would run otherwise than asked for is an error.
        cpu_offload: text encoders and VAE are on the GPU only while they are used.
        vae_tiling: decode in tiles, which takes less memory; None does for HunyuanVideo.
    Raises: what `RequestPlanner` and `Engine` raise; CheckpointError, for a folder that is not the model's pipeline.

    Attributes:
        planner: see `RequestPlanner`. pipeline: diffusers' object, with our transformer. fallbacks: of all requests.
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
        cpu_offload: bool = False,
        vae_tiling: bool | None = None,
        engine: Mapping[str, Any] | None = None,
    ) -> None:
        self.planner = source if isinstance(source, RequestPlanner) else RequestPlanner(source, checkpoint)
        self.fallbacks = Fallbacks(strict)
        self._lock = threading.Lock()
        self._planned: tuple[SamplingSettings, PlannedRequest] | None = None
        folder = self.planner.require_checkpoint()
        check_pipeline(folder, self.planner.pipeline, purpose=PURPOSE)  # before an engine is loaded
        self.transformer = self._load_transformer(executor, device, verify, engine or {})
        try:
            self.pipeline = self._load_pipeline(folder)
            self._place(cpu_offload)
        except BaseException:
            self.close()
            raise
        if self.planner.tiled_vae if vae_tiling is None else vae_tiling:
            self.pipeline.vae.enable_tiling()

    def plan(self, settings: SamplingSettings, negative_prompt: str | None = None) -> PlannedRequest:
        """`RequestPlanner.plan`; that of the last settings is kept."""
        planned = self._planned  # once: other threads may plan meanwhile
        if planned is None or planned[0] != settings:
            planned = self._planned = settings, self.planner.plan(settings, negative_prompt)
        return planned[1]

    def generate(
        self,
        prompt: str,
        *,
        negative_prompt: str | None = None,
        seed: int | None = None,
        settings: SamplingSettings | None = None,
        locate: bool | None = None,
        on_step: StepReport | None = None,
    ) -> GeneratedVideo:
        """One video of the model's size.

        Args:
            negative_prompt: what guidance leads away from; needs classifier-free guidance.
            seed: of the noise, whatever the device; None is a fresh one.
            locate: see `VortaTransformer.request`. on_step: called as every step begins; may raise to stop the request.
        Raises:
            ValueError: settings that do not suit the family. NonFiniteError: with step and, if looked for, layer.
            FallbackError: in strict mode. After any error the generator is ready for the next request.
        """
        settings = settings or SamplingSettings()
        with self._lock:
            began, before = time.perf_counter(), dict(self.fallbacks.counts)
            planned = self.plan(settings, negative_prompt)
            if planned.steps.routes is None:
                self.fallbacks.record("planned routes", f"{self.planner.name} does not hold its timestep path")
            seed = secrets.randbits(32) if seed is None else seed
            arguments, _ = guidance_arguments(
                self.planner.family, settings, negative_prompt, takes_guidance=self._takes_guidance
            )
            frames, height, width = self.planner.size
            scheduler = planned.schedule.instance
            generator = torch.Generator().manual_seed(seed)
            if hasattr(scheduler, "generator"):
                scheduler.generator = generator
            self.pipeline.scheduler = scheduler
            request = self.transformer.request(
                planned.steps,
                guidance=settings.guidance if planned.passes > 1 else GuidanceMode.SEQUENTIAL,
                fallbacks=self.fallbacks,
                locate=locate,
                on_step=None if on_step is None else lambda step: on_step(step, planned),
            )
            with request as following:
                video = self.pipeline(
                    prompt=prompt,
                    num_frames=frames,
                    height=height,
                    width=width,
                    num_inference_steps=len(planned.steps.timesteps),
                    generator=generator,
                    output_type="pt",
                    **arguments,
                ).frames  # [1, F, 3, H, W] in [0, 1]
            return GeneratedVideo(
                _to_bytes(video[0]),
                self.planner.frames_per_second,
                prompt,
                seed,
                planned,
                following.launches.total(),
                time.perf_counter() - began,
                tuple(
                    f"{kind}: {count - before.get(kind, 0)} times"
                    for kind, count in sorted(self.fallbacks.counts.items())
                    if count > before.get(kind, 0)
                ),
            )

    @property
    def executor(self) -> str:
        """What runs the transformer: "tensorrt", "onnxruntime", "reference", or "torch"."""
        denoiser = self.transformer.denoiser
        return denoiser.engine.executor if isinstance(denoiser, EngineDenoiser) else "torch"

    def close(self) -> None:
        """Frees the engine; text encoders and VAE go with this object. May be called twice."""
        self.transformer.close()

    def __enter__(self) -> VideoGenerator:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def _takes_guidance(self) -> bool:
        return bool(self.planner.config.get("guidance_embeds"))

    def _load_transformer(
        self, executor: str | None, device: str | int | None, verify: bool, engine: Mapping[str, Any]
    ) -> VortaTransformer:
        source = self.planner.source
        if not isinstance(source, RoutedTransformer):
            return VortaTransformer.from_bundle(
                source, executor=executor, device=device, verify=verify, fallbacks=self.fallbacks, **engine
            )
        if executor is not None or device is not None or engine:
            raise ValueError("executor, device and engine: a routed model runs in torch, where it is; leave them out")
        return VortaTransformer.from_model(source, fallbacks=self.fallbacks)

    def _load_pipeline(self, folder: Path) -> Any:
        """On the CPU."""
        types = FAMILY_SAMPLING[self.planner.family]
        on_gpu = self.transformer.device.type == "cuda"
        encoder_dtype, vae_dtype = (
            getattr(torch, name) if on_gpu else torch.float32 for name in (types.encoder_dtype, types.vae_dtype)
        )
        pipeline = load_pipeline(folder, self.planner.pipeline, encoder_dtype, purpose=PURPOSE)
        torch.nn.Module.to(pipeline.vae, vae_dtype)  # diffusers' `to` warns of modules to keep, even if there are none
        pipeline.set_progress_bar_config(disable=True)
        self._check_parts(folder, pipeline)
        pipeline.transformer = self.transformer
        return pipeline

    def _check_parts(self, folder: Path, pipeline: Any) -> None:
        """Text encoders and VAE must give what the transformer takes."""
        config, vae = self.planner.config, pipeline.vae.config
        text = "text_dim" if self.planner.family == "wan" else "text_embed_dim"
        channels = vae.z_dim if hasattr(vae, "z_dim") else vae.latent_channels
        found = {"VAE channels": channels, "text encoder's width": pipeline.text_encoder.config.hidden_size}
        wanted = {"VAE channels": config["in_channels"], "text encoder's width": config[text]}
        for what, value in wanted.items():
            if found[what] != value:
                raise CheckpointError(
                    f"checkpoint {folder}: {what} {found[what]}, but {self.planner.name} takes {value}; give the "
                    f"pipeline folder that it was made from"
                )

    def _place(self, cpu_offload: bool) -> None:
        """Moves text encoders and VAE to where the transformer is."""
        device = self.transformer.device
        if not cpu_offload:
            self.pipeline.to(device)
        elif device.type != "cuda":
            raise VortaError(f"cpu_offload: there is no GPU to keep free, the model runs on the {device}; leave it out")
        else:
            self.pipeline.enable_model_cpu_offload(device=device)


def _to_bytes(video: torch.Tensor) -> npt.NDArray[np.uint8]:
    """[F, 3, H, W] in [0, 1] -> uint8 [F, H, W, 3]"""
    if not bool(video.isfinite().all()):
        raise VortaError(
            "the decoded video has values that are not finite, though the latents were: the VAE overflows in its "
            "precision; decode with another one"
        )
    return (video.float() * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().cpu().numpy()
