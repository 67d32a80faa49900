# SPDX-License-Identifier: Apache-2.0
r"""`RequestPlanner`: plans requests to a model that is not loaded yet; needs no GPU.

planner = RequestPlanner("model.bundle", "CHECKPOINT")
print("\n".join(planner.plan(SamplingParams(num_inference_steps=30, dense_first=2)).lines()))
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from vorta_trt.engines.bundle import Bundle
from vorta_trt.engines.engine_key import EngineKey, choose
from vorta_trt.model.checkpoint import CheckpointError
from vorta_trt.model.constants import COMPONENTS, TRANSFORMER, TRANSFORMER_2
from vorta_trt.model.experts import check_alike, steps_of_experts
from vorta_trt.model.families import Guidance, PipelineKind, get_family
from vorta_trt.model.geometry import AttentionGeometry
from vorta_trt.model.hub_cache import snapshot_of
from vorta_trt.model.images import ImageLike, Images, choose_kind, read_image, read_images, stretch
from vorta_trt.model.model_index import MODEL_INDEX, check_model_index, read_model_index
from vorta_trt.model.precision import torch_dtype
from vorta_trt.model.route_calibration import RouteCalibration
from vorta_trt.model.transformer import RoutedTransformer
from vorta_trt.model.video_size import VideoSize
from vorta_trt.runtime.pipelines.experts import BUNDLED, Expert, Override, Source, experts_of
from vorta_trt.runtime.pipelines.planned import ExpertPlan, PlannedRequest
from vorta_trt.runtime.sampling.cost import StepProfile
from vorta_trt.runtime.sampling.params import SamplingParams
from vorta_trt.runtime.sampling.presets import get_preset
from vorta_trt.runtime.sampling.step_plan import plan_steps
from vorta_trt.runtime.schedules import FLOW_EULER, Schedule, given_schedule, schedule_timesteps, takes_sigmas
from vorta_trt.runtime.target import read_target

if TYPE_CHECKING:
    from vorta_trt.model.timestep_path import TimestepPath


class RequestPlanner:
    """Plans requests to a model, from what is known of it before anything large is loaded.

    Args:
        source: A bundle or its path, the path of an exported ONNX file, or a routed model in torch. For two experts in
            torch, a tuple of both models, the one for high noise first.
        checkpoint: The diffusers pipeline folder that the source was made from. None looks for a folder of the name
            that the source remembers, beside the source and in the current folder.
        route_override: A file of calibrated routes, None for no such routes, or "bundled" for those of the bundle, if
            it has any. For two experts, a mapping from component to one of these.
        variant: Variant in the names of the pipeline folder's weight files, as in diffusers, for the parts that have
            such files.
        size: Which of a bundle's video sizes, as "81x480x832"; None takes the first.

    Raises:
        FileNotFoundError: Something is missing.
        ValueError: Something is damaged, or does not belong together.

    Attributes:
        source: The bundle, path or model that was given.
        name: Name of the source, for error messages.
        family: Name of the model family.
        config: Config of the diffusers transformer.
        geometry: Geometry of the attention.
        dtype: Type of the activations.
        heads: Number of layers and heads (L, N).
        size: Number of frames, height and width of the videos, height and width in pixels.
        sizes: All video sizes of the source, as "81x480x832"; `at` gives their planners.
        frames_per_second: Frames per second of the family's videos.
        checkpoint: The pipeline folder; None if there is none.
        variant: The variant that was given.
        experts: The transformers: one, or both experts.
        boundary_ratio: The second of two experts runs at timesteps below 1000 times this ratio; None for a model with
            one transformer.
    """

    def __init__(
        self,
        source: Source,
        checkpoint: str | Path | None = None,
        *,
        route_override: Override | Mapping[str, Override] = BUNDLED,
        variant: str | None = None,
        size: str | VideoSize | None = None,
    ) -> None:
        self.source, self.variant, self._route_override = source, variant, route_override
        self.experts = experts_of(source, route_override, size)
        first = self.experts[0].described
        if isinstance(first, RoutedTransformer):
            assert first.geometry is not None
            self.geometry: AttentionGeometry = first.geometry
            self.dtype, remembered = first.dtype, first.checkpoint
            where: Path | None = None if remembered is None else remembered.parent
            self.name = type(first).__name__
        else:
            self.geometry = first.attention_geometry
            self.dtype, remembered = torch_dtype(first.precision), first.checkpoint
            path = source.path if isinstance(source, Bundle) else Path(str(source))
            where = path.absolute().parent
            self.name = str(path)
        self.remembered = None if remembered is None else Path(remembered).name
        self.family: str = first.family
        self.config: dict[str, Any] = dict(first.config)
        self.heads: tuple[int, int] = first.num_layers, first.num_heads
        self.boundary_ratio: float | None = first.boundary_ratio
        check_alike({expert.component: expert.described.config for expert in self.experts}, self.name)
        self.checkpoint = _find_checkpoint(checkpoint, remembered, where) or _carried(source)
        if self.checkpoint is not None and (self.checkpoint / MODEL_INDEX).is_file():
            self._check_index(self.checkpoint)
        for expert in self.experts:
            if expert.calibration is not None:
                component, described = self._component(expert), expert.described
                name = described.checkpoint_name if isinstance(described, RoutedTransformer) else described.checkpoint
                expert.calibration.check(self.family, *self.heads, self.geometry, component, name)
        family = get_family(self.family)
        self.frames_per_second = family.frame_rate(self.config)
        _, *latent = family.latent_shape(self.config, self.geometry.grid)
        self.size = family.video_size(self.config, *latent)
        self.sizes = _sizes(source, VideoSize(*self.size))
        if size is not None:  # for a bundle, `experts_of` has found it
            choose(self.name, [EngineKey(TRANSFORMER, each) for each in self.sizes], size=size)
        self._at = {self._name_of_size: self}

    def at(self, size: str | VideoSize | None) -> RequestPlanner:
        """The planner of another video size of the same bundle; for None, this planner.

        Raises:
            SelectionError: There is no such size; the message names the existing ones.
            ValueError: `size` cannot be parsed as a size.
        """
        if size is None:
            return self
        name = str(VideoSize.parse(str(size)))
        if name not in self._at:
            made = RequestPlanner(
                self.source, self.checkpoint, route_override=self._route_override, variant=self.variant, size=name
            )
            made._at = self._at
            self._at[name] = made
        return self._at[name]

    def for_images(self, given: Mapping[str, ImageLike]) -> RequestPlanner:
        """The planner of the size whose aspect ratio is closest to that of the first image; this one without images."""
        if not given or len(self.sizes) == 1:
            return self
        name, image = next(iter(given.items()))
        opened = read_image(name, image)

        def stretched(size: str) -> tuple[float, bool]:
            _, height, width = self.at(size).size
            return round(
                stretch(opened, height, width), 6
            ), size != self._name_of_size  # at a tie, this planner's own size

        return self.at(min(self.sizes, key=stretched))

    @property
    def _name_of_size(self) -> str:
        return str(VideoSize(*self.size))

    @property
    def path(self) -> TimestepPath | None:
        """Timestep path of the first transformer; None if it is not available."""
        return self.experts[0].path

    @property
    def calibration(self) -> RouteCalibration | None:
        """Calibrated routes of the first transformer, or None."""
        return self.experts[0].calibration

    def _component(self, expert: Expert) -> str | None:
        """Component name of an expert; None for a model with one transformer."""
        return None if self.boundary_ratio is None else expert.component

    def _check_index(self, checkpoint: Path) -> None:
        """Raises CheckpointError unless the pipeline folder is for the transformers of the source."""
        index, family = read_model_index(checkpoint), get_family(self.family)
        for kind in family.pipeline_kinds(self.config):
            if index.pipeline == kind.pipeline:  # any other pipeline is refused when it is loaded
                check_model_index(index, family, kind, checkpoint)
                if index.boundary_ratio != self.boundary_ratio:
                    has, holds = (
                        "one transformer" if ratio is None else f"two experts that switch at {ratio:g}"
                        for ratio in (index.boundary_ratio, self.boundary_ratio)
                    )
                    raise CheckpointError(
                        f"checkpoint {checkpoint}: has {has}, but {self.name} was made of a pipeline with {holds}; "
                        f"give the folder that it was made from, or export that checkpoint again"
                    )

    def schedule(self, params: SamplingParams) -> Schedule:
        """The schedule that the pipeline will sample with.

        Raises:
            ValueError: The schedule cannot be known, or the family's pipeline does not take it.
        """
        if params.gives_steps:
            return given_schedule(
                self.checkpoint,
                params.scheduler or FLOW_EULER,
                sigmas=params.sigmas,
                timesteps=params.timesteps,
                renoise=params.renoise,
            )
        family = get_family(self.family)
        schedule = schedule_timesteps(
            self.checkpoint,
            params.num_inference_steps,
            params.scheduler,
            params.flow_shift,
            gives_sigmas=family.gives_sigmas,
        )
        if family.gives_sigmas and not takes_sigmas(schedule.instance):
            raise ValueError(
                f"scheduler {schedule.scheduler}: the pipeline of {family} chooses the sigmas, which it does not take; "
                f"use flow-euler or unipc"
            )
        return schedule

    def plan(self, params: SamplingParams, profile: StepProfile | None = None) -> PlannedRequest:
        """Schedule, routes, skipped steps and predicted cost.

        Args:
            params: How to sample.
            profile: Measured times, for the predicted cost.

        Raises:
            ValueError: Parameters do not suit the family or the schedule.
        """
        guidance = self.guidance(params)
        schedule = self.schedule(params)
        family = get_family(self.family)
        drawn = self.dtype if family.draws_in_model_dtype else torch.float32
        rounded = _latents_dtype(schedule, self.dtype, drawn) if family.gives_sigmas else torch.float32
        parts = steps_of_experts(schedule.timesteps, self.boundary_ratio)
        plans = []
        for expert in self.experts:
            if expert.component not in parts:
                continue
            second = expert.component == TRANSFORMER_2
            passes = guidance.passes_2 if second and guidance.passes_2 is not None else guidance.passes
            steps = plan_steps(
                schedule.timesteps,
                path=expert.path,
                heads=self.heads,
                cache=params.cache,
                guards=params.guards,
                calibrated=None if expert.calibration is None else expert.calibration.overrides(schedule.timesteps),
                tau=params.tau,
                timestep_dtype=rounded,
                passes=passes,
                profile=profile,
                part=parts[expert.component],
            )
            scale = guidance.arguments.get("guidance_scale_2" if second else "guidance_scale")
            plans.append(ExpertPlan(expert.component, steps, passes, scale))
        return PlannedRequest(schedule, tuple(plans), self.boundary_ratio)

    def guidance(self, params: SamplingParams) -> Guidance:
        """The pipeline's guidance arguments, and the number of samples per step; see `ModelFamily.guidance`."""
        return get_family(self.family).guidance(
            self.config,
            guidance_scale=params.guidance_scale,
            guidance_scale_2=params.guidance_scale_2,
            true_cfg_scale=params.true_cfg_scale,
            negative_prompt=params.negative_prompt,
            distilled=params.gives_steps and params.scheduler is None,
            two_experts=self.boundary_ratio is not None,
            checkpoint=self.checkpoint,
        )

    def for_preset(self, name: str) -> RequestPlanner:
        """The planner of the video size that a preset requires, if the source has that size; otherwise this planner.

        Raises:
            ValueError: There is no such preset, or it is for other models.
        """
        size = get_preset(name, get_family(self.family).presets).size
        return self if size is None or str(size) not in self.sizes else self.at(size)

    def preset(self, name: str) -> dict[str, Any]:
        """The settings of a preset for this model, as keywords of `SamplingParams`.

        Raises:
            ValueError: There is no such preset, or it is for other models or another video size.
        """
        preset = get_preset(name, get_family(self.family).presets)
        settings = preset.settings(self.name, self.boundary_ratio)
        preset.check_size(self.name, VideoSize(*self.size))
        if self.boundary_ratio is not None and "timesteps" in settings:
            parts = steps_of_experts(settings["timesteps"], self.boundary_ratio)
            preset.check_switch(self.name, len(parts.get(TRANSFORMER, ())))
        return settings

    def read_images(self, given: Mapping[str, ImageLike]) -> tuple[PipelineKind, Images]:
        """Reads images; returns the kind of diffusers pipeline that takes them, and the images.

        Args:
            given: Files or images, by the name of the pipeline's argument.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: An image is missing, has no place, is damaged, or does not fit the videos.
        """
        kind = choose_kind(get_family(self.family).pipeline_kinds(self.config), given)
        return kind, read_images(given, self.size, self.geometry.grid, self.sizes)

    def require_checkpoint(self) -> Path:
        """The pipeline folder; raises a CheckpointError that says which one to give if there is none."""
        if self.checkpoint is None:
            which = "that it was made from" if self.remembered is None else f"{self.remembered!r} that it was made from"
            raise CheckpointError(
                f"{self.name}: does not hold the whole pipeline; tokenizer, scheduler and what of text encoder and VAE "
                f"is no engine in it lie in the pipeline folder {which}, which is neither beside it nor here; give it "
                f"(--checkpoint FOLDER), or build the bundle again with --with all --keep-pipeline"
            )
        return self.checkpoint


def _sizes(source: Source, own: VideoSize) -> tuple[str, ...]:
    """All video sizes of a source."""
    bundle = None if isinstance(source, RoutedTransformer | tuple) else read_target(source).bundle
    if bundle is None:
        return (str(own),)
    return tuple(dict.fromkeys(key.size for key in bundle.engines if key.size is not None))


def _carried(source: Source) -> Path | None:
    """The pipeline folder in a bundle, if it carries one."""
    if isinstance(source, RoutedTransformer | tuple) or (bundle := read_target(source).bundle) is None:
        return None
    return bundle.pipeline_path


def _find_checkpoint(given: str | Path | None, remembered: str | Path | None, beside: Path | None) -> Path | None:
    if given is not None:
        path = _pipeline_of(Path(given))
        if not path.is_dir():
            raise FileNotFoundError(f"checkpoint {path}: is no folder; give the diffusers pipeline folder")
        return path
    if remembered is None:
        return None
    places = [_pipeline_of(place / remembered) for place in (beside, Path()) if place is not None]
    return next((place for place in places if (place / MODEL_INDEX).is_file()), None)


def _pipeline_of(path: Path) -> Path:
    """The pipeline folder of a path that names it, its transformer's folder or a file in that; else the path itself."""
    path = snapshot_of(path)
    folder = path.parent if path.is_file() else path
    if folder.name in COMPONENTS and (folder.parent / MODEL_INDEX).is_file():
        return folder.parent
    return path


def _latents_dtype(schedule: Schedule, sample_dtype: torch.dtype, drawn: torch.dtype) -> torch.dtype:
    """The type that the scheduler gives the latents after the first step, before which they have the type `drawn`."""
    scheduler = copy.deepcopy(schedule.instance)
    scheduler.set_begin_index(0)
    sample, latents = torch.ones(1, 1, dtype=sample_dtype), torch.ones(1, 1, dtype=drawn)
    after: torch.Tensor = scheduler.step(sample, scheduler.timesteps[0], latents, return_dict=False)[0]
    return after.dtype
