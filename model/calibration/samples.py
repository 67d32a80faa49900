# SPDX-License-Identifier: Apache-2.0
"""The model's inputs while it is measured: noisy latents of prepared data, or those of denoising runs of prompts.

Both give the transformer's inputs at timesteps of all buckets, one sample at a time. Data: a sample's latents with
noise, as in router training, at one step of the schedule per bucket; which one differs from sample to sample. Prompts:
a dense run of the pipeline's own scheduler from noise, with as few steps as wanted. Every step is measured; with
classifier-free guidance, its pass with the prompt alone.

Letters: C latent channels, F, H, W latent frames, height, width.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from vorta_trt.model.calibration.buckets import Bucket, bucket_of
from vorta_trt.model.families import PipelineKind
from vorta_trt.model.families.training import TrainingFamily
from vorta_trt.model.images import Images, choose_kind
from vorta_trt.model.pipeline_folder import load_pipeline
from vorta_trt.model.precision import torch_dtype
from vorta_trt.model.training.data import LatentDataset, Progress, check_finite
from vorta_trt.model.training.timesteps import add_noise, draw_noise

Inputs = dict[str, Any]
Visit = Callable[[float, Inputs], Tensor]
"""Called with a timestep and the transformer's inputs there; gives the dense sample [1, C, F, H, W]."""

MakeScheduler = Callable[[int], Any]
"""A fresh diffusers scheduler with that many steps set."""


@dataclass(frozen=True)
class InputMaker:
    """Makes the transformer's inputs of one noisy latent.

    Attributes:
        family: Family of the model, which makes the inputs.
        dtype: Data type of the model.
        device: Device of the model.
        guidance: Guidance scale, embedded where the model embeds it.
    """

    family: TrainingFamily
    dtype: torch.dtype
    device: torch.device
    guidance: float

    def __call__(
        self, noisy: Tensor, timestep: float, conditions: Mapping[str, Tensor], following: float = 0.0
    ) -> Inputs:
        """Makes the inputs from noisy [1, C, F, H, W], conditions [1, ...] each, and the timestep of the next step."""
        at = torch.tensor([timestep], dtype=torch.float32, device=self.device)  # [1]
        on_device = {name: tensor.to(self.device) for name, tensor in conditions.items()}
        inputs = self.family.model_inputs(noisy.to(self.device, self.dtype), at, on_device, self.dtype)
        if "guidance" in inputs:
            inputs["guidance"] = torch.full_like(at, 1000 * self.guidance)  # [1]
        if "timestep_r" in inputs:
            inputs["timestep_r"] = torch.full_like(at, following)  # [1]
        return inputs


class CalibrationSamples(abc.ABC):
    """The samples that a calibration runs the model on.

    Attributes:
        names: Names of the samples.
        visits: How often `walk` calls `visit`.
    """

    names: tuple[str, ...]
    visits: int

    @abc.abstractmethod
    def walk(self, index: int, position: float, part: int, visit: Visit, predict: Callable[[Inputs], Tensor]) -> None:
        """Visits timesteps of all buckets with one sample.

        Args:
            index: Which sample.
            position: Which of a bucket's steps is visited, from 0 (the first) to below 1. Runs of prompts ignore it,
                since they visit all of their steps.
            part: Number of this walk, from which its noise is drawn.
            visit: Called at each timestep.
            predict: A dense pass that is not measured.
        """


@dataclass(frozen=True)
class DataSamples(CalibrationSamples):
    """Samples of a data folder, which was checked, at the timesteps of a schedule in buckets."""

    dataset: LatentDataset
    timesteps: Sequence[float]
    buckets: Sequence[Bucket]
    make: InputMaker
    seed: int

    @property
    def names(self) -> tuple[str, ...]:  # type: ignore[override]
        """Names of the samples."""
        return tuple(sample.name for sample in self.dataset.samples)

    @property
    def visits(self) -> int:  # type: ignore[override]
        """Number of visits: one per bucket."""
        return len(self.buckets)

    def walk(self, index: int, position: float, part: int, visit: Visit, predict: Callable[[Inputs], Tensor]) -> None:
        """Visits one step of each bucket."""
        latents, conditions = self.dataset.batch([index])  # [1, C, F, H, W]
        members = bucket_of(self.timesteps, self.buckets).tolist()  # [P]
        for bucket in range(len(self.buckets)):
            steps = [step for step, member in zip(self.timesteps, members, strict=True) if member == bucket]
            timestep = steps[int(position * len(steps))]
            following = [*self.timesteps, 0.0][list(self.timesteps).index(timestep) + 1]
            noise = draw_noise(self.seed, part, bucket, tuple(latents.shape))  # [1, C, F, H, W]
            noisy = add_noise(latents, noise, torch.tensor([timestep]))
            visit(timestep, self.make(noisy, timestep, conditions, following))


@dataclass(frozen=True)
class PromptSamples(CalibrationSamples):
    """Dense denoising runs.

    Attributes:
        names: The prompts.
        conditions: Conditions of each prompt, [1, ...] each. If the runs have classifier-free guidance, those of the
            empty prompt come last.
        shape: C, F, H, W.
        scheduler: Scheduler of the runs.
        run_steps: Steps of the runs.
        make: Makes the inputs, and has the guidance scale.
        seed: Seed of the noise.
        steps: Steps of a run that are visited; with two experts, those of the measured one. The run ends after them.
        before: Predicts at the steps before `steps`, which belong to the other expert; None if there are none.
    """

    names: tuple[str, ...]
    conditions: Sequence[Mapping[str, Tensor]]
    shape: tuple[int, int, int, int]
    scheduler: MakeScheduler
    run_steps: int
    make: InputMaker
    seed: int
    steps: range
    before: Callable[[Inputs], Tensor] | None = None

    @property
    def visits(self) -> int:  # type: ignore[override]
        """How many steps are visited."""
        return len(self.steps)

    def walk(self, index: int, position: float, part: int, visit: Visit, predict: Callable[[Inputs], Tensor]) -> None:
        """Visits every step of a run that belongs to the measured model."""
        scheduler = self.scheduler(self.run_steps)
        noise = draw_noise(self.seed, part, 0, (1, *self.shape)).to(self.make.device)  # [1, C, F, H, W]
        latents = self.make.family.first_latents(noise, self.conditions[index])  # [1, C, F, H, W]
        timesteps = [*map(float, scheduler.timesteps), 0.0]
        for number, step in enumerate(scheduler.timesteps[: self.steps.stop]):
            timestep, following = timesteps[number : number + 2]
            inputs = self.make(latents, timestep, self.conditions[index], following)
            if number in self.steps:
                prediction, guess = visit(timestep, inputs), predict  # [1, C, F, H, W]
            else:
                assert self.before is not None
                prediction, guess = self.before(inputs), self.before
            for empty in self.conditions[len(self.names) :]:
                without = guess(self.make(latents, timestep, empty, following))  # [1, C, F, H, W]
                prediction = without + self.make.guidance * (prediction - without)
            latents = scheduler.step(prediction, step, latents, return_dict=False)[0]


@torch.no_grad()
def encode_prompts(
    checkpoint: Path,
    family: TrainingFamily,
    prompts: Sequence[str],
    dtype: str,
    device: torch.device,
    progress: Progress,
    *,
    images: Images = MappingProxyType({}),
    size: tuple[int, int, int],
    guided: bool = False,
    variant: str | None = None,
) -> list[dict[str, Tensor]]:
    """Encodes prompts with the pipeline's own text encoder, which is freed afterwards.

    Args:
        checkpoint: The pipeline folder.
        family: Family of the model, which makes the conditions.
        prompts: The prompts.
        dtype: Precision of the transformer. The text encoder runs in "fp32" if the transformer does, else in "bf16",
            because it overflows in fp16.
        device: Where the text encoder runs.
        progress: Called with (what, done, total).
        images: Images that all videos begin or end with, for models that take images.
        size: Frames, height, width of the videos in pixels.
        guided: Whether the empty prompt is encoded, too, as the negative prompt of guidance.
        variant: Variant in the names of the pipeline's weight files, e.g. "fp16".

    Returns:
        The family's conditions of every prompt, [1, ...] each, on the CPU; those of the empty one come last.

    Raises:
        ValueError: A prompt has no usable embedding; the message names it.
    """
    progress("loading the text encoder", 0, 0)
    width = torch_dtype("fp32" if dtype == "fp32" else "bf16")
    kind = choose_kind(family.facts.pipeline_kinds(family.config), images)
    pipeline = load_pipeline(
        checkpoint, family.facts, family.config, width, purpose="calibrating with prompts", kind=kind, variant=variant
    )
    of_images = _encode_images(pipeline, family, kind, images, size, device, progress)
    encoders = [part for name, part in pipeline.components.items() if name.startswith("text_encoder") and part]
    for encoder in encoders:
        encoder.to(device)
    encoded = []
    texts = [*((prompt, family.encode_caption) for prompt in prompts), *([("", family.encode_negative)] * guided)]
    for index, (prompt, encode) in enumerate(texts):
        progress("encoding prompts", index, len(texts))
        try:
            tensors = encode(pipeline, prompt, device, images or None)
            conditions = of_images | family.conditions({**tensors, **of_images})
        except ValueError as error:
            raise ValueError(f"prompt {prompt!r}: {error}") from error
        encoded.append({name: tensor.unsqueeze(0).cpu() for name, tensor in conditions.items()})
    for encoder in encoders:
        encoder.to("cpu")
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return encoded


def _encode_images(
    pipeline: Any,
    family: TrainingFamily,
    kind: PipelineKind,
    images: Images,
    size: tuple[int, int, int],
    device: torch.device,
    progress: Progress,
) -> dict[str, Tensor]:
    """A family's tensors of images, made by the pipeline's VAE and image encoder, which then go back to the CPU."""
    if not images:
        return {}
    progress("encoding the image", 0, 0)
    if family.facts.tiled_vae:
        pipeline.vae.enable_tiling()
    models = [part for name in kind.conditioners if isinstance(part := getattr(pipeline, name), torch.nn.Module)]
    for model in models:
        model.to(device)
    made = family.condition(pipeline, images, size, device)
    check_finite(made)
    for model in models:
        model.to("cpu")
    return {name: tensor.cpu() for name, tensor in made.items()}
