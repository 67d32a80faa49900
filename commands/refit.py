# SPDX-License-Identifier: Apache-2.0
"""`vorta-trt refit`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vorta_trt.commands.app import EXAMPLE, AsJson, Debug, command
from vorta_trt.commands.options import Checkpoint, Lora, Variant, experts_of_file, loras, per_expert, quoted


@command(
    f"vorta-trt refit model.bundle {EXAMPLE} --lora style.safetensors:0.8",
    f"vorta-trt refit model.bundle {EXAMPLE}",
)
def refit(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="A bundle that was built with --refit.")],
    checkpoint: Checkpoint,
    lora: Lora = None,
    variant: Variant = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Put LoRA files into the engines of a bundle.

    The engines get the checkpoint's weights with these LoRA files fused into them. LoRA files of earlier refits are
    gone; without --lora the weights are the checkpoint's own. Plans stay as they are. TensorRT-RTX cannot build such
    engines without a GPU.
    """
    from vorta_trt.runtime.console import Stages
    from vorta_trt.runtime.refit import refit as run_refit

    with Stages() as stages:
        given = per_expert(lora, "--lora", experts_of_file(bundle))
        specs = {component: loras(values) for component, values in given.items()}
        made = run_refit(bundle, checkpoint, specs, variant=variant, report=stages)
    if as_json:
        typer.echo(f'{{"path": {quoted(made.path)}, "manifest": {made.manifest.model_dump_json()}}}')
    else:
        typer.echo(str(made.path))
