# SPDX-License-Identifier: Apache-2.0
"""`vorta-trt generate`."""

from __future__ import annotations

import json
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vorta_trt.commands.app import AsJson, Debug, command
from vorta_trt.commands.options import MOST_SEED, Scheduler, Shift, decimals
from vorta_trt.commands.sampling_options import (
    CacheCoefficients,
    CacheInterval,
    CacheOption,
    CacheRange,
    CacheSignalOption,
    CacheThreshold,
    DenseFirst,
    DenseLast,
    DenseLayers,
    DryRun,
    RunTau,
    SamplingOptions,
    Strict,
)
from vorta_trt.commands.verify import Executor

if TYPE_CHECKING:
    from vorta_trt.runtime.console import Stages
    from vorta_trt.runtime.pipelines.generator import GeneratedVideo
    from vorta_trt.runtime.pipelines.planner import PlannedRequest
    from vorta_trt.runtime.pipelines.sampler import OnStep


class GuidanceBatching(str, Enum):
    auto = "auto"
    batched = "batched"
    sequential = "sequential"


class MemoryMode(str, Enum):
    auto = "auto"
    resident = "resident"
    staged = "staged"


class Format(str, Enum):
    mp4 = "mp4"
    npy = "npy"


@command(
    'vorta-trt generate wan.bundle --prompt "A cat walks on grass" -o cat.mp4',
    "vorta-trt generate wan.bundle --cache tea --dense-first 2 --dry-run",
    "vorta-trt generate wan.bundle --prompts prompts.txt --seed 1 -o videos",
    'vorta-trt generate distilled.bundle --timesteps 1000,757,522 --renoise --prompt "A cat" -o cat.mp4',
)
def generate(
    target: Annotated[Path, typer.Argument(metavar="BUNDLE|ONNX", help="What was built or exported.")],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="The video: .mp4, .mkv, .mov, or .npy for the bare frames; a folder for --prompts."
        ),
    ] = None,
    prompt: Annotated[str | None, typer.Option(help="What the video shows.")] = None,
    prompts: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A prompt per line; the videos are 000.mp4 and so on.")
    ] = None,
    negative_prompt: Annotated[str | None, typer.Option(help="What guidance leads away from.")] = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            help="The pipeline folder, for text encoder, VAE and scheduler [default: the one that the bundle was made "
            "from, if it lies beside it or here]."
        ),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(min=0, max=MOST_SEED, help="The seed of every video's noise [default: a fresh one, printed]."),
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Sampling steps [default: 50].")] = None,
    scheduler: Annotated[
        Scheduler | None, typer.Option(help="The scheduler that makes the timesteps [default: the pipeline's own].")
    ] = None,
    shift: Shift = None,
    timesteps: Annotated[
        str | None,
        typer.Option(
            metavar="T,T,...",
            help="The steps themselves, for distilled models, e.g. 1000,757,522; guidance is then off by default.",
        ),
    ] = None,
    sigmas: Annotated[
        str | None, typer.Option(metavar="S,S,...", help="The same as sigmas: timesteps over 1000.")
    ] = None,
    renoise: Annotated[
        bool, typer.Option("--renoise", help="Fresh noise after each given step, as DMD-distilled models want.")
    ] = False,
    guidance_scale: Annotated[
        float | None,
        typer.Option(help="1 is off for Wan; HunyuanVideo takes it as an input [default: 5 for Wan, 6]."),
    ] = None,
    true_guidance_scale: Annotated[
        float, typer.Option(min=1, help="HunyuanVideo: guidance with a negative prompt, at twice the cost; 1 is off.")
    ] = 1.0,
    guidance_batching: Annotated[
        GuidanceBatching,
        typer.Option(help="Both samples of guidance in one launch; auto: if the engine's batch and memory allow."),
    ] = GuidanceBatching.auto,
    cache: CacheOption = None,
    cache_threshold: CacheThreshold = None,
    cache_coefficients: CacheCoefficients = None,
    cache_signal: CacheSignalOption = None,
    cache_range: CacheRange = None,
    cache_interval: CacheInterval = None,
    route_override: Annotated[
        str | None,
        typer.Option(metavar="FILE|none", help="Calibrated routes [default: those in the bundle, if there are any]."),
    ] = None,
    dense_first: DenseFirst = 0,
    dense_last: DenseLast = 0,
    dense_layers: DenseLayers = None,
    tau: RunTau = None,
    step_profile: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Measured seconds of a step's parts, to predict the time.")
    ] = None,
    fps: Annotated[
        float | None, typer.Option(min=0.1, max=999, help="Frames per second [default: 16 for Wan, 24].")
    ] = None,
    video_format: Annotated[
        Format, typer.Option("--format", help="The format of the videos of --prompts.")
    ] = Format.mp4,
    executor: Annotated[
        Executor | None, typer.Option(help="What runs it [default: tensorrt for bundles, onnxruntime for ONNX].")
    ] = None,
    device: Annotated[str | None, typer.Option(help="GPU, e.g. cuda:1 [default: the first].")] = None,
    memory_mode: Annotated[
        MemoryMode,
        typer.Option(
            help="resident: all is loaded together. staged: all prompts are encoded before the engine is opened, the "
            "videos decoded after it is closed. auto: what the memory plan says of the GPU's free memory."
        ),
    ] = MemoryMode.auto,
    weight_streaming: Annotated[
        str | None,
        typer.Option(
            metavar="GIB|auto",
            help="Weights that stay on the GPU, of bundles built with --weight-streaming [default: all].",
        ),
    ] = None,
    cuda_graph: Annotated[
        bool,
        typer.Option(
            "--cuda-graph/--no-cuda-graph",
            help="Replay the engine as a CUDA graph; impossible with streamed weights.",
        ),
    ] = True,
    cpu_offload: Annotated[
        bool, typer.Option("--cpu-offload", help="Text encoders and VAE are on the GPU only while they are used.")
    ] = False,
    vae_tiling: Annotated[
        bool | None, typer.Option(help="Decode in tiles, with less memory [default: only HunyuanVideo].")
    ] = None,
    locate: Annotated[
        bool | None,
        typer.Option(help="Where values are not finite, look for the layer on the CPU [default: if it runs there]."),
    ] = None,
    strict: Strict = False,
    dry_run: DryRun = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Generate videos from prompts.

    With diffusers' pipeline, in which the engine takes the place of the transformer. The video's size is the engine's.
    """
    from vorta_trt.runtime.console import Stages
    from vorta_trt.runtime.pipelines.generator import VideoGenerator
    from vorta_trt.runtime.pipelines.planner import BUNDLED, RequestPlanner
    from vorta_trt.runtime.sampling.cost import StepProfile
    from vorta_trt.runtime.sampling.params import GuidanceMode, SamplingParams

    _one_of("--prompt / --prompts", prompt, prompts, needed=not dry_run)
    _one_of("--timesteps / --sigmas", timesteps, sigmas)
    if not dry_run and output is None:
        raise typer.BadParameter("is missing; give e.g. -o video.mp4", param_hint="--output")
    if steps is not None and (timesteps is not None or sigmas is not None):
        raise typer.BadParameter("the given timesteps or sigmas are the steps; leave it out", param_hint="--steps")
    options = SamplingOptions(
        cache,
        cache_threshold,
        cache_coefficients,
        cache_signal,
        cache_range,
        cache_interval,
        dense_first,
        dense_last,
        dense_layers,
    )
    with Stages() as stages:
        stages("reading the model")
        bundled = BUNDLED if route_override is None else None if route_override == "none" else route_override
        planner = RequestPlanner(target, checkpoint, route_override=bundled)
        guards = options.guards()
        params = SamplingParams(
            num_inference_steps=steps,  # type: ignore[arg-type]  # None is the default
            scheduler=None if scheduler is None else scheduler.value,
            flow_shift=shift,
            sigmas=None if sigmas is None else decimals(sigmas, "--sigmas"),
            timesteps=None if timesteps is None else decimals(timesteps, "--timesteps"),
            renoise=renoise,
            guidance_scale=guidance_scale,
            true_cfg_scale=true_guidance_scale,
            negative_prompt=negative_prompt,
            seed=seed,
            guidance_batching=GuidanceMode(guidance_batching.value),
            cache=options.step_cache(planner.path),
            dense_first=guards.dense_first,
            dense_last=guards.dense_last,
            dense_layers=guards.dense_layers,
            tau=tau,
        )
        profile = None if step_profile is None else StepProfile.load(step_profile)
        planned = planner.plan(params, profile)  # says what is wrong before anything large is loaded
        if not dry_run:
            jobs = _jobs(prompt, prompts, output, video_format)
            engine: dict[str, Any] = {} if cuda_graph else {"cuda_graph": False}
            if weight_streaming is not None:
                engine["weight_streaming_budget"] = _budget(weight_streaming)
            stages("loading text encoder, VAE and engine")
            videos: list[dict[str, Any]] = []

            def write(number: int, video: GeneratedVideo) -> None:
                file = video.save(jobs[number][1], fps)
                videos.append({"output": str(file), **video.to_dict()})

            with VideoGenerator(
                planner,
                executor=None if executor is None else executor.value,
                device=device,
                strict=strict,
                memory_mode=memory_mode.value,
                cpu_offload=cpu_offload,
                vae_tiling=vae_tiling,
                engine=engine,
            ) as generator:
                generator.generate_each(
                    [text for text, _ in jobs],
                    write,
                    params=params,
                    locate=locate,
                    on_step=_step_bar(stages, len(jobs)),
                    on_stage=stages,
                )
                memory = generator.memory
    if dry_run:
        typer.echo(json.dumps(planned.to_dict()) if as_json else "\n".join(planned.lines()))
    elif as_json:
        content = {"scheduler": planned.schedule.scheduler, "memory": memory.to_dict(), "videos": videos}
        typer.echo(json.dumps(content, indent=2))
    else:
        if memory.is_staged or (memory.cpu_offload, memory.stream_weights) != (
            cpu_offload,
            weight_streaming is not None,
        ):
            typer.echo(f"memory mode {memory.mode.value}: {memory.reason}")
        for entry in videos:
            typer.echo(_line(entry))


def _one_of(options: str, *values: object, needed: bool = False) -> None:
    given = sum(value is not None for value in values)
    if given > 1 or (needed and not given):
        raise typer.BadParameter("give one of them", param_hint=options)


def _budget(text: str) -> int | str:
    """Bytes, or "auto"."""
    return text if text == "auto" else int(decimals(text, "--weight-streaming")[0] * (1 << 30))


def _jobs(prompt: str | None, prompts: Path | None, output: Path | None, suffix: Format) -> list[tuple[str, Path]]:
    """Prompts and the files of their videos."""
    from vorta_trt.runtime.pipelines.prompts import output_files, read_prompts
    from vorta_trt.runtime.video_file import check_output

    assert output is not None
    if prompts is not None:
        texts = read_prompts(prompts)
        return list(zip(texts, output_files(output, len(texts), f".{suffix.value}"), strict=True))
    assert prompt is not None
    check_output(output)
    return [(prompt, output)]


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
