# SPDX-License-Identifier: Apache-2.0
"""`vorta-trt inspect`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vorta_trt.commands.app import AsJson, Debug, command


@command("vorta-trt inspect wan.bundle", "vorta-trt inspect wan.onnx --plot layers.png")
def inspect(
    target: Annotated[Path, typer.Argument(metavar="BUNDLE|ONNX")],
    plot: Annotated[Path | None, typer.Option(help="Draw the layer graph into this file (.png, .svg, .pdf).")] = None,
    check: Annotated[bool, typer.Option("--check", help="Hash every file of the bundle.")] = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Show what is inside a bundle or ONNX file.

    Layers, types, memory, inputs and outputs; on a GPU that can run the bundle, the engine's own layers, too.
    """
    from vorta_trt.runtime.inspection import inspect_target

    report = inspect_target(target, check=check, plot=plot)
    if as_json:
        typer.echo(report.model_dump_json(indent=2))
    else:
        for line in report.lines():
            typer.echo(line)
