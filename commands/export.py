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
    LinearCalibrations,
    LinearErrorLimit,
    LinearKeep,
    LinearPrecisionOption,
    Lora,
    Routers,
    Size,
    Tau,
    Ulysses,
    Variant,
    With,
    quoted,
    sources_of,
    usage,
)
from vorta_trt.model.precision import PrecisionName


@command(
    f"vorta-trt export {EXAMPLE} --router ROUTER --precision bf16 -o model.onnx",
    "vorta-trt export CHECKPOINT --router high=ROUTER --router low=ROUTER -o model.onnx",
)
def export(
    checkpoint: Checkpoint,
    output: Annotated[Path, typer.Option("--output", "-o", help="The .onnx file to write.")],
    router: Routers = None,
    lora: Lora = None,
    size: Size = None,
    precision: Annotated[PrecisionName, typer.Option(help="The type of weights and activations.")] = "bf16",
    attention_precision: AttentionPrecisionOption = None,
    linear_precision: LinearPrecisionOption = None,
    linear_keep: LinearKeep = None,
    linear_calibration: LinearCalibrations = None,
    linear_error_limit: LinearErrorLimit = None,
    ulysses: Ulysses = None,
    opset: Annotated[
        int | None, typer.Option(metavar="23|17", help="The ONNX opset; TensorRT 8.6 needs 17 [default: 23].")
    ] = None,
    tau: Tau = None,
    variant: Variant = None,
    parts: With = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Export a checkpoint to ONNX.

    A model becomes one file. The second of two experts is written beside the first, as NAME.transformer_2.onnx. With
    --with, VAE and encoders are written there, too, one file for each graph: NAME.vae_decoder_first.onnx and so on.
    """
    from vorta_trt.export.names import OPSET_17, check_name, component_file
    from vorta_trt.runtime.console import Stages
    from vorta_trt.runtime.from_checkpoint import export_checkpoint

    with usage("--output"):
        check_name(output)
    sources = sources_of(
        checkpoint,
        router,
        size,
        precision,
        tau,
        attention_precision,
        variant=variant,
        lora=lora,
        linear_precision=linear_precision,
        linear_keep=linear_keep,
        linear_calibrations=linear_calibration,
        linear_error_limit=linear_error_limit,
        ulysses=ulysses,
    )
    if opset is not None:
        sources = [replace(source, opset=opset) for source in sources]
    with Stages() as stages:
        path = export_checkpoint(sources, output, stages, parts=parts or ())
    if as_json:
        from vorta_trt.export import read_metadata

        second = component_file(path, sources[-1].component) if len(sources) > 1 else None
        beside = "" if second is None else f', "second": {quoted(second)}'
        typer.echo(f'{{"path": {quoted(path)}{beside}, "metadata": {read_metadata(path).model_dump_json()}}}')
    else:
        for source in sources:
            typer.echo(component_file(path, source.component))
        flavour = ["--tensorrt", "tensorrt8"] if opset == OPSET_17 else []
        following = ["build", str(path), *flavour, "-o", str(path.with_suffix(".bundle"))]
        if precision == "fp32":  # for ONNX Runtime: no engine computes in fp32
            given = {"--router": router or (), "--lora": lora or (), "--variant": [] if variant is None else [variant]}
            made_of = [text for option, values in given.items() for value in values for text in (option, value)]
            following = ["verify", str(path), str(checkpoint), *made_of]
        typer.echo(f"next: {shlex.join(['vorta-trt', *following])}")
