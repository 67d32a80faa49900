# SPDX-License-Identifier: Apache-2.0
"""`vorta-trt export`."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from vorta_trt.commands.app import EXAMPLE, AsJson, Debug, command
from vorta_trt.commands.options import (
    AttentionPrecisionOption,
    Checkpoint,
    Lora,
    Router,
    Size,
    Tau,
    Variant,
    quoted,
    source_of,
)
from vorta_trt.model.precision import PrecisionName


@command(f"vorta-trt export {EXAMPLE} --router ROUTER --precision bf16 -o model.onnx")
def export(
    checkpoint: Checkpoint,
    output: Annotated[Path, typer.Option("--output", "-o", help="The .onnx file to write.")],
    router: Router = None,
    lora: Lora = None,
    size: Size = None,
    precision: Annotated[PrecisionName, typer.Option(help="The type of weights and activations.")] = "bf16",
    attention_precision: AttentionPrecisionOption = None,
    opset: Annotated[
        int | None, typer.Option(metavar="23|17", help="The ONNX opset; TensorRT 8.6 needs 17 [default: 23].")
    ] = None,
    tau: Tau = None,
    variant: Variant = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Export a checkpoint to one ONNX file."""
    from vorta_trt.export.names import OPSET_17
    from vorta_trt.runtime.console import Stages
    from vorta_trt.runtime.from_checkpoint import export_checkpoint

    source = source_of(checkpoint, router, size, precision, tau, attention_precision, variant=variant, lora=lora)
    if opset is not None:
        source = replace(source, opset=opset)
    with Stages() as stages:
        path = export_checkpoint(source, output, stages)
    if as_json:
        from vorta_trt.export import read_metadata

        typer.echo(f'{{"path": {quoted(path)}, "metadata": {read_metadata(path).model_dump_json()}}}')
    else:
        flavour = ["--tensorrt", "tensorrt8"] if opset == OPSET_17 else []
        following = ["vorta-trt", "build", str(path), *flavour, "-o", str(path.with_suffix(".bundle"))]
        typer.echo(f"{path}\nnext: {shlex.join(following)}")
