# SPDX-License-Identifier: Apache-2.0
"""`vorta-trt inspect`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vorta_trt.commands.app import EXAMPLE, AsJson, Debug, command
from vorta_trt.commands.options import Component, Gpus, OneSize, Target


@command(
    "vorta-trt inspect model.bundle",
    f"vorta-trt inspect model.bundle --memory 24 --checkpoint {EXAMPLE}",
    "vorta-trt inspect model.bundle --component transformer_2 --size 81x480x832",
    "vorta-trt inspect model.bundle --gpus 4",
    "vorta-trt inspect model.onnx --plot layers.png",
)
def inspect(
    target: Target,
    plot: Annotated[Path | None, typer.Option(help="Draw the layer graph into this file (.png, .svg, .pdf).")] = None,
    check: Annotated[bool, typer.Option("--check", help="Check the hash of every file of the bundle.")] = False,
    memory: Annotated[
        list[float] | None,
        typer.Option(
            metavar="GIB", help="Plan the memory of a card of this size; may be repeated [default: 24, 80 and 141]."
        ),
    ] = None,
    checkpoint: Annotated[
        Path | None, typer.Option(help="Count the text encoder and VAE of this pipeline folder in the memory plan.")
    ] = None,
    component: Component = None,
    size: OneSize = None,
    gpus: Gpus = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Show what is in a bundle or ONNX file.

    It lists layers, types, inputs and outputs, memory by part, and how the engine runs on cards of several sizes. On a
    GPU that can run the bundle, it lists the engine's own layers as well. Of a bundle with several engines it lists
    all, and shows one of them. With --gpus, the memory is that of the first of several GPUs that share a pass, and the
    time of a pass is predicted.
    """
    from vorta_trt.runtime.inspection import inspect_target
    from vorta_trt.runtime.memory_plan import CARDS

    report = inspect_target(
        target,
        check=check,
        plot=plot,
        cards=memory or CARDS,
        checkpoint=checkpoint,
        component=component,
        size=size,
        gpus=gpus,
    )
    if as_json:
        typer.echo(report.model_dump_json(indent=2))
    else:
        for line in report.lines():
            typer.echo(line)
