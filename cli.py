# SPDX-License-Identifier: Apache-2.0
"""The command line: options in, a room does the work, a table, JSON or one clean error out.

Nothing heavy is imported before a command runs, so that `vorta-trt --help` is instant. Results go to stdout; progress,
log and errors to stderr. Exit code 0: done; 1: failed; 2: bad usage.
"""

from __future__ import annotations

import functools
import logging
import os
import shlex
import sys
import traceback
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from typer.core import TyperGroup

if TYPE_CHECKING:
    from vorta_trt.runtime.from_checkpoint import Source

CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 110}
app = typer.Typer(
    name="vorta-trt",
    help="Video diffusion transformers with VORTA's routed sparse attention on NVIDIA TensorRT.",
    epilog="Example:  vorta-trt demo --output demo",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings=CONTEXT,
)
bench = typer.Typer(
    help="Measure the kernels beside everything else that computes the same.",
    epilog="\b\nExample:\n  vorta-trt bench attention --output attention.json --plot attention.png",
    no_args_is_help=True,
    rich_markup_mode=None,
    context_settings=CONTEXT,
)
app.add_typer(bench, name="bench")


class _RunUnlessNamed(TyperGroup):
    """A group whose command `run` may be left out: `train-router CHECKPOINT` is `train-router run CHECKPOINT`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in (*self.commands, *ctx.help_option_names):
            args = ["run", *args]
        return super().parse_args(ctx, args)


train = typer.Typer(
    cls=_RunUnlessNamed,
    help="Train the routers of a checkpoint, or prepare the data for it.",
    epilog="\b\nExamples:\n"
    "  vorta-trt train-router prepare CHECKPOINT --videos VIDEOS --size 77x480x832 -o DATA\n"
    "  vorta-trt train-router CHECKPOINT --data DATA -o ROUTER",
    no_args_is_help=True,
    rich_markup_mode=None,
    context_settings=CONTEXT,
)
app.add_typer(train, name="train-router")
Command = TypeVar("Command", bound=Callable[..., None])


class Precision(str, Enum):
    fp32 = "fp32"
    fp16 = "fp16"
    bf16 = "bf16"


class ModelFamily(str, Enum):
    wan = "wan"
    hunyuan_video = "hunyuan-video"


class AttentionPrecision(str, Enum):
    same = "same"
    fp8 = "fp8"


class Flavour(str, Enum):
    rtx = "rtx"
    tensorrt = "tensorrt"


class Scheduler(str, Enum):
    unipc = "unipc"
    flow_euler = "flow-euler"
    dpm = "dpm++"


class HalfType(str, Enum):
    bf16 = "bf16"
    fp16 = "fp16"


class BenchInputs(str, Enum):
    normal = "normal"
    outliers = "outliers"


class TrainingPrecision(str, Enum):
    bf16 = "bf16"
    fp32 = "fp32"


class Device(str, Enum):
    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


class Executor(str, Enum):
    tensorrt = "tensorrt"
    onnxruntime = "onnxruntime"
    reference = "reference"


def _command(*examples: str, group: typer.Typer = app) -> Callable[[Command], Command]:
    """Registers a command: its examples below the help, and errors as one message instead of a traceback."""

    def decorate(function: Command) -> Command:
        @functools.wraps(function)
        def run(*arguments: Any, **options: Any) -> None:
            debug = bool(options.get("debug"))
            logging.basicConfig(level=logging.DEBUG if debug else logging.WARNING, format="%(levelname)s %(message)s")
            try:
                function(*arguments, **options)
            except (typer.Exit, typer.BadParameter):
                raise
            except KeyboardInterrupt:
                _fail("interrupted; nothing half-made is left", debug)
            except Exception as error:
                _fail(_message(error), debug)

        epilog = "\b\n" + "\n".join(
            [f"Example{'s' if len(examples) > 1 else ''}:", *(f"  {line}" for line in examples)]
        )
        group.command(epilog=epilog)(run)
        return function

    return decorate


Debug = Annotated[bool, typer.Option("--debug", help="Log everything, and show the traceback of an error.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on stdout instead of text.")]
Checkpoint = Annotated[
    Path, typer.Argument(metavar="CHECKPOINT", help="A diffusers pipeline folder, or its transformer/ folder.")
]
Router = Annotated[Path | None, typer.Option(help="A router's training folder, or its router.pt.")]
Size = Annotated[
    str | None,
    typer.Option(metavar="FxHxW", help="Frames x height x width in pixels [default: what the router was trained for]."),
]
Tau = Annotated[float | None, typer.Option(help="Default routing threshold; above 1 is dense [default: 0.3].")]


AttentionPrecisionOption = Annotated[
    AttentionPrecision | None,
    typer.Option(
        help="fp8: less exact attention products, for GPUs of compute capability 9.0 [default: same as --precision]."
    ),
]


@_command("vorta-trt doctor", "vorta-trt doctor --json")
def doctor(as_json: AsJson = False, debug: Debug = False) -> None:
    """Show what can build and run here, and why not."""
    from vorta_trt.runtime.console import Stages, output_console
    from vorta_trt.runtime.doctor import examine, report_lines

    with Stages() as stages:
        stages("examining this machine")
        report = examine()
    if as_json:
        typer.echo(report.model_dump_json(indent=2))
    else:
        marks = {"ok": "[green]ok    [/green]", "note": "[yellow]note  [/yellow]", "failed": "[red]FAILED[/red]"}
        console = output_console()
        for state, line in report_lines(report):
            console.print(marks[state], end=" ")
            console.print(line, markup=False, soft_wrap=True)
    raise typer.Exit(0 if report.can_build else 1)


@_command("vorta-trt demo --output demo", "vorta-trt demo --family hunyuan-video --output demo")
def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for everything it makes.")] = Path("demo"),
    family: Annotated[ModelFamily, typer.Option(help="Of the small model.")] = ModelFamily.wan,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Go the whole way on a small model.

    Makes a checkpoint and a router, exports, builds, verifies, and shows the routes. About a minute, no GPU needed.
    """
    from vorta_trt.runtime.console import Stages, output_console
    from vorta_trt.runtime.demo import next_steps, run_demo
    from vorta_trt.runtime.verify_report import case_table

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
        for what, where in report.files.items():
            console.print(f"{what + ':':<23}{where}", markup=False, soft_wrap=True)
        console.print(f"\n{next_steps(report)}", markup=False, soft_wrap=True)
    raise typer.Exit(0 if report.passed else 1)


@_command("vorta-trt export Wan2.1-T2V-1.3B-Diffusers --router ROUTER --precision bf16 -o wan.onnx")
def export(
    checkpoint: Checkpoint,
    output: Annotated[Path, typer.Option("--output", "-o", help="The .onnx file to write.")],
    router: Router = None,
    size: Size = None,
    precision: Annotated[Precision, typer.Option(help="Of weights and activations.")] = Precision.bf16,
    attention_precision: AttentionPrecisionOption = None,
    tau: Tau = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Export a checkpoint to one ONNX file."""
    from vorta_trt.runtime.console import Stages
    from vorta_trt.runtime.from_checkpoint import export_checkpoint

    source = _source(checkpoint, router, size, precision, tau, attention_precision)
    with Stages() as stages:
        path = export_checkpoint(source, output, stages)
    if as_json:
        from vorta_trt.export import read_metadata

        typer.echo(f'{{"path": {_quoted(path)}, "metadata": {read_metadata(path).model_dump_json()}}}')
    else:
        typer.echo(
            f"{path}\nnext: {shlex.join(['vorta-trt', 'build', str(path), '-o', str(path.with_suffix('.bundle'))])}"
        )


@_command(
    "vorta-trt build Wan2.1-T2V-14B-Diffusers --router ROUTER --size 77x720x1280 --precision bf16 -o wan.bundle",
    "vorta-trt build wan.onnx -o wan.bundle",
)
def build(
    source: Annotated[
        Path, typer.Argument(metavar="CHECKPOINT|ONNX", help="A diffusers folder, or a file of `vorta-trt export`.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The bundle folder to write.")],
    router: Router = None,
    size: Size = None,
    precision: Annotated[Precision | None, typer.Option(help="Of weights and activations [default: bf16].")] = None,
    attention_precision: AttentionPrecisionOption = None,
    tau: Tau = None,
    tensorrt: Annotated[
        Flavour, typer.Option(help="rtx builds without a GPU; tensorrt for the GPU here.")
    ] = Flavour.rtx,
    batch: Annotated[str, typer.Option(metavar="MIN:OPT:MAX", help="Batch sizes of the engine.")] = "1:1:2",
    compute_capability: Annotated[
        list[str] | None,
        typer.Option(
            metavar="8.9", help="rtx: GPUs to build for; may be repeated [default: every RTX GPU since Ampere]."
        ),
    ] = None,
    hardware_compatibility: Annotated[
        str | None, typer.Option(metavar="LEVEL", help="tensorrt: ampere_plus or same_compute_capability.")
    ] = None,
    version_compatible: Annotated[
        bool, typer.Option("--version-compatible", help="tensorrt: loads in newer versions and the lean runtime.")
    ] = False,
    optimization_level: Annotated[int | None, typer.Option(metavar="0-5", help="0 builds fast, 5 runs fast.")] = None,
    workspace_gib: Annotated[float | None, typer.Option(help="Most scratch memory of a layer, in GiB.")] = None,
    timing_cache: Annotated[Path | None, typer.Option(help="tensorrt: a file that makes later builds faster.")] = None,
    keep_onnx: Annotated[bool, typer.Option("--keep-onnx", help="Put the ONNX file into the bundle, too.")] = False,
    strict: Annotated[
        bool, typer.Option(help="Refuse ONNX files that `vorta-trt export` did not write, and fp8 without kernels.")
    ] = True,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing bundle.")] = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Build an engine bundle.

    From a checkpoint, which is exported on the way, or from an exported ONNX file.
    """
    from vorta_trt.runtime.console import Stages
    from vorta_trt.runtime.from_checkpoint import build_checkpoint, build_onnx

    options: dict[str, Any] = {
        "tensorrt": tensorrt.value,
        "batch": _batch(batch),
        "compute_capabilities": compute_capability,
        "hardware_compatibility": hardware_compatibility,
        "version_compatible": version_compatible,
        "optimization_level": optimization_level,
        "workspace_gib": workspace_gib,
        "timing_cache": timing_cache,
        "include_onnx": keep_onnx,
        "overwrite": overwrite,
        "strict": strict,
    }
    of_checkpoints = {
        "--router": router,
        "--size": size,
        "--precision": precision,
        "--attention-precision": attention_precision,
        "--tau": tau,
    }
    is_onnx = source.is_file() or source.suffix == ".onnx"
    if is_onnx and (given := [name for name, value in of_checkpoints.items() if value is not None]):
        raise typer.BadParameter(
            f"{given[0]} belongs to checkpoints, and {source} is an exported file, in which it is fixed; leave it out"
        )
    with Stages() as stages:
        if is_onnx:
            bundle = build_onnx(source, output, stages, **options)
        else:
            checkpoint = _source(source, router, size, precision or Precision.bf16, tau, attention_precision)
            bundle = build_checkpoint(checkpoint, output, stages, **options)
    if as_json:
        typer.echo(f'{{"path": {_quoted(bundle.path)}, "manifest": {bundle.manifest.model_dump_json()}}}')
    else:
        typer.echo(f"{bundle.path}\nnext: {shlex.join(['vorta-trt', 'inspect', str(output)])}")


@_command("vorta-trt inspect wan.bundle", "vorta-trt inspect wan.onnx --plot layers.png")
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


@_command(
    "vorta-trt verify wan.onnx Wan2.1-T2V-1.3B-Diffusers --router ROUTER",
    "vorta-trt verify wan.bundle Wan2.1-T2V-1.3B-Diffusers --router ROUTER --case 'router, tau 0.3' --json",
)
def verify(
    target: Annotated[Path, typer.Argument(metavar="ONNX|BUNDLE", help="What was exported or built.")],
    checkpoint: Checkpoint,
    router: Router = None,
    precision: Annotated[Precision | None, typer.Option(help="Fail unless the file has this precision.")] = None,
    executor: Annotated[
        Executor | None,
        typer.Option(
            help="What runs it [default: tensorrt for bundles, onnxruntime for ONNX, reference for ONNX in bf16]."
        ),
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Samples per run.")] = 1,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Of the random inputs [default: a fresh one, printed].")
    ] = None,
    case: Annotated[list[str] | None, typer.Option(help="Run only this case; may be repeated [default: all].")] = None,
    layers: Annotated[
        bool | None, typer.Option(help="Compare after every module, too [default: if a case fails].")
    ] = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Compare a file or an engine with torch.

    Errors of every output against the checkpoint in fp32, with torch's own error in the same type beside them; after a
    failure, the first module that departs.
    """
    from vorta_trt.runtime.console import Stages, output_console
    from vorta_trt.runtime.verify import verify as run_verify
    from vorta_trt.runtime.verify_report import case_table, layer_table

    with Stages() as stages:
        report = run_verify(
            target,
            checkpoint,
            router,
            precision=None if precision is None else precision.value,
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
        if (table := layer_table(report)) is not None:
            console.print(table)
        console.print(
            "[green]verified[/green]" if report.passed else "[red]FAILED: it does not compute what torch does[/red]"
        )
    raise typer.Exit(0 if report.passed else 1)


@_command(
    "vorta-trt routes Wan2.1-T2V-14B-Diffusers --router ROUTER --steps 50 --plot routes.png",
    "vorta-trt routes Wan2.1-T2V-14B-Diffusers --router ROUTER --scheduler flow-euler --shift 5 -o routes.json",
)
def routes(
    checkpoint: Checkpoint,
    router: Annotated[Path, typer.Option(help="A router's training folder, or its router.pt.")],
    steps: Annotated[int, typer.Option(min=1, help="Sampling steps.")] = 50,
    scheduler: Annotated[Scheduler | None, typer.Option(help="[default: the pipeline's own]")] = None,
    shift: Annotated[
        float | None,
        typer.Option(help="Flow shift; Wan: 3 at 480p, 5 at 720p; HunyuanVideo: 7 [default: the pipeline's]."),
    ] = None,
    size: Size = None,
    tau: Tau = None,
    precision: Annotated[
        Precision, typer.Option(help="The router sees the timestep embedding rounded to it.")
    ] = Precision.bf16,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write the route table as JSON to this file.")
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(help="Draw shares per step and layer, and layers x heads per step (.png, .svg, .pdf)."),
    ] = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Show which branch every head takes.

    At every step of a schedule, with the FLOPs that this saves in attention and end to end (counted, not timed).
    """
    from vorta_trt.model import RouteTable
    from vorta_trt.runtime.console import Stages
    from vorta_trt.runtime.schedules import schedule_timesteps

    source = _source(checkpoint, router, size, precision, tau)
    with Stages() as stages:
        stages("computing the routes")
        schedule = schedule_timesteps(checkpoint, steps, None if scheduler is None else scheduler.value, shift)
        table = RouteTable.from_model(source.model(), schedule.timesteps)
        if output is not None:
            output.write_text(table.to_json() + "\n", encoding="utf-8")
        if plot is not None:
            stages("drawing the picture")
            table.plot(plot)
    if as_json:
        typer.echo(table.to_json())
    else:
        typer.echo(f"{schedule.scheduler}, shift {schedule.shift:g}\n{table.summary()}")
        typer.echo(f"attention FLOPs saved by routing: {100 * table.saved:.1f} %")
        if table.total_saved is not None:
            typer.echo(f"end-to-end FLOPs saved by routing: {100 * table.total_saved:.1f} %")
        for path in filter(None, (output, plot)):
            typer.echo(f"wrote {path}")


@_command(
    "vorta-trt compare dense.mp4 routed.mp4 --video compared.mp4",
    "vorta-trt compare SAMPLES_DENSE SAMPLES_ROUTED -o compared.json --video COMPARED",
)
def compare(
    first: Annotated[
        Path, typer.Argument(metavar="A", help="A video, .npy or .safetensors file of frames, or a folder of them.")
    ],
    second: Annotated[Path, typer.Argument(metavar="B", help="The same; folders are paired by name without suffix.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write the report as JSON to this file.")
    ] = None,
    video: Annotated[
        Path | None,
        typer.Option(help="Write A, B and 4 x their difference side by side: a file, or for folders a folder."),
    ] = None,
    fps: Annotated[float | None, typer.Option(help="Of --video [default: the samples' own, or 16].")] = None,
    lpips: Annotated[
        bool | None,
        typer.Option("--lpips/--no-lpips", help="Insist on LPIPS, or leave it out [default: if installed]."),
    ] = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Compare two samples, or two sets of them.

    PSNR, SSIM and LPIPS, of two checkpoints or of two settings of one (tau, overrides, dense). PSNR is over all pixels
    and channels, SSIM over the luma.
    """
    from vorta_trt.runtime.compare import compare_samples
    from vorta_trt.runtime.compare_report import compare_table
    from vorta_trt.runtime.console import Stages, output_console

    if fps is not None and video is None:
        raise typer.BadParameter("belongs to --video; give both", param_hint="--fps")
    with Stages() as stages:
        report = compare_samples(first, second, stages, video=video, fps=fps, lpips=lpips)
    if output is not None:
        output.write_text(report.model_dump_json(indent=2) + "\n", encoding="utf-8")
    if as_json:
        typer.echo(report.model_dump_json(indent=2))
        return
    console = output_console()
    console.print(compare_table(report))
    if report.lpips_note is not None:
        console.print(f"no LPIPS: {report.lpips_note}", markup=False, soft_wrap=True)
    for path in filter(None, (output, video)):
        console.print(f"wrote {path}", markup=False, soft_wrap=True)


@_command(
    "vorta-trt bench attention --output attention.json --plot attention.png",
    "vorta-trt bench attention --geometry wan-14b --heads 8 --branch full,sliding --peers cudnn,flash4",
    "vorta-trt bench attention --small --json",
    "vorta-trt bench attention --from attention.json --plot attention.png",
    group=bench,
)
def attention(
    geometry: Annotated[
        list[str] | None,
        typer.Option(help="wan-1.3b, wan-14b, hunyuan, aligned or a grid of the small set [default: the first four]."),
    ] = None,
    heads: Annotated[list[str] | None, typer.Option(help="Heads of a call [default: 8 and the model's own].")] = None,
    text_length: Annotated[
        list[str] | None, typer.Option(help="Valid text tokens, where there is text [default: 77 and 256].")
    ] = None,
    branch: Annotated[
        list[str] | None, typer.Option(help="full, coreset, sliding or mixed [default: all four].")
    ] = None,
    peers: Annotated[
        list[str] | None, typer.Option(help="cudnn, flash2, flash4, flex, gather or none [default: all].")
    ] = None,
    precision: Annotated[
        list[str] | None, typer.Option(help="same or fp8, of the products inside the kernels [default: same].")
    ] = None,
    dtype: Annotated[HalfType, typer.Option(help="Of query, key, value and output.")] = HalfType.bf16,
    head_dim: Annotated[int, typer.Option(help="A multiple of 8, at most 256.")] = 128,
    inputs: Annotated[
        BenchInputs, typer.Option(help="outliers: some channels of query and key are 16 times as large.")
    ] = BenchInputs.normal,
    small: Annotated[bool, typer.Option("--small", help="About 1,000 to 10,000 tokens, 12 heads.")] = False,
    seed: Annotated[int, typer.Option(min=0, help="Of the random inputs.")] = 0,
    seconds: Annotated[float, typer.Option(min=0.01, help="GPU time of one measurement, about.")] = 0.5,
    junit: Annotated[
        Path | None, typer.Option(help="Put the errors that the GPU tests recorded in this JUnit file into the report.")
    ] = None,
    from_file: Annotated[
        Path | None, typer.Option("--from", help="Show this report of an earlier --output; measure nothing.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write the report as JSON to this file.")
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw useful TFLOP/s into this file (.png, .svg, .pdf).")] = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Time the routed-attention kernels beside dense, sparse and gathered attention of others.

    Everything is checked against float32 before it is timed. Options that take several values may be repeated or take a
    list with commas. Two to three minutes on an H200.
    """
    from vorta_trt.benchmarks.report import Report, recorded_errors

    if from_file is not None:
        report = Report.read(from_file)
    else:
        from vorta_trt.benchmarks.attention import Options, run
        from vorta_trt.benchmarks.cases import BRANCHES
        from vorta_trt.runtime.console import Stages

        try:
            options = Options(
                geometries=_listed(geometry),
                heads=_numbers(heads, "--heads"),
                text_lengths=_numbers(text_length, "--text-length"),
                branches=_listed(branch) or BRANCHES,
                peers=_listed(peers),
                precisions=_listed(precision) or ("same",),
                dtype=dtype.value,
                head_dim=head_dim,
                inputs=inputs.value,
                small=small,
                seed=seed,
                seconds=seconds,
            )
        except ValueError as error:
            raise typer.BadParameter(str(error)) from error
        with Stages() as stages:
            report = run(options, stages)
    if junit is not None:
        report = Report({**report.about, "errors": recorded_errors(junit)}, report.rows)
    if output is not None:
        output.write_text(report.to_json() + "\n", encoding="utf-8")
    if plot is not None:
        from vorta_trt.benchmarks.plot import plot_report

        plot_report(report, plot)
    if as_json:
        typer.echo(report.to_json())
    else:
        from vorta_trt.benchmarks.table import case_table, headline, remarks
        from vorta_trt.runtime.console import output_console

        console = output_console()
        console.print(headline(report), markup=False, soft_wrap=True)
        for rows in report.cases().values():
            console.print(case_table(rows))
            for line in remarks(rows):
                console.print(line, markup=False, soft_wrap=True)
        for path in filter(None, (output, plot)):
            typer.echo(f"wrote {path}")
    raise typer.Exit(0 if report.passed else 1)


@_command(
    "vorta-trt train-router Wan2.1-T2V-1.3B-Diffusers --data DATA -o ROUTER",
    "vorta-trt train-router Wan2.1-T2V-1.3B-Diffusers --data DATA -o ROUTER --resume",
    "torchrun --nproc-per-node 2 -m vorta_trt.cli train-router Wan2.1-T2V-14B-Diffusers --data DATA -o ROUTER --fsdp",
    group=train,
)
def run(
    checkpoint: Checkpoint,
    data: Annotated[
        Path, typer.Option(help="A folder of `train-router prepare`, or the authors' videos2caption.json layout.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The router's training folder to write.")],
    size: Annotated[
        str | None, typer.Option(metavar="FxHxW", help="Frames x height x width in pixels [default: the data's].")
    ] = None,
    router: Annotated[Path | None, typer.Option(help="Start from this router [default: random].")] = None,
    steps: Annotated[int, typer.Option(min=1, help="Optimiser steps.")] = 100,
    accumulation: Annotated[int, typer.Option(min=1, help="Micro-batches per step and process.")] = 4,
    batch: Annotated[int, typer.Option(min=1, help="Samples per micro-batch.")] = 1,
    learning_rate: Annotated[float, typer.Option(help="Of AdamW.")] = 1e-2,
    weight_decay: Annotated[float, typer.Option(help="Of AdamW.")] = 1e-2,
    max_grad_norm: Annotated[float, typer.Option(help="Gradients are scaled down to it.")] = 1.0,
    diffusion_weight: Annotated[float, typer.Option(help="Of the flow-matching loss.")] = 1.0,
    distillation_weight: Annotated[float, typer.Option(help="Of the error against full attention.")] = 20.0,
    regularisation_weight: Annotated[float, typer.Option(help="Of the squared full-branch scores.")] = 0.02,
    intervals: Annotated[int, typer.Option(min=1, help="Strata of the timesteps; a step draws from one.")] = 5,
    reduction_rate: Annotated[float, typer.Option(help="Share of the tokens that the coreset drops.")] = 0.5,
    seed: Annotated[int, typer.Option(min=0, help="Of everything random.")] = 0,
    precision: Annotated[
        TrainingPrecision, typer.Option(help="Of frozen weights and activations; routers are float32.")
    ] = TrainingPrecision.bf16,
    gradient_checkpointing: Annotated[
        bool, typer.Option(help="Compute blocks again in the backward pass: slower, far less memory.")
    ] = True,
    checkpoint_every: Annotated[int, typer.Option(min=1, help="Steps between checkpoints.")] = 10,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the latest checkpoint in --output.")] = False,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave out samples that cannot be used.")] = False,
    device: Annotated[Device, typer.Option(help="auto is the GPU, if there is one.")] = Device.auto,
    fsdp: Annotated[bool, typer.Option("--fsdp", help="Shard the model over the processes of torchrun.")] = False,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Event files in OUTPUT/report, beside log.jsonl.")
    ] = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Train the routers of a frozen checkpoint; `run` may be left out.

    Writes config.json, ckpt/step-*/router.pt (what --router takes everywhere) and log.jsonl. For several GPUs, start
    one process per GPU with torchrun.
    """
    from vorta_trt.model.training import LossWeights, TrainingSettings, train_router

    try:
        settings = TrainingSettings(
            steps=steps,
            accumulation=accumulation,
            batch=batch,
            learning_rate=learning_rate,
            weight_decay=weight_decay,
            max_grad_norm=max_grad_norm,
            weights=LossWeights(diffusion_weight, distillation_weight, regularisation_weight),
            intervals=intervals,
            seed=seed,
            precision=precision.value,
            gradient_checkpointing=gradient_checkpointing,
            checkpoint_every=checkpoint_every,
        )
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    with _stages_of_main_process() as stages:
        report = train_router(
            checkpoint,
            data,
            output,
            settings,
            video_size=None if size is None else _pixels(size),
            reduction_rate=reduction_rate,
            router=router,
            resume=resume,
            skip_bad=skip_bad,
            device=device.value,
            fsdp=fsdp,
            tensorboard=tensorboard,
            progress=stages,
        )
    if report is None:  # not the main process
        return
    if as_json:
        typer.echo(report.to_json())
        return
    typer.echo(
        f"{report.output}\n{report.summary()}\n"
        f"next: {shlex.join(['vorta-trt', 'routes', str(checkpoint), '--router', str(output)])}"
    )


@_command(
    "vorta-trt train-router prepare Wan2.1-T2V-1.3B-Diffusers --videos VIDEOS --size 77x480x832 -o DATA", group=train
)
def prepare(
    checkpoint: Checkpoint,
    videos: Annotated[Path, typer.Option(help="A folder of video files, <video>.txt with the caption beside each.")],
    size: Annotated[str, typer.Option(metavar="FxHxW", help="Frames x height x width in pixels.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The data folder to write, or to complete.")],
    captions: Annotated[
        Path | None, typer.Option(help="A JSON object, video file -> caption, instead of text files.")
    ] = None,
    fps: Annotated[float | None, typer.Option(help="Frames per second to take [default: the model's own].")] = None,
    precision: Annotated[TrainingPrecision, typer.Option(help="Of the text encoder.")] = TrainingPrecision.bf16,
    device: Annotated[Device, typer.Option(help="auto is the GPU, if there is one.")] = Device.auto,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave out videos that cannot be used.")] = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Make training data from videos and captions.

    Encodes both with the pipeline's own text encoder and VAE. What the folder has already is kept.
    """
    from vorta_trt.model.training import prepare_data
    from vorta_trt.runtime.console import Stages

    pixels = _pixels(size)
    with Stages() as stages:
        prepared = prepare_data(
            checkpoint,
            videos,
            output,
            pixels,
            captions=captions,
            frames_per_second=fps,
            precision=precision.value,
            device=None if device is Device.auto else device.value,
            skip_bad=skip_bad,
            progress=stages,
        )
    if as_json:
        typer.echo(prepared.to_json())
        return
    command = ["vorta-trt", "train-router", str(checkpoint), "--data", str(output), "-o", "ROUTER"]
    typer.echo(f"{prepared.output}\n{prepared.summary()}\nnext: {shlex.join(command)}")


def _pixels(size: str) -> tuple[int, int, int]:
    from vorta_trt.runtime.from_checkpoint import VideoSize

    try:
        video = VideoSize.parse(size)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--size") from error
    return video.frames, video.height, video.width


def _stages_of_main_process() -> AbstractContextManager[Callable[[str, int, int], None]]:
    """A progress line, but in the other processes of torchrun none."""
    from vorta_trt.runtime.console import Stages

    return Stages() if os.environ.get("RANK", "0") == "0" else nullcontext(lambda what, done, total: None)


def _listed(values: list[str] | None) -> tuple[str, ...]:
    return tuple(part.strip() for value in values or () for part in value.split(",") if part.strip())


def _numbers(values: list[str] | None, option: str) -> tuple[int, ...]:
    parts = _listed(values)
    for part in parts:
        if not part.isdecimal():
            raise typer.BadParameter(f"{part!r}: must be a whole number; use e.g. 8", param_hint=option)
    return tuple(map(int, parts))


def _source(
    checkpoint: Path,
    router: Path | None,
    size: str | None,
    precision: Precision,
    tau: float | None,
    attention_precision: AttentionPrecision | None = None,
) -> Source:
    from vorta_trt.runtime.from_checkpoint import Source, VideoSize

    try:
        video = None if size is None else VideoSize.parse(size)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--size") from error
    attention = (attention_precision or AttentionPrecision.same).value
    return Source(checkpoint, router, video, precision.value, tau, attention)


def _batch(text: str) -> tuple[int, int, int]:
    sizes = text.split(":")
    if not all(size.isdecimal() for size in sizes) or len(sizes) not in (1, 3):
        raise typer.BadParameter(f"{text!r}: must be MIN:OPT:MAX or one number; use e.g. 1:1:2", param_hint="--batch")
    smallest, best, largest = map(int, sizes * 3 if len(sizes) == 1 else sizes)
    return smallest, best, largest


def _quoted(path: Path) -> str:
    import json

    return json.dumps(str(path))


def _message(error: Exception) -> str:
    """One message for the errors that a user can act on; for a bug, what it is and how to see more."""
    from vorta_trt.plugins.errors import VortaError

    if isinstance(error, OSError) and error.strerror and not isinstance(error, VortaError):
        return f"{error.filename or 'system'}: {error.strerror}"
    if isinstance(error, VortaError | ValueError | OSError):
        return str(error)
    return f"{type(error).__name__}: {error} (this is a bug of vorta-trt; see it with --debug and report it)"


def _fail(message: str, debug: bool) -> None:
    if debug:
        traceback.print_exc(file=sys.stderr)
    typer.echo(f"error: {message}", err=True)
    raise typer.Exit(1)


def main() -> None:
    """Entry point of the console script."""
    app(prog_name="vorta-trt")


if __name__ == "__main__":
    main()
