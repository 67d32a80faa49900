# SPDX-License-Identifier: Apache-2.0
"""`vorta-trt bench step`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vorta_trt.commands.app import AsJson, Debug, command
from vorta_trt.commands.bench import HalfType, bench
from vorta_trt.commands.options import check_folder, listed


@command(
    "vorta-trt bench step --model wan-14b --output step.json --plot step.png",
    "vorta-trt bench step --model hunyuan-video --mode compiled --mix 50/50 --no-loops",
    "vorta-trt bench step --from step.json --plot step.png",
    group=bench,
)
def step(
    model: Annotated[str, typer.Option(help="wan-1.3b, wan-14b or hunyuan-video.")] = "wan-14b",
    layers: Annotated[int | None, typer.Option(min=1, help="Fewer layers than the model has.")] = None,
    mix: Annotated[
        list[str] | None,
        typer.Option(help="Percent of coreset and sliding heads, or dense [default: dense, 30/70, 50/50, 70/30]."),
    ] = None,
    mode: Annotated[list[str] | None, typer.Option(help="eager, compiled [default: both].")] = None,
    peers: Annotated[list[str] | None, typer.Option(help="cudnn, diffusers or none [default: both].")] = None,
    precision: Annotated[
        list[str] | None, typer.Option(help="same or fp8, of our attention's products [default: same].")
    ] = None,
    dtype: Annotated[HalfType, typer.Option(help="Of weights and activations.")] = HalfType.bf16,
    steps: Annotated[int, typer.Option(min=1, help="Timed passes of each row.")] = 5,
    bundle: Annotated[
        Path | None, typer.Option(help="An engine of the same model, batch 1, to be measured as well.")
    ] = None,
    loops: Annotated[bool, typer.Option("--loops/--no-loops", help="Sampling loops as well.")] = True,
    seed: Annotated[int, typer.Option(min=0, help="Of weights, inputs and routes.")] = 0,
    from_file: Annotated[
        Path | None, typer.Option("--from", help="Show this report of an earlier --output; measure nothing.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write the report as JSON to this file.")
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw the report into this file (.png, .svg, .pdf).")] = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Time whole transformer steps and sampling loops: routed beside dense, with random weights at real size.

    Dense is the same code with cuDNN's attention, and diffusers' own model. The largest model takes 32 GiB. On an H100
    everything takes a quarter of an hour, --mode compiled --peers cudnn five to six minutes.
    """
    from vorta_trt.benchmarks.step.report import StepReport
    from vorta_trt.model.route_picture import check_picture

    check_folder(output, "--output")
    if plot is not None:
        check_picture(plot)
    if from_file is not None:
        report = StepReport.read(from_file)
    else:
        from vorta_trt.benchmarks.attention import require_gpu
        from vorta_trt.benchmarks.step.cases import DENSE, MIXES
        from vorta_trt.benchmarks.step.run import MODES, PEERS, StepOptions, run
        from vorta_trt.runtime.console import Stages

        chosen = listed(peers)
        try:
            options = StepOptions(
                model=model,
                layers=layers,
                mixes=listed(mix) or (DENSE, *MIXES),
                modes=listed(mode) or MODES,
                peers=() if chosen == ("none",) else chosen or tuple(PEERS),
                precisions=listed(precision) or ("same",),
                dtype=dtype.value,
                steps=steps,
                loops=loops,
                seed=seed,
                bundle=bundle,
            )
        except ValueError as error:
            raise typer.BadParameter(str(error)) from error
        require_gpu("bench step")
        with Stages() as stages:
            report = run(options, stages)
    if output is not None:
        output.write_text(report.to_json() + "\n", encoding="utf-8")
    if plot is not None:
        from vorta_trt.benchmarks.step.plot import plot_report

        plot_report(report, plot)
    if as_json:
        typer.echo(report.to_json())
    else:
        from vorta_trt.benchmarks.step.table import headline, loop_table, remarks, step_table
        from vorta_trt.runtime.console import output_console

        console = output_console()
        console.print(headline(report), markup=False, soft_wrap=True)
        console.print(step_table(report))
        if report.loops:
            console.print(loop_table(report))
        for line in remarks(report):
            console.print(line, markup=False, soft_wrap=True)
        for path in filter(None, (output, plot)):
            typer.echo(f"wrote {path}")
    raise typer.Exit(0 if report.passed else 1)
