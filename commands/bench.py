# SPDX-License-Identifier: Apache-2.0
"""`vorta-trt bench attention`, `vorta-trt bench blocks`, `vorta-trt bench step` and `vorta-trt bench parallel`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from vorta_trt.benchmarks.names import DEFAULT_MODEL, GEOMETRIES, MODELS
from vorta_trt.commands.app import AsJson, Debug, command, group
from vorta_trt.commands.expand import Options
from vorta_trt.commands.options import Seed, check_folder, listed, numbers, usage
from vorta_trt.model.precision import HalfPrecision

if TYPE_CHECKING:
    from rich.console import RenderableType

    from vorta_trt.benchmarks.blocks.report import BlockReport
    from vorta_trt.benchmarks.parallel.report import ParallelReport
    from vorta_trt.benchmarks.report import Report
    from vorta_trt.benchmarks.step.report import StepReport

bench = group(
    "bench",
    "Measure our kernels and models beside others.",
    "vorta-trt bench attention --output attention.json --plot attention.png",
    f"vorta-trt bench step --model {DEFAULT_MODEL} --output step.json --plot step.png",
)


class BenchInputs(str, Enum):
    """What queries and keys hold."""

    normal = "normal"
    outliers = "outliers"


Dtype = Annotated[HalfPrecision, typer.Option(help="The type of weights, activations and attention inputs.")]
ProductPrecision = Annotated[
    list[str] | None,
    typer.Option(help="The precision of the products inside our attention: same or fp8 [default: same]."),
]


@dataclass(frozen=True)
class ReportFiles(Options):
    """The files that a report is read from and written to."""

    from_file: Annotated[
        Path | None, typer.Option("--from", help="Show this report of an earlier --output and measure nothing.")
    ] = None
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write the report as JSON to this file.")] = None
    plot: Annotated[Path | None, typer.Option(help="Draw the report into this file (.png, .svg, .pdf).")] = None

    def check(self, question: str) -> None:
        """Refuses, before the long work, files that cannot be written or would replace something else than a report."""
        from vorta_trt.benchmarks.report import report_kind
        from vorta_trt.model.route_picture import check_picture

        check_folder(self.output, "--output", report_kind(question))
        if self.plot is not None:
            check_picture(self.plot)

    def show(
        self,
        report: Report | BlockReport | StepReport | ParallelReport,
        as_json: bool,
        draw: Callable[[Path], object],
        text: Iterable[RenderableType],
    ) -> NoReturn:
        """Writes and prints a report; the exit code says whether it passed."""
        from vorta_trt.model.files import write_text
        from vorta_trt.runtime.console import output_console

        if self.output is not None:
            write_text(self.output, report.to_json() + "\n")
        if self.plot is not None:
            draw(self.plot)
        if as_json:
            typer.echo(report.to_json())
        else:
            console = output_console()
            for part in text:
                console.print(part, markup=False, soft_wrap=isinstance(part, str))
            for path in filter(None, (self.output, self.plot)):
                typer.echo(f"wrote {path}")
        raise typer.Exit(0 if report.passed else 1)


@dataclass(frozen=True)
class BenchModel(Options):
    """The transformer that is made and measured."""

    model: Annotated[str, typer.Option(help=f"One of {', '.join(MODELS)}.")] = DEFAULT_MODEL
    layers: Annotated[
        int | None, typer.Option(min=1, help="Measure with fewer layers than the model has [default: all].")
    ] = None
    dtype: Dtype = "bf16"
    seed: Seed = 0


BLOCK_OPS_HELP = "How our blocks are computed: native or plugin"
LINEAR_PRECISION_HELP = "The products of our linear layers: same or fp8"
STEPS_HELP = "How many passes of each row are timed."


@command(
    "vorta-trt bench attention --output attention.json --plot attention.png",
    f"vorta-trt bench attention --geometry {GEOMETRIES[1]} --heads 8 --branch full,sliding --peers cudnn,flash4",
    "vorta-trt bench attention --small --json",
    "vorta-trt bench attention --from attention.json --plot attention.png",
    group=bench,
)
def attention(
    files: ReportFiles,
    geometry: Annotated[
        list[str] | None,
        typer.Option(help=f"{', '.join(GEOMETRIES)} or a grid of the small or ragged set [default: the first four]."),
    ] = None,
    heads: Annotated[
        list[str] | None, typer.Option(help="How many heads a call has [default: 8 and the model's own].")
    ] = None,
    text_length: Annotated[
        list[str] | None,
        typer.Option(help="How many text tokens are valid, where there is text [default: 77 and 256]."),
    ] = None,
    branch: Annotated[
        list[str] | None, typer.Option(help="full, coreset, sliding or mixed [default: all four].")
    ] = None,
    peers: Annotated[
        list[str] | None, typer.Option(help="cudnn, flash2, flash4, flex, gather or none [default: all].")
    ] = None,
    precision: ProductPrecision = None,
    kernels: Annotated[
        list[str] | None,
        typer.Option(help="Hold our attention to kernels sm80 or sm89_fp8; gpu is the GPU's own [default: gpu]."),
    ] = None,
    dtype: Dtype = "bf16",
    head_dim: Annotated[int, typer.Option(help="The size of a head: a multiple of 8, at most 256.")] = 128,
    inputs: Annotated[
        BenchInputs, typer.Option(help="outliers makes some channels of query and key 16 times as large.")
    ] = BenchInputs.normal,
    small: Annotated[
        bool, typer.Option("--small", help="Measure small sizes instead: about 1,000 to 10,000 tokens, 12 heads.")
    ] = False,
    seed: Seed = 0,
    seconds: Annotated[float, typer.Option(min=0.01, help="About how much GPU time one measurement takes.")] = 0.5,
    junit: Annotated[
        Path | None, typer.Option(help="Put the errors that the GPU tests recorded in this JUnit file into the report.")
    ] = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Time our attention kernels beside others.

    The others are dense, sparse and gathered attention. Everything is checked against float32 before it is timed.
    Options that take several values may be repeated or take a list with commas. The default set is estimated to take
    two to three minutes on an H200.
    """
    from vorta_trt.benchmarks.report import Report, recorded_errors

    files.check("attention")
    if files.from_file is not None:
        report = Report.read(files.from_file)
    else:
        from vorta_trt.benchmarks.attention import Options as AttentionOptions
        from vorta_trt.benchmarks.attention import run
        from vorta_trt.benchmarks.cases import BRANCHES
        from vorta_trt.runtime.console import Stages

        with usage():
            options = AttentionOptions(
                geometries=listed(geometry),
                heads=numbers(heads, "--heads"),
                text_lengths=numbers(text_length, "--text-length"),
                branches=listed(branch) or BRANCHES,
                peers=listed(peers),
                precisions=listed(precision) or ("same",),
                kernels=tuple("" if name == "gpu" else name for name in listed(kernels)) or ("",),
                dtype=dtype,
                head_dim=head_dim,
                inputs=inputs.value,
                small=small,
                seed=seed,
                seconds=seconds,
            )
        with Stages() as stages:
            report = run(options, stages)
    if junit is not None:
        report = Report({**report.about, "errors": recorded_errors(junit)}, report.rows)
    from vorta_trt.benchmarks.plot import plot_report
    from vorta_trt.benchmarks.table import case_table, headline, remarks

    text: list[RenderableType] = [headline(report)]
    for rows in report.cases().values():
        text += [case_table(rows), *remarks(rows)]
    files.show(report, as_json, lambda path: plot_report(report, path), text)


@command(
    f"vorta-trt bench step --model {DEFAULT_MODEL} --output step.json --plot step.png",
    f"vorta-trt bench step --model {MODELS[-1]} --mode compiled --mix 50/50 --no-loops",
    "vorta-trt bench step --from step.json --plot step.png",
    group=bench,
)
def step(
    files: ReportFiles,
    of_model: BenchModel,
    mix: Annotated[
        list[str] | None,
        typer.Option(help="Percent of coreset and sliding heads, or dense [default: dense, 30/70, 50/50, 70/30]."),
    ] = None,
    dense: Annotated[
        bool, typer.Option("--dense/--no-dense", help="Measure our kernels with every head full, whatever --mix says.")
    ] = True,
    mode: Annotated[list[str] | None, typer.Option(help="eager or compiled [default: both].")] = None,
    peers: Annotated[list[str] | None, typer.Option(help="cudnn, diffusers or none [default: both].")] = None,
    precision: ProductPrecision = None,
    block_ops: Annotated[list[str] | None, typer.Option(help=f"{BLOCK_OPS_HELP} [default: native].")] = None,
    linear_precision: Annotated[
        list[str] | None, typer.Option(help=f"{LINEAR_PRECISION_HELP} [default: same].")
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help=STEPS_HELP)] = 5,
    bundle: Annotated[
        Path | None, typer.Option(help="Measure this engine of the same model, batch 1, as well.")
    ] = None,
    loops: Annotated[bool, typer.Option("--loops/--no-loops", help="Measure sampling loops as well.")] = True,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Time transformer steps and sampling loops.

    Routed attention is measured beside dense, with random weights at real size. Dense is the same code with cuDNN's
    attention, and diffusers' own model. The largest model takes 32 GiB. On an H100, --mode
    compiled --peers cudnn took five to six minutes; everything is estimated at a quarter of an hour.
    """
    from vorta_trt.benchmarks.step.report import StepReport

    files.check("step")
    if files.from_file is not None:
        report = StepReport.read(files.from_file)
    else:
        from vorta_trt.benchmarks.attention import require_gpu
        from vorta_trt.benchmarks.step.cases import DENSE, MIXES
        from vorta_trt.benchmarks.step.run import MODES, PEERS, StepOptions, run
        from vorta_trt.runtime.console import Stages

        chosen = listed(peers)
        with usage():
            options = StepOptions(
                **asdict(of_model),
                mixes=listed(mix) or (DENSE, *MIXES),
                dense=dense,
                modes=listed(mode) or MODES,
                peers=() if chosen == ("none",) else chosen or tuple(PEERS),
                precisions=listed(precision) or ("same",),
                block_ops=listed(block_ops) or ("native",),
                linear_precisions=listed(linear_precision) or ("same",),
                steps=steps,
                loops=loops,
                bundle=bundle,
            )
        require_gpu("bench step")
        with Stages() as stages:
            report = run(options, stages)
    from vorta_trt.benchmarks.step.plot import plot_report
    from vorta_trt.benchmarks.step.table import headline, loop_table, remarks, step_table

    tables = (step_table(report), *((loop_table(report),) if report.loops else ()))
    files.show(report, as_json, lambda path: plot_report(report, path), (headline(report), *tables, *remarks(report)))


@command(
    "vorta-trt bench blocks --output blocks.json",
    f"vorta-trt bench blocks --operator Linear,Fp8Linear --model {DEFAULT_MODEL} --dtype fp16",
    "vorta-trt bench blocks --from blocks.json --plot blocks.png",
    group=bench,
)
def blocks(
    files: ReportFiles,
    operator: Annotated[
        list[str] | None, typer.Option(help="Names of operators, e.g. Linear or Fp8Linear [default: all].")
    ] = None,
    model: Annotated[
        list[str] | None, typer.Option(help=f"Whose sizes are measured, e.g. {DEFAULT_MODEL} [default: all].")
    ] = None,
    dtype: Dtype = "bf16",
    seed: Seed = 0,
    seconds: Annotated[float, typer.Option(min=0.01, help="About how much GPU time one measurement takes.")] = 0.5,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Time the operators of a transformer block beside torch.

    Everything is checked before it is timed: ours may err at most twice as much as torch. Options that take several
    values may be repeated or take a list with commas.
    """
    from vorta_trt.benchmarks.blocks.report import BlockReport

    files.check("blocks")
    if files.from_file is not None:
        report = BlockReport.read(files.from_file)
    else:
        from vorta_trt.benchmarks.blocks.run import BlockOptions, run
        from vorta_trt.runtime.console import Stages

        with usage():
            options = BlockOptions(
                operators=listed(operator), models=listed(model), dtype=dtype, seed=seed, seconds=seconds
            )
        with Stages() as stages:
            report = run(options, stages)
    from vorta_trt.benchmarks.blocks.table import block_table, headline, plot_report, remarks

    files.show(
        report,
        as_json,
        lambda path: plot_report(report, path),
        (headline(report), block_table(report), *remarks(report)),
    )


@command(
    f"vorta-trt bench parallel --model {DEFAULT_MODEL} --gpus 1,2,4 --output parallel.json",
    "vorta-trt bench parallel --gpus 2,4 --guidance --mix 50/50 --linear-precision fp8",
    "vorta-trt bench parallel --from parallel.json --plot parallel.png",
    group=bench,
)
def parallel(
    files: ReportFiles,
    of_model: BenchModel,
    mix: Annotated[
        list[str] | None,
        typer.Option(
            help="Percent of coreset and sliding heads, or of full, coreset and sliding [default: 50/50, 10/45/45]."
        ),
    ] = None,
    gpus: Annotated[
        list[str] | None, typer.Option(help="How many GPUs; one is measured in any case [default: 1, 2, 4].")
    ] = None,
    placement: Annotated[list[str] | None, typer.Option(help="balanced or in_order [default: both].")] = None,
    exchange: Annotated[
        list[str] | None,
        typer.Option(help="auto, library or torch, each also with +overlap, e.g. torch+overlap [default: auto]."),
    ] = None,
    guidance: Annotated[
        bool, typer.Option("--guidance", help="Measure the two passes of guidance on two halves of the GPUs, too.")
    ] = False,
    precision: Annotated[str, typer.Option(help="The products inside our attention: same or fp8.")] = "same",
    block_ops: Annotated[str, typer.Option(help=f"{BLOCK_OPS_HELP}.")] = "plugin",
    linear_precision: Annotated[str, typer.Option(help=f"{LINEAR_PRECISION_HELP}.")] = "same",
    steps: Annotated[int, typer.Option(min=1, help=STEPS_HELP)] = 3,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Time a transformer pass on several GPUs beside one.

    Each GPU computes a shard of the tokens, and heads are exchanged around the attention. Heads are placed by their
    routes, and in order. Weights are random and of real size; every GPU makes its own. Every sample is compared with
    that of one GPU. --output is written again after every row.
    """
    from vorta_trt.benchmarks.parallel.report import ParallelReport

    files.check("parallel")
    if files.from_file is not None:
        report = ParallelReport.read(files.from_file)
    else:
        from vorta_trt.benchmarks.attention import require_gpu
        from vorta_trt.benchmarks.parallel.options import GPUS, MIXES, PLACEMENTS, ParallelOptions
        from vorta_trt.benchmarks.parallel.run import run
        from vorta_trt.benchmarks.step.models import Variant
        from vorta_trt.model.files import write_text
        from vorta_trt.model.parallel.exchange_choice import AUTO
        from vorta_trt.runtime.console import Stages

        with usage():
            options = ParallelOptions(
                **asdict(of_model),
                mixes=listed(mix) or MIXES,
                gpus=numbers(gpus, "--gpus") or GPUS,
                placements=listed(placement) or PLACEMENTS,
                exchanges=listed(exchange) or (AUTO,),
                guidance=guidance,
                variant=Variant(precision, block_ops, linear_precision),
                steps=steps,
            )
        require_gpu("bench parallel")

        def keep(so_far: ParallelReport) -> None:
            if files.output is not None:
                write_text(files.output, so_far.to_json() + "\n")

        with Stages() as stages:
            report = run(options, stages, keep)
    from vorta_trt.benchmarks.parallel.table import headline, parallel_table, plot_report, remarks

    text: list[RenderableType] = [headline(report), parallel_table(report), *remarks(report)]
    files.show(report, as_json, lambda path: plot_report(report, path), text)
