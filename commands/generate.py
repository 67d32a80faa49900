# SPDX-License-Identifier: Apache-2.0
"""`vorta-trt generate`."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vorta_trt.commands.app import EXAMPLE, AsJson, Debug, command
from vorta_trt.commands.expand import Options
from vorta_trt.commands.options import (
    MOST_SEED,
    AttentionPrecisionOption,
    Gpus,
    LinearKeep,
    LinearPrecisionOption,
    Lora,
    PipelineFolder,
    Routers,
    StepProfileFile,
    Variant,
    decimals,
    experts_of_file,
    one_of,
    one_per_expert,
    sources_of,
)
from vorta_trt.commands.sampling import SamplingOptions
from vorta_trt.commands.verify import Executor
from vorta_trt.model.precision import PrecisionName
from vorta_trt.plugins.host_memory import MOST_GIB
from vorta_trt.runtime.pipelines.sample_files import Naming
from vorta_trt.runtime.sampling.presets import PRESETS

if TYPE_CHECKING:
    from vorta_trt.runtime.console import Stages
    from vorta_trt.runtime.from_checkpoint import Source
    from vorta_trt.runtime.pipelines.making import MakeVideos, OnStep, OnVideo
    from vorta_trt.runtime.pipelines.planned import PlannedRequest
    from vorta_trt.runtime.pipelines.planner import RequestPlanner
    from vorta_trt.runtime.pipelines.residency import ResidencyChoice
    from vorta_trt.runtime.pipelines.sample_files import SampleFile


class Residency(str, Enum):
    """What is freed between encoding, denoising and decoding."""

    auto = "auto"
    resident = "resident"
    sequential = "sequential"


class Format(str, Enum):
    """How videos are written: encoded, or as unencoded frames."""

    mp4 = "mp4"
    npy = "npy"


@dataclass(frozen=True)
class VideoOptions(Options):
    """Prompts in, videos out."""

    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="The video: .mp4, .mkv, .mov, or .npy for the bare frames; with --prompts a folder.",
        ),
    ] = None
    prompt: Annotated[str | None, typer.Option(help="What the video shows.")] = None
    prompts: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Make videos of every prompt in this file: one a line, a JSON list, or VBench_full_info.json.",
        ),
    ] = None
    image: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The image that the video begins with, for models that take one."),
    ] = None
    last_image: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The image that the video ends with, for models that take one."),
    ] = None
    samples: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=100_000,
            help="With --prompts: videos of each prompt, from --seed, --seed + 1 and so on [default: 1].",
        ),
    ] = None
    naming: Annotated[
        Naming | None,
        typer.Option(
            help="With --prompts: number names videos 000.mp4, vbench PROMPT-0.mp4, authors as VORTA's script "
            "[default: number]."
        ),
    ] = None
    named_by: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="With --prompts: prompts to name the videos by, line by line, e.g. VBench's own for rewritten ones.",
        ),
    ] = None
    skip_existing: Annotated[
        bool, typer.Option("--skip-existing", help="With --prompts: leave out videos that are there already.")
    ] = False
    fps: Annotated[
        float | None, typer.Option(min=0.1, max=999, help="Frames per second [default: the model's own].")
    ] = None
    video_format: Annotated[Format, typer.Option("--format", help="The format of the videos of --prompts.")] = (
        Format.mp4
    )

    def check(self) -> None:
        """Raises a usage error if prompts are missing or given twice, or if the output is missing."""
        one_of("--prompt / --prompts", self.prompt, self.prompts)
        of_many = {"--samples": self.samples, "--naming": self.naming, "--named-by": self.named_by}
        of_many["--skip-existing"] = self.skip_existing or None
        if self.prompts is None and (given := [name for name, value in of_many.items() if value is not None]):
            raise typer.BadParameter("belongs to --prompts; give both", param_hint=given[0])
        if self.output is None:
            raise typer.BadParameter("is missing; give e.g. -o video.mp4", param_hint="--output")

    def images(self) -> dict[str, Path]:
        """The given images, by the name of the pipeline's argument."""
        given = {"image": self.image, "last_image": self.last_image}
        return {name: path for name, path in given.items() if path is not None}

    def jobs(self) -> list[SampleFile]:
        """Prompts and the files of their videos."""
        from vorta_trt.runtime.pipelines.prompts import read_prompts, warn_of_empty
        from vorta_trt.runtime.pipelines.sample_files import SampleFile, sample_files
        from vorta_trt.runtime.video_file import check_output

        assert self.output is not None
        if self.prompts is not None:
            return sample_files(
                self.output,
                read_prompts(self.prompts),
                f".{self.video_format.value}",
                naming=self.naming or Naming.number,
                samples=self.samples or 1,
                names=None if self.named_by is None else read_prompts(self.named_by),
                keep=self.skip_existing,
            )
        check_output(self.output)
        warn_of_empty(str(self.prompt))
        return [SampleFile(str(self.prompt), self.output, 0)]


@dataclass(frozen=True)
class EngineOptions(Options):
    """Options of how the parts of the pipeline run, and on which device."""

    executor: Annotated[
        Executor | None, typer.Option(help="What runs the model [default: tensorrt for bundles, onnxruntime for ONNX].")
    ] = None
    device: Annotated[str | None, typer.Option(help="The GPU, e.g. cuda:1 [default: the first].")] = None
    residency: Annotated[
        Residency,
        typer.Option(
            help="resident loads everything together; sequential encodes all prompts before the engine is opened, and "
            "decodes the videos after it is closed; auto does what the memory plan says of the GPU's free memory."
        ),
    ] = Residency.auto
    weight_streaming: Annotated[
        str | None,
        typer.Option(
            metavar="GIB|auto",
            help="How much of the weights stays on the GPU; for bundles built with --weight-streaming [default: all].",
        ),
    ] = None
    cuda_graph: Annotated[
        bool,
        typer.Option(
            "--cuda-graph/--no-cuda-graph",
            help="Replay the engine as a CUDA graph, which is impossible with streamed weights.",
        ),
    ] = True
    cpu_offload: Annotated[
        bool, typer.Option("--cpu-offload", help="Keep text encoders and VAE on the GPU only while they are used.")
    ] = False
    vae_tiling: Annotated[
        bool | None, typer.Option(help="Decode in tiles, which takes less memory [default: the model's own].")
    ] = None

    compile_vae: Annotated[
        bool,
        typer.Option(
            "--compile-vae", help="Compile the VAE's decoder where it runs in torch, which pays for several videos."
        ),
    ] = False

    vae_precision: Annotated[
        PrecisionName | None,
        typer.Option(
            help="What the VAE computes in where it runs in torch [default: the model's own; without a GPU fp32]."
        ),
    ] = None

    def arguments(self, in_torch: bool = False) -> dict[str, Any]:
        """The options as keyword arguments of `VortaPipeline`.

        With `in_torch`, for a checkpoint that runs in torch, there is no device: its models are loaded to one before.
        """
        around = {
            "residency": self.residency.value,
            "cpu_offload": self.cpu_offload,
            "vae_tiling": self.vae_tiling,
            "compile_vae": self.compile_vae,
            "vae_precision": self.vae_precision,
        }
        if in_torch:
            of_engines = {"--executor": self.executor, "--weight-streaming": self.weight_streaming}
            if given := [name for name, value in of_engines.items() if value is not None]:
                raise typer.BadParameter("is for engines, and a checkpoint runs in torch", param_hint=given[0])
            return around
        engine: dict[str, Any] = {} if self.cuda_graph else {"cuda_graph": False}
        if self.weight_streaming is not None:
            engine["weight_streaming_budget"] = _budget(self.weight_streaming)
        return {
            "executor": None if self.executor is None else self.executor.value,
            "device": self.device,
            **around,
            "engine": engine,
        }


@dataclass(frozen=True)
class CheckpointOptions(Options):
    """Options of a checkpoint that runs in torch. In a bundle or an exported file they are fixed."""

    router: Routers = None
    lora: Lora = None
    precision: Annotated[
        PrecisionName | None,
        typer.Option(help="The type of weights and activations of a checkpoint [default: bf16; without a GPU fp32]."),
    ] = None
    attention_precision: AttentionPrecisionOption = None
    linear_precision: LinearPrecisionOption = None
    linear_keep: LinearKeep = None

    def sources(self, target: Path, size: str | None, variant: str | None) -> tuple[Source, ...]:
        """The transformers of a checkpoint; empty for a bundle or an exported file, which refuses these options."""
        from vorta_trt.engines.manifest import MANIFEST
        from vorta_trt.model.checkpoint_place import is_checkpoint
        from vorta_trt.model.files import absence

        if not target.exists():
            there = absence(target, "no such bundle or ONNX file, and no such pipeline folder")
            raise FileNotFoundError(
                f"{target}: {there}; make one with `vorta-trt build` or `vorta-trt export`, or give a checkpoint"
            )
        if target.is_dir() and not (target / MANIFEST).exists() and not is_checkpoint(target):
            raise ValueError(
                f"{target}: is neither a bundle, it has no {MANIFEST}, nor a checkpoint, it has no weights; give the "
                f"folder that `vorta-trt build` wrote, or a diffusers folder"
            )
        given = [f"--{each.name.replace('_', '-')}" for each in fields(self) if getattr(self, each.name) is not None]
        if (target / MANIFEST).exists() or not is_checkpoint(target):
            if given:
                raise typer.BadParameter(
                    f"belongs to checkpoints, and {target} was exported or built, which fixed it; leave it out",
                    param_hint=given[0],
                )
            return ()
        import torch

        precision = self.precision or ("bf16" if torch.cuda.is_available() else "fp32")
        return tuple(
            sources_of(
                target,
                self.router,
                size,
                precision,
                None,
                self.attention_precision,
                None,
                variant,
                self.lora,
                self.linear_precision,
                self.linear_keep,
            )
        )


@dataclass(frozen=True)
class GpuOptions(Options):
    """Options of several GPUs that make a video together."""

    gpus: Gpus = None
    guidance_parallel: Annotated[
        bool | None,
        typer.Option(
            help="Compute both passes of guidance at once, each on half the GPUs [default: if there are two passes and "
            "an even number of GPUs]."
        ),
    ] = None
    gpu_timeout: Annotated[
        float | None,
        typer.Option(
            min=1,
            max=1_000_000,
            metavar="SECONDS",
            help="Fail where GPUs wait longer than this for each other [default: 300].",
        ),
    ] = None
    gpu_port: Annotated[
        int | None,
        typer.Option(
            min=1, max=65535, help="The port of this machine on which the processes meet [default: a free one]."
        ),
    ] = None
    compare_every: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="STEPS",
            help="With --strict: compare checksums of the latents of all GPUs every so many steps [default: 1].",
        ),
    ] = None

    def check(self, strict: bool, device: str | None) -> None:
        """Raises a usage error for options that would have no effect."""
        from vorta_trt.runtime.parallel.world import is_rank

        several = is_rank() or (self.gpus or 1) > 1
        given = {
            "--guidance-parallel": self.guidance_parallel,
            "--gpu-timeout": self.gpu_timeout,
            "--gpu-port": self.gpu_port,
            "--compare-every": self.compare_every,
        }
        given = {name: value for name, value in given.items() if value is not None}
        if not several and given:
            raise typer.BadParameter("is for several GPUs; give --gpus, or leave it out", param_hint=next(iter(given)))
        if several and device is not None:
            raise typer.BadParameter(
                f"{device}: each of several processes has the GPU of its number; choose GPUs with CUDA_VISIBLE_DEVICES",
                param_hint="--device",
            )
        if self.compare_every is not None and not strict:
            raise typer.BadParameter("is for --strict; give both", param_hint="--compare-every")
        if is_rank() and self.gpu_port is not None:
            raise typer.BadParameter("is torchrun's to choose; give it --master-port", param_hint="--gpu-port")
        if is_rank() and self.gpus is not None and self.gpus != int(os.environ["WORLD_SIZE"]):
            raise typer.BadParameter(
                f"{self.gpus}: torchrun started {os.environ['WORLD_SIZE']} processes; leave it out", param_hint="--gpus"
            )


def _budget(text: str) -> int | str:
    """The budget of weight streaming in bytes, or "auto", from the option's text."""
    if text == "auto":
        return text
    amounts = decimals(text, "--weight-streaming")
    if len(amounts) != 1 or not 0 <= amounts[0] < MOST_GIB:
        raise typer.BadParameter(
            f"{text!r}: must be auto, or GiB from 0, which streams the most; use e.g. 4.5",
            param_hint="--weight-streaming",
        )
    return int(amounts[0] * (1 << 30))


@command(
    'vorta-trt generate model.bundle --prompt "A cat walks on grass" -o cat.mp4',
    'vorta-trt generate model.bundle --image first.png --prompt "The cat runs away" -o cat.mp4',
    "vorta-trt generate model.bundle --cache tea --dense-first 2 --dry-run",
    "vorta-trt generate model.bundle --prompts prompts.txt --seed 1 -o videos",
    'vorta-trt generate distilled.bundle --preset lightning --prompt "A cat walks on grass" -o cat.mp4',
    'vorta-trt generate model.bundle --size 81x480x832 --prompt "A cat walks on grass" -o cat.mp4',
    'vorta-trt generate distilled.bundle --timesteps 1000,757,522 --renoise --prompt "A cat" -o cat.mp4',
    f'vorta-trt generate {EXAMPLE} --router ROUTER --gpus 4 --prompt "A cat walks on grass" -o cat.mp4',
)
def generate(
    target: Annotated[
        Path,
        typer.Argument(
            metavar="BUNDLE|ONNX|CHECKPOINT",
            help="A bundle, an exported ONNX file, or a diffusers folder, which runs in torch.",
        ),
    ],
    video: VideoOptions,
    sampling: SamplingOptions,
    engine: EngineOptions,
    of_checkpoint: CheckpointOptions,
    gpus: GpuOptions,
    checkpoint: PipelineFolder = None,
    variant: Variant = None,
    size: Annotated[
        str | None,
        typer.Option(
            metavar="FxHxW",
            help="The video size, for a bundle with several [default: the one whose aspect is closest to the image's, "
            "or without an image its first].",
        ),
    ] = None,
    route_override: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[high=|low=]FILE|none",
            help="Calibrated routes; with two experts, of each [default: those in the bundle, if there are any].",
        ),
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            metavar="|".join(PRESETS),
            help="Sample as a published model wants it; other options win. "
            + "; ".join(f"{name}: {preset.about}" for name, preset in PRESETS.items())
            + " [default: none].",
        ),
    ] = None,
    step_profile: StepProfileFile = None,
    locate: Annotated[
        bool | None,
        typer.Option(help="Where values are not finite, look for the layer on the CPU [default: if it runs there]."),
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Fail where something would run otherwise than asked for.")
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Show schedule, routes, skipped steps and predicted cost, with --gpus also memory and time of the "
            "GPUs, and sample nothing.",
        ),
    ] = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Generate videos from prompts, and from images.

    It runs diffusers' pipeline and swaps its transformer for the engine, or for the checkpoint's own with routed
    attention. The video has the engine's size. If a bundle has several sizes, it is that of --size, or the one whose
    aspect is closest to the image's. Every option defaults to the pipeline's own value, or to off.
    """
    from vorta_trt.model.video_size import VideoSize
    from vorta_trt.runtime.console import Stages
    from vorta_trt.runtime.pipelines.making import MakeVideos
    from vorta_trt.runtime.sampling.cost import StepProfile

    params = None if preset is not None else sampling.params()  # raises for bad values before anything is read
    if preset is not None and preset not in PRESETS:
        raise typer.BadParameter(f"{preset!r}: must be one of {', '.join(PRESETS)}", param_hint="--preset")
    if not dry_run:
        video.check()
    gpus.check(strict, engine.device)
    videos: list[dict[str, Any]] = []
    with Stages() as stages:
        stages("reading the model")
        sources = of_checkpoint.sources(target, size, variant)
        experts = tuple(source.component for source in sources)
        options = engine.arguments(in_torch=bool(sources))
        request = MakeVideos(
            None if sources else target,
            sources,
            checkpoint,
            _overrides(target, route_override, experts),
            variant,
            None if sources else size,
            pipeline={"strict": strict, **options},
            images=video.images(),
            frames_per_second=video.fps,
            locate=locate,
            guidance_parallel=gpus.guidance_parallel,
            check_every=(gpus.compare_every or 1) if strict else 0,
        )
        planner = request.planner()
        if size is None:
            planner = planner.for_images(video.images())
        if params is None:
            planner = planner.for_preset(str(preset)) if size is None else planner
            params = sampling.params(planner.preset(str(preset)))
        profile = None if step_profile is None else StepProfile.load(step_profile)
        planned = planner.plan(params, profile)  # raises for bad values before anything large is loaded
        if video.images() or not dry_run:
            planner.read_images(video.images())
        if not dry_run:
            jobs = video.jobs()
            if not jobs:
                typer.echo(json.dumps({"videos": []}) if as_json else f"every video is in {video.output} already")
                return
            first_seed = secrets.randbits(32) if params.seed is None else params.seed
            request = replace(
                request,
                size=None if sources else str(VideoSize(*planner.size)),
                params=params.updated(seed=None),
                prompts=tuple(job.prompt for job in jobs),
                seeds=tuple((first_seed + job.index) % (MOST_SEED + 1) for job in jobs),
                files=tuple(job.file for job in jobs),
            )
            made = _make(request, planner, planned, gpus, engine.device, stages, videos.append)
            if made is None:
                return
            residency = made
    if dry_run:
        from vorta_trt.runtime.pipelines.prediction import predict

        predicted = None if gpus.gpus is None else predict(request, planner, planned, gpus.gpus, profile)
        if as_json:
            of_gpus = {} if predicted is None else predicted.model_dump()
            typer.echo(json.dumps(planned.to_dict() | of_gpus))
        else:
            typer.echo("\n".join([*planned.lines(), *([] if predicted is None else predicted.lines())]))
    elif as_json:
        content = {"scheduler": planned.schedule.scheduler, "residency": residency.to_dict(), "videos": videos}
        typer.echo(json.dumps(content, indent=2))
    else:
        asked_for = engine.cpu_offload, engine.weight_streaming is not None
        if (
            residency.is_sequential
            or residency.in_turn
            or (residency.cpu_offload, residency.stream_weights) != asked_for
        ):
            typer.echo(f"residency {residency.residency.value}: {residency.reason}")
        for entry in videos:
            typer.echo(_line(entry))


def _make(
    request: MakeVideos,
    planner: RequestPlanner,
    planned: PlannedRequest,
    gpus: GpuOptions,
    device: str | None,
    stages: Stages,
    on_video: OnVideo,
) -> ResidencyChoice | None:
    """Makes the videos in this process, in processes that it starts (one per GPU), or as a rank that torchrun started.

    Returns:
        The residency: what was freed between the stages. None on ranks other than 0, since rank 0 reports.
    """
    import torch

    from vorta_trt.runtime.parallel.world import CPU, CUDA, TIMEOUT, is_rank, join
    from vorta_trt.runtime.pipelines import making

    told: dict[str, Any] = {
        "on_video": on_video,
        "on_step": _step_bar(stages, len(request.files), planned),
        "on_stage": stages,
    }
    timeout = gpus.gpu_timeout or TIMEOUT
    stages("loading text encoder, VAE and transformer")
    if is_rank():
        with join(making.kind_of(request), timeout=timeout) as world:
            residency = making.make_as_rank(world, world.from_first(request), **told)
            return residency if world.is_first else None
    if (gpus.gpus or 1) > 1:
        count = int(gpus.gpus or 1)
        making.layout_of(request, planner, planned, count)  # raises if the layout is impossible, before processes start
        return making.make_with_gpus(request, count, port=gpus.gpu_port, timeout=timeout, **told)
    if request.sources:
        planner = request.planner(torch.device(device or (CUDA if torch.cuda.is_available() else CPU)))
    return making.make_videos(request, planner, **told)


def _overrides(
    target: Path, given: list[str] | None, experts: tuple[str, ...]
) -> Mapping[str, str | None] | str | None:
    """The value of `--route-override` as `RequestPlanner` takes it; a single `none` is for both of two experts."""
    from vorta_trt.runtime.pipelines.experts import BUNDLED

    if not given:
        return BUNDLED
    if given == ["none"]:
        return None
    choice = one_per_expert(given, "--route-override", experts or experts_of_file(target))
    return {component: None if file == "none" else file for component, file in choice.items()}


def _step_bar(stages: Stages, count: int, planned: PlannedRequest) -> OnStep:
    """A callback that shows the step that begins, and whether it is reused or which branches its heads take."""

    def show(number: int, step: int) -> None:
        of_several = f"video {number + 1} of {count}, " if count > 1 else ""
        plan = planned.steps
        what = ""
        if not plan.compute[step]:
            what = ": reused"
        elif plan.routes is not None:
            shares = plan.routes.shares_per_step()
            what = ": " + ", ".join(f"{100 * float(share[step]):.0f} % {name}" for name, share in shares.items())
        stages(f"{of_several}step {step + 1}{what}", step, len(plan.compute))

    return show


def _line(video: dict[str, Any]) -> str:
    reused = f" ({video['reused_steps']} reused)" if video["reused_steps"] else ""
    fallbacks = f"; {'; '.join(video['fallbacks'])}" if video["fallbacks"] else ""
    return (
        f"wrote {video['output']}: seed {video['seed']}, {video['steps']} steps{reused}, {video['launches']} launches, "
        f"{video['seconds']:.1f} s{fallbacks}"
    )
