# SPDX-License-Identifier: Apache-2.0
"""`vorta-trt demo`."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from vorta_trt.commands.app import AsJson, Debug, command
from vorta_trt.model.families import family_names

FAMILIES = tuple(name.replace("_", "-") for name in family_names())
ModelFamily = Enum("ModelFamily", {name: name for name in FAMILIES}, type=str)  # type: ignore[misc]
DEFAULT = ModelFamily(FAMILIES[0])


@command("vorta-trt demo --output demo", f"vorta-trt demo --family {FAMILIES[-1]} --output demo")
def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder for everything that it makes.")] = Path(
        "demo"
    ),
    family: Annotated[ModelFamily, typer.Option(help="The model family of the small model.")] = DEFAULT,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Go from a checkpoint to a video with a small model.

    It makes a pipeline and a router, exports, builds, verifies, shows the routes, and generates a video in ONNX
    Runtime. It takes about a minute and needs no GPU.
    """
    from vorta_trt.model.tables import table_lines
    from vorta_trt.runtime.console import Stages, output_console
    from vorta_trt.runtime.demo import next_steps, run_demo
    from vorta_trt.runtime.verification.report import case_table

    with Stages() as stages:
        report = run_demo(output, stages, family.value.replace("-", "_"))
    if as_json:
        typer.echo(report.model_dump_json(indent=2))
    else:
        console = output_console()
        for verified in report.verified:
            console.print(case_table(verified))
        console.print(report.routes, markup=False, soft_wrap=True)
        console.print(f"attention FLOPs saved by routing: {100 * report.attention_flops_saved:.1f} %")
        console.print(f"RoutedAttention plugin layers in the engine: {report.plugin_layers}\n")
        for line in table_lines(("", ""), report.files.items(), left=2):
            console.print(line, markup=False, soft_wrap=True)
        console.print(f"\n{next_steps(report)}", markup=False, soft_wrap=True)
    raise typer.Exit(0 if report.passed else 1)
