# SPDX-License-Identifier: Apache-2.0
"""`vorta-trt bench`: one command per benchmark."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from vorta_trt.commands.app import CONTEXT, AsJson, Debug, app, command
from vorta_trt.commands.options import (
    listed,
    numbers,
)

bench = typer.Typer(
    help="Measure the kernels beside everything else that computes the same.",
    epilog="\b\nExample:\n  vorta-trt bench attention --output attention.json --plot attention.png",
    no_args_is_help=True,
    rich_markup_mode=None,
    context_settings=CONTEXT,
)
app.add_typer(bench, name="bench")


class HalfType(str, Enum):
    bf16 = "bf16"
    fp16 = "fp16"


class BenchInputs(str, Enum):
    normal = "normal"
    outliers = "outliers"


@command(
    "vorta-trt bench attention --output attention.json --plot attention.png",
    "vorta-trt bench attention --geometry wan-14b --heads 8 --branch full,sliding --peers cudnn,flash4",
    "vorta-trt bench attention --small --json",
    "vorta-trt bench attention --from attention.json --plot attention.png",
    group=bench,
)
def attention(
    geometry: Annotated[
        list[str] | None,
        typer.Option(help="wan-1.3b, wan-14b, hunyuan, aligned or a grid of the small set [default: the first four]."),
    ] = None,
    heads: Annotated[list[str] | None, typer.Option(help="Heads of a call [default: 8 and the model's own].")] = None,
    text_length: Annotated[
        list[str] | None, typer.Option(help="Valid text tokens, where there is text [default: 77 and 256].")
    ] = None,
    branch: Annotated[
        list[str] | None, typer.Option(help="full, coreset, sliding or mixed [default: all four].")
    ] = None,
    peers: Annotated[
        list[str] | None, typer.Option(help="cudnn, flash2, flash4, flex, gather or none [default: all].")
    ] = None,
    precision: Annotated[
        list[str] | None, typer.Option(help="same or fp8, of the products inside the kernels [default: same].")
    ] = None,
    dtype: Annotated[HalfType, typer.Option(help="Of query, key, value and output.")] = HalfType.bf16,
    head_dim: Annotated[int, typer.Option(help="A multiple of 8, at most 256.")] = 128,
    inputs: Annotated[
        BenchInputs, typer.Option(help="outliers: some channels of query and key are 16 times as large.")
    ] = BenchInputs.normal,
    small: Annotated[bool, typer.Option("--small", help="About 1,000 to 10,000 tokens, 12 heads.")] = False,
    seed: Annotated[int, typer.Option(min=0, help="Of the random inputs.")] = 0,
    seconds: Annotated[float, typer.Option(min=0.01, help="GPU time of one measurement, about.")] = 0.5,
    junit: Annotated[
        Path | None, typer.Option(help="Put the errors that the GPU tests recorded in this JUnit file into the report.")
    ] = None,
    from_file: Annotated[
        Path | None, typer.Option("--from", help="Show this report of an earlier --output; measure nothing.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write the report as JSON to this file.")
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw useful TFLOP/s into this file (.png, .svg, .pdf).")] = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Time the routed-attention kernels beside dense, sparse and gathered attention of others.

    Everything is checked against float32 before it is timed. Options that take several values may be repeated or take a
    list with commas. Two to three minutes on an H200.
    """
    from vorta_trt.benchmarks.report import Report, recorded_errors

    if from_file is not None:
        report = Report.read(from_file)
    else:
        from vorta_trt.benchmarks.attention import Options, run
        from vorta_trt.benchmarks.cases import BRANCHES
        from vorta_trt.runtime.console import Stages

        try:
            options = Options(
                geometries=listed(geometry),
                heads=numbers(heads, "--heads"),
                text_lengths=numbers(text_length, "--text-length"),
                branches=listed(branch) or BRANCHES,
                peers=listed(peers),
                precisions=listed(precision) or ("same",),
                dtype=dtype.value,
                head_dim=head_dim,
                inputs=inputs.value,
                small=small,
                seed=seed,
                seconds=seconds,
            )
        except ValueError as error:
            raise typer.BadParameter(str(error)) from error
        with Stages() as stages:
            report = run(options, stages)
    if junit is not None:
        report = Report({**report.about, "errors": recorded_errors(junit)}, report.rows)
    if output is not None:
        output.write_text(report.to_json() + "\n", encoding="utf-8")
    if plot is not None:
        from vorta_trt.benchmarks.plot import plot_report

        plot_report(report, plot)
    if as_json:
        typer.echo(report.to_json())
    else:
        from vorta_trt.benchmarks.table import case_table, headline, remarks
        from vorta_trt.runtime.console import output_console

        console = output_console()
        console.print(headline(report), markup=False, soft_wrap=True)
        for rows in report.cases().values():
            console.print(case_table(rows))
            for line in remarks(rows):
                console.print(line, markup=False, soft_wrap=True)
        for path in filter(None, (output, plot)):
            typer.echo(f"wrote {path}")
    raise typer.Exit(0 if report.passed else 1)
