# SPDX-License-Identifier: Apache-2.0
"""`vorta-trt generate`."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vorta_trt.commands.app import AsJson, Debug, command
from vorta_trt.commands.expand import Options
from vorta_trt.commands.options import (
    MOST_SEED,
    OneSize,
    PipelineFolder,
    StepProfileFile,
    Target,
    Variant,
    decimals,
    experts_of_file,
    one_of,
    one_per_expert,
)
from vorta_trt.commands.sampling import SamplingOptions
from vorta_trt.commands.verify import Executor
from vorta_trt.runtime.pipelines.sample_files import Naming
from vorta_trt.runtime.sampling.presets import PRESETS

if TYPE_CHECKING:
    from vorta_trt.runtime.console import Stages
    from vorta_trt.runtime.pipelines.pipeline import GeneratedVideo
    from vorta_trt.runtime.pipelines.planned import PlannedRequest
    from vorta_trt.runtime.pipelines.sample_files import SampleFile
    from vorta_trt.runtime.pipelines.stages import OnStep


MOST_GIB = 1 << 33  # TensorRT counts bytes in 64 bits


class Residency(str, Enum):
    """What is freed between encoding, denoising and decoding."""

    auto = "auto"
    resident = "resident"
    sequential = "sequential"


class Format(str, Enum):
    """How videos are written: encoded, or as bare frames."""

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
            min=1, help="With --prompts: videos of each prompt, from --seed, --seed + 1 and so on [default: 1]."
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
        """Makes a usage error of prompts that are missing, or given twice, and of a missing output."""
        one_of("--prompt / --prompts", self.prompt, self.prompts)
        of_many = {"--samples": self.samples, "--naming": self.naming, "--named-by": self.named_by}
        of_many["--skip-existing"] = self.skip_existing or None
        if self.prompts is None and (given := [name for name, value in of_many.items() if value is not None]):
            raise typer.BadParameter("belongs to --prompts; give both", param_hint=given[0])
        if self.output is None:
            raise typer.BadParameter("is missing; give e.g. -o video.mp4", param_hint="--output")

    def images(self) -> dict[str, Path]:
        """The images by the pipeline's argument."""
        given = {"image": self.image, "last_image": self.last_image}
        return {name: path for name, path in given.items() if path is not None}

    def jobs(self) -> list[SampleFile]:
        """Prompts and the files of their videos."""
        from vorta_trt.runtime.pipelines.prompts import read_prompts
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
        return [SampleFile(str(self.prompt), self.output, 0)]


@dataclass(frozen=True)
class EngineOptions(Options):
    """Where and how the parts of the pipeline run."""

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

    def arguments(self) -> dict[str, Any]:
        """As keywords of `VortaPipeline`."""
        engine: dict[str, Any] = {} if self.cuda_graph else {"cuda_graph": False}
        if self.weight_streaming is not None:
            engine["weight_streaming_budget"] = _budget(self.weight_streaming)
        return {
            "executor": None if self.executor is None else self.executor.value,
            "device": self.device,
            "residency": self.residency.value,
            "cpu_offload": self.cpu_offload,
            "vae_tiling": self.vae_tiling,
            "compile_vae": self.compile_vae,
            "engine": engine,
        }


def _budget(text: str) -> int | str:
    """Bytes of weights on the GPU, or "auto"."""
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
)
def generate(
    target: Target,
    video: VideoOptions,
    sampling: SamplingOptions,
    engine: EngineOptions,
    checkpoint: PipelineFolder = None,
    variant: Variant = None,
    size: OneSize = None,
    route_override: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[high=|low=]FILE|none",
            help="Calibrated routes, of two experts for each [default: those in the bundle, if there are any].",
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
        typer.Option("--dry-run", help="Show schedule, routes, skipped steps and predicted cost, and sample nothing."),
    ] = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Generate videos from prompts, and from images.

    It runs diffusers' pipeline and swaps its transformer for the engine. The video has the engine's size; of a bundle
    of several, that of --size, or the one whose aspect is closest to the image's. Every option defaults to the
    pipeline's own value, or to off.
    """
    from vorta_trt.model.video_size import VideoSize
    from vorta_trt.runtime.console import Stages
    from vorta_trt.runtime.pipelines.pipeline import VortaPipeline
    from vorta_trt.runtime.pipelines.planner import RequestPlanner
    from vorta_trt.runtime.sampling.cost import StepProfile

    params = None if preset is not None else sampling.params()  # says what is wrong before anything is read
    if preset is not None and preset not in PRESETS:
        raise typer.BadParameter(f"{preset!r}: must be one of {', '.join(PRESETS)}", param_hint="--preset")
    if not dry_run:
        video.check()
    videos: list[dict[str, Any]] = []
    with Stages() as stages:
        stages("reading the model")
        overrides = _overrides(target, route_override)
        planner = RequestPlanner(target, checkpoint, route_override=overrides, variant=variant, size=size)
        if size is None:
            planner = planner.for_images(video.images())
        if params is None:
            planner = planner.for_preset(str(preset)) if size is None else planner
            params = sampling.params(planner.preset(str(preset)))
        profile = None if step_profile is None else StepProfile.load(step_profile)
        planned = planner.plan(params, profile)  # says what is wrong before anything large is loaded
        if video.images() or not dry_run:
            planner.read_images(video.images())
        if not dry_run:
            jobs = video.jobs()
            if not jobs:
                typer.echo(json.dumps({"videos": []}) if as_json else f"every video is in {video.output} already")
                return
            first_seed = secrets.randbits(32) if params.seed is None else params.seed

            def write(number: int, made: GeneratedVideo) -> None:
                file = made.save(jobs[number].file, video.fps)
                videos.append({"output": str(file), **made.to_dict()})

            stages("loading text encoder, VAE and engine")
            with VortaPipeline(planner, strict=strict, **engine.arguments()) as pipe:
                pipe.generate_each(
                    [job.prompt for job in jobs],
                    write,
                    params=params.updated(seed=None),
                    seeds=[(first_seed + job.index) % (MOST_SEED + 1) for job in jobs],
                    size=VideoSize(*planner.size),
                    image=video.image,
                    last_image=video.last_image,
                    locate=locate,
                    on_step=_step_bar(stages, len(jobs)),
                    on_stage=stages,
                )
                residency = pipe.residency
    if dry_run:
        typer.echo(json.dumps(planned.to_dict()) if as_json else "\n".join(planned.lines()))
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


def _overrides(target: Path, given: list[str] | None) -> Mapping[str, str | None] | str | None:
    """What `RequestPlanner` takes for `--route-override`; one `none` is for both of two experts."""
    from vorta_trt.runtime.pipelines.experts import BUNDLED

    if not given:
        return BUNDLED
    if given == ["none"]:
        return None
    choice = one_per_expert(given, "--route-override", experts_of_file(target))
    return {component: None if file == "none" else file for component, file in choice.items()}


def _step_bar(stages: Stages, count: int) -> OnStep:
    """Shows the step that begins, and what it does."""

    def show(number: int, step: int, planned: PlannedRequest) -> None:
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
