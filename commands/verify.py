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
    Component,
    Lora,
    OneSize,
    Routers,
    Variant,
    experts_of_file,
    loras,
    one_per_expert,
    per_expert,
)
from vorta_trt.model.precision import PrecisionName


class Executor(str, Enum):
    """The executor that runs a model."""

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
    router: Routers = None,
    lora: Lora = None,
    variant: Variant = None,
    component: Component = None,
    size: OneSize = None,
    precision: Annotated[PrecisionName | None, typer.Option(help="Fail unless the file has this precision.")] = None,
    executor: Annotated[
        Executor | None,
        typer.Option(
            help="Run it with this [default: tensorrt for bundles, onnxruntime for ONNX, reference for ONNX in bf16]."
        ),
    ] = None,
    batch: Annotated[int, typer.Option(min=1, max=1024, help="How many samples a run has.")] = 1,
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
    sample and to each layer's attention: measured on a GPU with fp8 kernels, else emulated; of a file with linear
    layers in fp8, what that does to each of them and to the sample. Of a bundle with several
    engines, and of two experts, it compares all, one after the other; with --json it then writes a list.
    """
    from vorta_trt.runtime.console import Stages, output_console
    from vorta_trt.runtime.target import read_targets
    from vorta_trt.runtime.verification.report import case_table, fp8_table, layer_table, linear_table
    from vorta_trt.runtime.verification.verify import verify as run_verify

    with Stages() as stages:
        keys = [found.key for found in read_targets(target, component, size)]
        experts = experts_of_file(target)
        routers, fused = one_per_expert(router, "--router", experts), per_expert(lora, "--lora", experts)
        reports = [
            run_verify(
                target,
                checkpoint,
                routers.get(key.component),
                lora=loras(fused.get(key.component)),
                variant=variant,
                precision=precision,
                executor=None if executor is None else executor.value,
                batch=batch,
                seed=seed,
                cases=case or (),
                layers=layers,
                component=key.component,
                size=key.size,
                progress=stages,
            )
            for key in keys
        ]
    passed = all(report.passed for report in reports)
    if as_json:
        documents = [report.model_dump_json(indent=2) for report in reports]
        typer.echo(documents[0] if len(documents) == 1 else f"[{', '.join(documents)}]")
    else:
        console = output_console()
        for report in reports:
            tables = (case_table(report), fp8_table(report), linear_table(report), layer_table(report))
            for table in filter(None, tables):
                console.print(table)
        console.print("[green]verified[/green]" if passed else "[red]FAILED: it does not compute what torch does[/red]")
    raise typer.Exit(0 if passed else 1)
