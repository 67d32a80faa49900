# SPDX-License-Identifier: Apache-2.0
"""`vorta-trt verify`."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from vorta_trt.commands.app import EXAMPLE, AsJson, Debug, command
from vorta_trt.commands.options import (
    MOST_SEED,
    Checkpoint,
    Lora,
    Router,
    loras,
)
from vorta_trt.model.precision import PrecisionName


class Executor(str, Enum):
    """What runs a model."""

    tensorrt = "tensorrt"
    onnxruntime = "onnxruntime"
    reference = "reference"


@command(
    f"vorta-trt verify model.onnx {EXAMPLE} --router ROUTER",
    f"vorta-trt verify model.bundle {EXAMPLE} --router ROUTER --case 'router, tau 0.3' --json",
)
def verify(
    target: Annotated[Path, typer.Argument(metavar="ONNX|BUNDLE", help="What was exported or built.")],
    checkpoint: Checkpoint,
    router: Router = None,
    lora: Lora = None,
    precision: Annotated[PrecisionName | None, typer.Option(help="Fail unless the file has this precision.")] = None,
    executor: Annotated[
        Executor | None,
        typer.Option(
            help="Run it with this [default: tensorrt for bundles, onnxruntime for ONNX, reference for ONNX in bf16]."
        ),
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="How many samples a run has.")] = 1,
    seed: Annotated[
        int | None,
        typer.Option(min=0, max=MOST_SEED, help="The seed of the random inputs [default: a fresh one, printed]."),
    ] = None,
    case: Annotated[list[str] | None, typer.Option(help="Run only this case; may be repeated [default: all].")] = None,
    layers: Annotated[
        bool | None, typer.Option(help="Compare after every module as well [default: if a case fails].")
    ] = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Compare a file or an engine with torch.

    It shows the error of every output against the checkpoint in fp32, beside torch's own error in the same type. After
    a failure it names the first module that departs. Of a file with fp8 attention it also tells what fp8 does to the
    sample and to each layer's attention: measured on a GPU with fp8 kernels, else emulated.
    """
    from vorta_trt.runtime.console import Stages, output_console
    from vorta_trt.runtime.verification.report import case_table, fp8_table, layer_table
    from vorta_trt.runtime.verification.verify import verify as run_verify

    with Stages() as stages:
        report = run_verify(
            target,
            checkpoint,
            router,
            lora=loras(lora),
            precision=precision,
            executor=None if executor is None else executor.value,
            batch=batch,
            seed=seed,
            cases=case or (),
            layers=layers,
            progress=stages,
        )
    if as_json:
        typer.echo(report.model_dump_json(indent=2))
    else:
        console = output_console()
        console.print(case_table(report))
        if (table := fp8_table(report)) is not None:
            console.print(table)
        if (table := layer_table(report)) is not None:
            console.print(table)
        console.print(
            "[green]verified[/green]" if report.passed else "[red]FAILED: it does not compute what torch does[/red]"
        )
    raise typer.Exit(0 if report.passed else 1)
