# SPDX-License-Identifier: Apache-2.0
"""`vorta-trt triton`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from vorta_trt.commands.app import AsJson, Debug, command
from vorta_trt.commands.generate import EngineOptions
from vorta_trt.commands.options import PipelineFolder, Target, numbers


@command(
    "vorta-trt triton model.bundle -o model_repository",
    "vorta-trt triton model.bundle --gpus 0,1 --environment environment.tar.gz --copy -o model_repository",
    "vorta-trt triton model.bundle --no-progress --name video -o model_repository",
)
def triton(
    target: Target,
    engine: EngineOptions,
    output: Annotated[Path, typer.Option("--output", "-o", help="The model repository, which may hold other models.")],
    checkpoint: PipelineFolder = None,
    name: Annotated[str | None, typer.Option(help="The model's name in Triton [default: the bundle's].")] = None,
    preset: Annotated[
        str | None, typer.Option(help="Settings of a published model that requests have by default [default: none].")
    ] = None,
    gpus: Annotated[
        str | None,
        typer.Option(metavar="N,N,...", help="The GPUs, with an instance on each [default: 0; an ONNX file: the CPU]."),
    ] = None,
    progress: Annotated[
        bool,
        typer.Option(
            "--progress/--no-progress",
            help="Answer with the progress of every step before the video. Triton offers that over gRPC streams alone; "
            "a model without progress, over gRPC and HTTP.",
        ),
    ] = True,
    queue: Annotated[int, typer.Option(min=1, help="How many requests may wait; more are refused.")] = 64,
    environment: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE|DIR",
            help="An environment with vorta-trt, as a folder or packed by conda-pack or venv-pack2 (.tar.gz) "
            "[default: the one that Triton finds].",
        ),
    ] = None,
    copy: Annotated[
        bool, typer.Option("--copy", help="Copy bundle and pipeline folder into the repository, to move it elsewhere.")
    ] = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Write a model repository for Triton.

    Triton's Python backend loads the bundle once for each instance. docs/triton.md says what requests look like.
    """
    from vorta_trt.serving.settings import ModelSettings
    from vorta_trt.serving.triton.repository import TritonSettings, write_model

    # Keeps options that differ from the pipeline's defaults, which are False or None. vae_tiling is kept if it is
    # False, too, since some families tile by default.
    options = {
        key: value for key, value in engine.arguments().items() if value or (key == "vae_tiling" and value is not None)
    }
    if options.pop("device", None) is not None:
        raise typer.BadParameter("is what Triton gives to an instance; use --gpus", param_hint="--device")
    on = numbers([gpus], "--gpus") if gpus is not None else [] if target.suffix == ".onnx" else [0]
    model = ModelSettings(source=target, checkpoint=checkpoint, preset=preset, pipeline=options)
    settings = TritonSettings(name, tuple(on), progress, queue, environment, copy)
    folder = write_model(output, model, settings)
    if as_json:
        typer.echo(json.dumps({"model": folder.name, "folder": str(folder)}))
    else:
        typer.echo(f"wrote {folder}\nnext: tritonserver --model-repository {output.absolute()}")
