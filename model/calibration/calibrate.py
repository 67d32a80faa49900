# SPDX-License-Identifier: Apache-2.0
"""`calibrate_routes`: routes without a router, from a checkpoint and a few samples or prompts, in minutes.

check what was given -> samples -> dense passes that measure every branch -> choose -> check -> file
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from vorta_trt.model import route_calibration
from vorta_trt.model.calibration import linears
from vorta_trt.model.calibration.buckets import Bucket, bucket_of, make_buckets
from vorta_trt.model.calibration.choose import check_share, choose_within_budget, choose_within_share
from vorta_trt.model.calibration.linears import LinearProbe
from vorta_trt.model.calibration.measure import routed
from vorta_trt.model.calibration.passes import CalibrationPasses
from vorta_trt.model.calibration.report import CalibrationReport
from vorta_trt.model.calibration.samples import (
    CalibrationSamples,
    DataSamples,
    InputMaker,
    MakeScheduler,
    PromptSamples,
    encode_prompts,
)
from vorta_trt.model.calibration.settings import DEFAULT_BUDGET, CalibrationSettings
from vorta_trt.model.checkpoint import CheckpointReader
from vorta_trt.model.constants import TRANSFORMER
from vorta_trt.model.experts import in_words, named, steps_of_experts
from vorta_trt.model.families.training import check_trains, training_family
from vorta_trt.model.files import check_output
from vorta_trt.model.geometry import AttentionGeometry, Branch
from vorta_trt.model.images import ImageLike, choose_kind, read_images
from vorta_trt.model.lora.spec import LoraSpec
from vorta_trt.model.precision import torch_dtype
from vorta_trt.model.route_calibration import RouteCalibration
from vorta_trt.model.timestep_path import TimestepPath
from vorta_trt.model.training.data import LatentDataset, Progress
from vorta_trt.model.training.devices import check_device
from vorta_trt.model.training.timesteps import sample_indices
from vorta_trt.model.transformer import RoutedTransformer
from vorta_trt.plugins.library import load_library


def calibrate_routes(
    checkpoint: str | Path,
    output: str | Path,
    scheduler: MakeScheduler,
    settings: CalibrationSettings | None = None,
    *,
    component: str = TRANSFORMER,
    variant: str | None = None,
    lora: Sequence[LoraSpec] = (),
    first_lora: Sequence[LoraSpec] = (),
    data: str | Path | None = None,
    prompts: Sequence[str] | None = None,
    images: Mapping[str, ImageLike] | None = None,
    video_size: tuple[int, int, int] | None = None,
    steps: int = 50,
    skip_bad: bool = False,
    linear_output: str | Path | None = None,
    device: str = "auto",
    progress: Progress = lambda what, done, total: None,
) -> CalibrationReport:
    """Chooses a branch per bucket of timesteps, layer and head, and writes the file of `RouteCalibration`.

    Either data or prompts are given. Arguments are checked before any model is loaded, LoRA files when the transformer
    is loaded. A prompt without an embedding is found when the prompts are encoded, before the transformer is loaded.

    Args:
        checkpoint: A diffusers pipeline folder; with data, its transformer/ folder will do.
        output: The file to write, or to replace.
        scheduler: Makes a fresh diffusers scheduler with a given number of steps; it is the one that videos are sampled
            with.
        settings: Settings of the calibration; None takes the defaults.
        component: Which of two experts is measured, at the steps of the schedule that it takes. With prompts, the
            second expert is measured after the steps of the first, so both are loaded.
        variant: Variant in the names of the weight files, e.g. "fp16", for the parts that have such files.
        lora: LoRA files that are fused into the weights.
        first_lora: LoRA files that are fused into the first expert, where the second is measured.
        data: A folder of `prepare_data`, or the reference code's layout, of which some samples are drawn.
        prompts: Prompts; at most the first `settings.samples` are used.
        images: Files or images that the videos of the prompts begin or end with, by the pipeline's argument, for models
            that take some.
        video_size: Frames, height, width in pixels; None takes the data's.
        steps: Number of steps of the schedule. The buckets are cut from it, and its FLOPs are counted.
        skip_bad: Leave out samples that cannot be used instead of refusing to start.
        linear_output: A second file to write, of `LinearCalibration`: what fp8 does to linear layers.
        device: "auto", "cpu" or "cuda".
        progress: Called with (what, done, total).

    Returns:
        The calibration, its file, and how it was checked.

    Raises:
        FileNotFoundError: A file or folder that is given does not exist.
        WriteError: The output cannot be written, or a file of another kind is there.
        CheckpointError: The checkpoint is not what it should be.
        DataError: The data is not what it should be.
        ValueError: Another argument is invalid.
        CalibrationError: A measured error is not finite.
        LibraryError: The kernels cannot run on this GPU.
    """
    began = time.perf_counter()
    settings = settings or CalibrationSettings()
    output = Path(output)
    check_output(output, kind=route_calibration.KIND)
    if linear_output is not None:
        if os.path.realpath(linear_output) == os.path.realpath(output):
            raise ValueError(f"linear_output {linear_output}: is the file of the routes, too; give each its own")
        check_output(linear_output, kind=linears.KIND)
    target = _device(device, settings.dtype)
    if (data is None) == (prompts is None):
        raise ValueError("data and prompts: exactly one of both must be given; one of --data DATA and --prompts FILE")
    with CheckpointReader(checkpoint, component, variant=variant) as reader:
        ratio = reader.boundary_ratio
        family = training_family(reader.family, reader.config)
    check_trains(family, checkpoint)
    kinds, images = family.facts.pipeline_kinds(family.config), images or {}
    if data is None:
        choose_kind(kinds, images)
    elif images:
        raise ValueError(f"{next(iter(images))}: belongs to prompts; data have images of their own, leave it out")
    dataset = None if data is None else LatentDataset(data, family)
    if dataset is None and video_size is None:
        raise ValueError("video size: prompts do not say it; give it, e.g. --size 77x720x1280")
    size = video_size if dataset is None else dataset.size(video_size)
    assert size is not None
    geometry = AttentionGeometry.for_video(*size, family=family.facts.name, config=family.config)
    shown = read_images(images, size, geometry.grid)
    timesteps = _own_part([float(step) for step in scheduler(steps).timesteps], component, ratio)
    buckets = make_buckets(timesteps, settings.buckets)
    head_dim = int(family.config["attention_head_dim"])
    costs = [geometry.attention_flops(branch, head_dim) for branch in Branch]
    if settings.target_share is not None:
        check_share(costs, settings.target_share)
    guidance = family.facts.guidance_scale if settings.guidance_scale is None else settings.guidance_scale
    make = InputMaker(family, torch_dtype(settings.dtype), target, guidance)
    shape = family.facts.sample_shape(family.config, geometry.grid)
    samples: CalibrationSamples
    if dataset is not None:
        dataset.shape = shape
        _draw(dataset, settings, skip_bad, progress)
        samples = DataSamples(dataset, timesteps, buckets, make, settings.seed)
    else:
        texts = list(prompts or ())[: settings.samples]
        if not texts:
            raise ValueError("prompts: there are none; give one or more, better four")
        run_timesteps = [float(step) for step in scheduler(settings.run_steps).timesteps]
        own = steps_of_experts(run_timesteps, ratio).get(component, range(0))
        _check_run(run_timesteps, own, buckets, None if ratio is None else component)
        guided = family.facts.classifier_free_guidance and guidance > 1
        conditions = encode_prompts(
            Path(checkpoint),
            family,
            texts,
            settings.dtype,
            target,
            progress,
            images=shown,
            size=size,
            guided=guided,
            variant=variant,
        )
        samples = PromptSamples(
            tuple(texts), conditions, shape, scheduler, settings.run_steps, make, settings.seed, own
        )

    progress("loading the model", 0, 0)
    options: dict[str, Any] = {"geometry": geometry, "dtype": torch_dtype(settings.dtype), "variant": variant}
    if isinstance(samples, PromptSamples) and samples.steps.start:
        first = RoutedTransformer.from_pretrained(checkpoint, lora=first_lora, **options).to(target)
        samples = replace(samples, before=lambda inputs: routed(first, inputs))
    model = RoutedTransformer.from_pretrained(checkpoint, component=component, lora=lora, **options).to(target)
    run = CalibrationPasses(model, samples, buckets, progress, family.stepped)
    probe = LinearProbe()
    with nullcontext() if linear_output is None else probe.watching(model):
        squares = run.measure()  # [K, L, N, 3]
    if settings.target_share is None:
        budget = DEFAULT_BUDGET if settings.budget is None else settings.budget
        routes = choose_within_budget(squares, costs, budget)
    else:
        in_bucket = bucket_of(timesteps, buckets).bincount(minlength=len(buckets)).tolist()  # [K]
        routes = choose_within_share(squares, costs, in_bucket, settings.target_share)
        budget = float(squares.gather(3, routes.long().unsqueeze(3)).sum(dim=2).sqrt().max())
    calibration = RouteCalibration(
        family=family.facts.name,
        geometry=geometry,
        buckets=buckets,
        routes=routes,
        errors=squares.sqrt().float(),
        budget=budget,
        component=None if ratio is None else named(component),
        checkpoint=" + ".join((str(model.checkpoint_name), *(file.name for file in model.lora))),
    )
    check = run.check(calibration)
    measured, held_back = (tuple(samples.names[index] for index in part) for part in (run.measured, run.held_back))
    made = {
        **settings.model_dump(),
        "video_size": list(size),
        "steps": steps,
        "source": "prompts" if dataset is None else "data",
        "measured": list(measured),
        "held_back": list(held_back),
        "device": torch.cuda.get_device_name(target) if target.type == "cuda" else target.type,
        "check": check.to_dict(),
    }
    calibration = replace(calibration, settings=made)
    calibration.save(output)
    if linear_output is not None:
        probe.result(model, None if ratio is None else component).save(linear_output)
    table = TimestepPath.from_model(model).route_table(timesteps, route_override=calibration.overrides(timesteps))
    peak = torch.cuda.max_memory_allocated(target) / 2**30 if target.type == "cuda" else None
    seconds = time.perf_counter() - began
    return CalibrationReport(output, calibration, table, check, measured, held_back, seconds, peak)


def _own_part(timesteps: list[float], component: str, ratio: float | None) -> list[float]:
    """The timesteps that the model takes: all, or those of one of two experts."""
    own = steps_of_experts(timesteps, ratio).get(component, range(0))
    if not own:
        raise ValueError(
            f"steps {len(timesteps)}: none of the schedule is of {in_words([component])}; use more --steps"
        )
    return timesteps[own.start : own.stop]


def _draw(dataset: LatentDataset, settings: CalibrationSettings, skip_bad: bool, progress: Progress) -> None:
    """Reduces the dataset to `settings.samples` randomly drawn samples, and checks them."""
    count = len(dataset)
    drawn = sample_indices(settings.seed, 0, min(settings.samples, count), count) if count else []
    dataset.samples = [dataset.samples[index] for index in drawn]
    dataset.leave_out(dataset.find_bad(progress), skip_bad)


def _device(name: str, dtype: str) -> torch.device:
    check_device(name)
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    if dtype == "fp32":
        raise ValueError("dtype 'fp32' on a GPU: the kernels take bf16 and fp16; use --dtype bf16, or --device cpu")
    load_library()  # LibraryError now, not after minutes
    return torch.device("cuda", torch.cuda.current_device())


def _check_run(timesteps: Sequence[float], own: range, buckets: Sequence[Bucket], expert: str | None) -> None:
    """Raises ValueError unless the steps of a run that are the model's own visit every bucket."""
    visited = bucket_of(timesteps[own.start : own.stop], buckets).tolist()
    missed = set(range(len(buckets))) - set(visited)
    if missed:
        upper, lower = buckets[min(missed)]
        share = "" if expert is None else f", of which {len(own)} are those of {in_words([expert])}"
        raise ValueError(
            f"run steps {len(timesteps)}{share}: none falls into the bucket of timesteps {upper:g} to {lower:g}; use "
            f"more --run-steps or fewer --buckets"
        )
