# SPDX-License-Identifier: Apache-2.0
"""`vorta-trt calibrate`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from vorta_trt.commands.app import EXAMPLE, AsJson, Debug, command
from vorta_trt.commands.options import (
    Checkpoint,
    Device,
    ExpertOption,
    Lora,
    RoutesPlot,
    Variant,
    check_folder,
    expert_of,
    loras,
    one_of,
    per_expert,
    pixels,
)
from vorta_trt.commands.sampling import RunOptions
from vorta_trt.commands.settings_options import SettingsOptions


class CalibrationOptions(SettingsOptions):
    """Options of the choice of routes."""

    names = ("budget", "target_share", "buckets", "samples", "run_steps", "dtype")

    @classmethod
    def model(cls) -> Any:
        """Imports the settings."""
        from vorta_trt.model.calibration.settings import CalibrationSettings

        return CalibrationSettings


@command(
    f"vorta-trt calibrate {EXAMPLE} --prompts prompts.txt --size 77x720x1280 -o calibration.json",
    f"vorta-trt calibrate {EXAMPLE} --data DATA --target-share 0.3 -o calibration.json --plot routes.png",
    "vorta-trt calibrate TWO-EXPERTS --expert low --prompts prompts.txt --size 81x720x1280 -o low.json",
    f"vorta-trt build {EXAMPLE} --route-override calibration.json -o model.bundle",
)
def calibrate(
    checkpoint: Checkpoint,
    output: Annotated[Path, typer.Option("--output", "-o", help="The JSON file to write, for --route-override.")],
    goal: CalibrationOptions,
    sampling: RunOptions,
    expert: ExpertOption = None,
    lora: Lora = None,
    variant: Variant = None,
    prompts: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Measure in short denoising runs of the prompts of this file.")
    ] = None,
    image: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The image that the videos of --prompts begin with, if the model takes one."),
    ] = None,
    last_image: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The image that the videos of --prompts end with, if the model takes one."),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(help="Measure on this folder of `train-router prepare`, or one in the authors' layout."),
    ] = None,
    size: Annotated[
        str | None, typer.Option(metavar="FxHxW", help="Frames x height x width in pixels [default: the data's].")
    ] = None,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave out samples that cannot be used.")] = False,
    linear_output: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Also measure what fp8 does to each linear layer, and write this JSON file, for --linear-calibration.",
        ),
    ] = None,
    device: Annotated[Device, typer.Option(help="auto is the GPU, if there is one.")] = Device.auto,
    plot: RoutesPlot = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Choose routes without a router.

    A few prompts or samples are enough. In dense passes, each branch of every head is compared with full attention.
    Then the cheapest branches are taken whose errors stay within the budget, per layer, head and bucket of timesteps,
    and checked on what was held back.
    """
    from vorta_trt.model import route_calibration
    from vorta_trt.model.calibration import calibrate_routes, linears
    from vorta_trt.model.route_picture import check_picture
    from vorta_trt.runtime.console import Stages
    from vorta_trt.runtime.pipelines.prompts import read_prompts
    from vorta_trt.runtime.schedules import schedule_timesteps

    one_of("--prompts / --data", prompts, data)
    if prompts is not None and size is None:
        raise typer.BadParameter("must be given with --prompts, e.g. 77x720x1280", param_hint="--size")
    check_folder(output, "--output", route_calibration.KIND)
    check_folder(linear_output, "--linear-output", linears.KIND)
    component, experts = expert_of(checkpoint, expert, variant)
    loras_of = per_expert(lora, "--lora", experts)
    params = sampling.params()
    settings = goal.settings(guidance_scale=params.guidance_scale, seed=params.seed or 0)
    if plot is not None:
        check_picture(plot)

    def make_scheduler(count: int) -> Any:
        return schedule_timesteps(checkpoint, count, params.scheduler, params.flow_shift).instance

    with Stages() as stages:
        report = calibrate_routes(
            checkpoint,
            output,
            make_scheduler,
            settings,
            component=component,
            variant=variant,
            lora=loras(loras_of.get(component)),
            first_lora=loras(loras_of.get(experts[0])),
            data=data,
            prompts=None if prompts is None else read_prompts(prompts),
            images={name: path for name, path in (("image", image), ("last_image", last_image)) if path is not None},
            video_size=None if size is None else pixels(size),
            steps=params.num_inference_steps,
            skip_bad=skip_bad,
            linear_output=linear_output,
            device=device.value,
            progress=stages,
        )
        if plot is not None:
            stages("drawing the picture")
            report.table.plot(plot)
    if as_json:
        typer.echo(report.to_json())
        return
    fused = [text for given in lora or () for text in ("--lora", given)]
    routes = str(output) if expert is None else f"{expert.value}={output}"
    fused += [] if variant is None else ["--variant", variant]
    following = ["vorta-trt", "build", str(checkpoint), *fused, "--route-override", routes, "-o", "BUNDLE"]
    typer.echo(report.summary())
    for path in filter(None, (output, linear_output, plot)):
        typer.echo(f"wrote {path}")
    typer.echo(f"next: {shlex.join(following)}")
