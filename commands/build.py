# SPDX-License-Identifier: Apache-2.0
"""`vorta-trt build`."""

from __future__ import annotations

import shlex
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from vorta_trt.commands.app import EXAMPLE, AsJson, Debug, command
from vorta_trt.commands.options import (
    AttentionPrecisionOption,
    LinearCalibrations,
    LinearErrorLimit,
    LinearKeep,
    LinearPrecisionOption,
    Lora,
    RouteOverrides,
    Routers,
    Sizes,
    Tau,
    Ulysses,
    Variant,
    With,
    experts_of_file,
    one_per_expert,
    quoted,
    sources_of,
    usage,
)
from vorta_trt.model.precision import PrecisionName
from vorta_trt.plugins.operator_schema import BlockOps


class Flavour(str, Enum):
    """The TensorRT that builds and runs the engine."""

    rtx = "rtx"
    tensorrt = "tensorrt"
    tensorrt8 = "tensorrt8"


@command(
    f"vorta-trt build {EXAMPLE} --router ROUTER --size 77x720x1280 --precision bf16 -o model.bundle",
    f"vorta-trt build {EXAMPLE} --route-override calibration.json -o model.bundle",
    f"vorta-trt build {EXAMPLE} --router ROUTER --size 81x720x1280 --size 81x480x832 -o model.bundle",
    f"vorta-trt build {EXAMPLE} --router ROUTER --size 77x720x1280 --with all --keep-pipeline -o model.bundle",
    "vorta-trt build model.onnx -o model.bundle",
)
def build(
    source: Annotated[
        Path, typer.Argument(metavar="CHECKPOINT|ONNX", help="A diffusers folder, or a file of `vorta-trt export`.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The bundle folder to write.")],
    router: Routers = None,
    lora: Lora = None,
    size: Sizes = None,
    precision: Annotated[
        PrecisionName | None,
        typer.Option(help="The type of weights and activations [default: bf16; for tensorrt8 fp16]."),
    ] = None,
    attention_precision: AttentionPrecisionOption = None,
    linear_precision: LinearPrecisionOption = None,
    linear_keep: LinearKeep = None,
    linear_calibration: LinearCalibrations = None,
    linear_error_limit: LinearErrorLimit = None,
    ulysses: Ulysses = None,
    tau: Tau = None,
    variant: Variant = None,
    parts: With = None,
    keep_pipeline: Annotated[
        bool,
        typer.Option(
            "--keep-pipeline",
            help="Put tokenizers, scheduler and configs into the bundle; with --with all it needs no checkpoint.",
        ),
    ] = False,
    route_override: RouteOverrides = None,
    tensorrt: Annotated[
        Flavour,
        typer.Option(help="rtx builds without a GPU; tensorrt and tensorrt8 (TensorRT 8.6) build for the GPU here."),
    ] = Flavour.rtx,
    batch: Annotated[
        str,
        typer.Option(
            metavar="MIN:OPT:MAX", help="Batch sizes that the engine takes: the least, the usual and the largest."
        ),
    ] = "1:1:2",
    compute_capability: Annotated[
        list[str] | None,
        typer.Option(
            metavar="8.9", help="rtx: build for this GPU; may be repeated [default: every RTX GPU since Ampere]."
        ),
    ] = None,
    hardware_compatibility: Annotated[
        str | None,
        typer.Option(
            metavar="LEVEL",
            help="tensorrt: run on other GPUs, too: ampere_plus or same_compute_capability [default: neither].",
        ),
    ] = None,
    version_compatible: Annotated[
        bool,
        typer.Option(
            "--version-compatible", help="tensorrt: build an engine that newer versions and the lean runtime load."
        ),
    ] = False,
    optimization_level: Annotated[
        int | None, typer.Option(metavar="0-5", help="0 builds fast, 5 runs fast [default: TensorRT's own].")
    ] = None,
    block_ops: Annotated[
        BlockOps | None,
        typer.Option(
            "--block-ops",
            help="Make norms, products and cross-attention plugin layers of ours, or leave them to TensorRT as native "
            "ones [default: plugin for tensorrt8, native for the others].",
        ),
    ] = None,
    weight_streaming: Annotated[
        bool, typer.Option("--weight-streaming", help="Let the engine keep a part of its weights in host memory.")
    ] = False,
    refit: Annotated[
        bool,
        typer.Option(
            "--refit",
            help="Let `vorta-trt refit` put LoRA files into the engine later; rtx builds such engines with a GPU only.",
        ),
    ] = False,
    plugin_in_plan: Annotated[
        bool,
        typer.Option(
            "--plugin-in-plan",
            help="Put the plugin library into the plan, for programs that load one file; not with tensorrt8.",
        ),
    ] = False,
    workspace_gib: Annotated[
        float | None, typer.Option(help="Limit the scratch memory of a layer, in GiB [default: the memory of the GPU].")
    ] = None,
    timing_cache: Annotated[
        Path | None,
        typer.Option(
            help="tensorrt: keep measured kernels in this file, which makes later builds faster [default: none]."
        ),
    ] = None,
    keep_onnx: Annotated[bool, typer.Option("--keep-onnx", help="Put the ONNX file into the bundle as well.")] = False,
    strict: Annotated[
        bool, typer.Option(help="Refuse ONNX files that `vorta-trt export` did not write, and fp8 without kernels.")
    ] = True,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing bundle.")] = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Build an engine bundle.

    It is built from a checkpoint, which is exported on the way, or from an exported ONNX file.
    """
    from vorta_trt.engines.flavours import get_flavour
    from vorta_trt.export.names import component_file
    from vorta_trt.model.checkpoint_place import is_weights
    from vorta_trt.model.video_size import VideoSize
    from vorta_trt.runtime.console import Stages
    from vorta_trt.runtime.from_checkpoint import at_sizes, build_checkpoint, build_onnx

    options: dict[str, Any] = {
        "tensorrt": tensorrt.value,
        "batch": _batch(batch),
        "compute_capabilities": compute_capability,
        "hardware_compatibility": hardware_compatibility,
        "version_compatible": version_compatible,
        "optimization_level": optimization_level,
        "block_ops": block_ops,
        "weight_streaming": weight_streaming,
        "refit": refit,
        "plugin_in_plan": plugin_in_plan,
        "workspace_gib": workspace_gib,
        "timing_cache": timing_cache,
        "include_onnx": keep_onnx,
        "overwrite": overwrite,
        "strict": strict,
    }
    of_checkpoints = {
        "--router": router,
        "--lora": lora,
        "--size": size or None,
        "--precision": precision,
        "--attention-precision": attention_precision,
        "--linear-precision": linear_precision,
        "--linear-keep": linear_keep or None,
        "--linear-calibration": linear_calibration or None,
        "--linear-error-limit": linear_error_limit,
        "--ulysses": ulysses,
        "--tau": tau,
        "--variant": variant,
        "--with": parts,
        "--keep-pipeline": keep_pipeline or None,
    }
    is_onnx = source.suffix == ".onnx" or (source.is_file() and not is_weights(source))
    if is_onnx and (given := [name for name, value in of_checkpoints.items() if value is not None]):
        raise typer.BadParameter(
            f"{given[0]} belongs to checkpoints, and {source} is an exported file, in which it is fixed; leave it out"
        )
    with Stages() as stages:
        if is_onnx:
            experts = experts_of_file(source, first=True)
            routes = one_per_expert(route_override, "--route-override", experts)
            overrides = [Path(routes[expert]) if expert in routes else None for expert in experts]
            files = [component_file(source, expert) for expert in experts]
            bundle = build_onnx(files, output, stages, route_override=overrides, **options)
        else:
            usual = get_flavour(tensorrt.value).precisions[0]
            sources = sources_of(
                source,
                router,
                None,
                precision or usual,
                tau,
                attention_precision,
                route_override,
                variant,
                lora,
                linear_precision,
                linear_keep,
                linear_calibration,
                linear_error_limit,
                ulysses,
            )
            with usage("--size"):
                sizes = [VideoSize.parse(text) for text in size or ()]
            engines = [engine for each in sources for engine in at_sizes(each, sizes)]
            bundle = build_checkpoint(
                engines, output, stages, parts=parts or (), keep_pipeline=keep_pipeline, **options
            )
    if as_json:
        typer.echo(f'{{"path": {quoted(bundle.path)}, "manifest": {bundle.manifest.model_dump_json()}}}')
    else:
        typer.echo(f"{bundle.path}\nnext: {shlex.join(['vorta-trt', 'inspect', str(output)])}")


def _batch(text: str) -> tuple[int, int, int]:
    sizes = text.split(":")
    if not all(size.isdecimal() for size in sizes) or len(sizes) not in (1, 3):
        raise typer.BadParameter(f"{text!r}: must be MIN:OPT:MAX or one number; use e.g. 1:1:2", param_hint="--batch")
    smallest, best, largest = map(int, sizes * 3 if len(sizes) == 1 else sizes)
    return smallest, best, largest
