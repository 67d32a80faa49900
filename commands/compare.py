# SPDX-License-Identifier: Apache-2.0
"""`vorta-trt compare`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vorta_trt.commands.app import AsJson, Debug, command


@command(
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
