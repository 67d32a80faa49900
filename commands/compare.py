# SPDX-License-Identifier: Apache-2.0
"""`vorta-trt compare`."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vorta_trt.commands.app import AsJson, Debug, command
from vorta_trt.commands.options import Precision, Router, Size, check_folder, source_of
from vorta_trt.commands.verify import Executor

if TYPE_CHECKING:
    from vorta_trt.runtime.comparison.report import CompareReport
    from vorta_trt.runtime.console import Stages


@command(
    "vorta-trt compare dense.mp4 routed.mp4 --video compared.mp4",
    "vorta-trt compare SAMPLES_DENSE SAMPLES_ROUTED -o compared.json --video COMPARED",
    "vorta-trt compare dense routed --of wan.bundle --prompts prompts.txt --video COMPARED",
    "vorta-trt compare dense override=calibration.json --of CHECKPOINT --size 77x480x832 --prompts prompts.txt",
)
def compare(
    first: Annotated[
        str,
        typer.Argument(
            metavar="A",
            help="A video, .npy or .safetensors file of frames, or a folder of them; with --of a setting: dense, "
            "routed, tau=0.4, override=FILE, override=none, dense-first=2, dense-last=1, or several with commas.",
        ),
    ],
    second: Annotated[
        str, typer.Argument(metavar="B", help="Like A. The files of two folders are paired by name without suffix.")
    ],
    of: Annotated[
        Path | None,
        typer.Option("--of", metavar="BUNDLE|ONNX|CHECKPOINT", help="Sample with it, and compare two settings."),
    ] = None,
    prompts: Annotated[
        Path | None, typer.Option(metavar="FILE", help="With --of: sample every prompt of this file.")
    ] = None,
    prompt: Annotated[str | None, typer.Option(help="With --of: sample this prompt.")] = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option(help="With --of: the pipeline folder of a bundle or ONNX file [default: found as by `generate`]."),
    ] = None,
    router: Router = None,
    size: Size = None,
    precision: Annotated[
        Precision | None,
        typer.Option(help="With --of: the type of a checkpoint's weights and activations [default: bf16]."),
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="With --of: sampling steps [default: 50].")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="With --of: of every sample's noise [default: 0].")] = None,
    executor: Annotated[Executor | None, typer.Option(help="With --of: as for `generate`.")] = None,
    keep: Annotated[Path | None, typer.Option(help="With --of: keep the samples in this folder, as .npy.")] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write the report as JSON to this file.")
    ] = None,
    video: Annotated[
        Path | None,
        typer.Option(
            help="Write A, B and 4 times their difference side by side into this file, or for folders into this folder."
        ),
    ] = None,
    fps: Annotated[
        float | None,
        typer.Option(min=0.1, max=999, help="Frames per second of --video [default: the samples' own, or 16]."),
    ] = None,
    lpips: Annotated[
        bool | None,
        typer.Option(
            "--lpips/--no-lpips",
            help="Insist on LPIPS, or leave it out [default: computed if its package is installed].",
        ),
    ] = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Compare samples, or two settings of one model.

    It shows PSNR, SSIM and LPIPS of two files or two folders. PSNR is over all pixels and channels, SSIM over the luma.
    With --of, both settings sample the same prompts from the same noise.
    """
    from vorta_trt.runtime.comparison.compare import compare_samples
    from vorta_trt.runtime.comparison.report import compare_table
    from vorta_trt.runtime.console import Stages, output_console

    if fps is not None and video is None:
        raise typer.BadParameter("belongs to --video; give both", param_hint="--fps")
    check_folder(output, "--output")
    common: dict[str, Any] = {"video": video, "fps": fps, "lpips": lpips}
    sampling = {
        "--prompts": prompts, "--prompt": prompt, "--checkpoint": checkpoint, "--router": router, "--size": size,
        "--precision": precision, "--steps": steps, "--seed": seed, "--executor": executor, "--keep": keep,
    }  # fmt: skip
    with Stages() as stages:
        if of is None:
            if given := [name for name, value in sampling.items() if value is not None]:
                raise typer.BadParameter("samples with a model; give that with --of", param_hint=given[0])
            report = compare_samples(Path(first), Path(second), stages, **common)
        else:
            report = _compare_settings(of, first, second, sampling, common, stages)
    if output is not None:
        from vorta_trt.model.files import write_text

        write_text(output, report.model_dump_json(indent=2) + "\n")
    if as_json:
        typer.echo(report.model_dump_json(indent=2))
        return
    console = output_console()
    console.print(compare_table(report))
    if report.lpips_note is not None:
        console.print(f"no LPIPS: {report.lpips_note}", markup=False, soft_wrap=True)
    for path in filter(None, (output, video, keep)):
        console.print(f"wrote {path}", markup=False, soft_wrap=True)


def _compare_settings(
    of: Path, first: str, second: str, sampling: dict[str, Any], common: dict[str, Any], stages: Stages
) -> CompareReport:
    from vorta_trt.engines.manifest import MANIFEST
    from vorta_trt.runtime.comparison.settings import Setting, compare_settings
    from vorta_trt.runtime.pipelines.prompts import read_prompts
    from vorta_trt.runtime.sampling.params import DEFAULT_STEPS, SamplingParams

    try:
        settings = Setting.parse(first), Setting.parse(second)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    file, prompt = sampling["--prompts"], sampling["--prompt"]
    if (file is None) == (prompt is None):
        raise typer.BadParameter("give one of them", param_hint="--prompt / --prompts")
    source = None
    if of.is_dir() and not (of / MANIFEST).is_file():
        precision = sampling["--precision"] or Precision.bf16
        source = source_of(of, sampling["--router"], sampling["--size"], precision, None)
    elif given := [name for name in ("--router", "--size", "--precision") if sampling[name] is not None]:
        raise typer.BadParameter(f"belongs to checkpoints, and in {of} it is fixed; leave it out", param_hint=given[0])
    with _folder(sampling["--keep"]) as folder:
        return compare_settings(
            of,
            *settings,
            read_prompts(file) if prompt is None else [prompt],
            folder,
            stages,
            source=source,
            checkpoint=sampling["--checkpoint"],
            params=SamplingParams(
                num_inference_steps=sampling["--steps"] or DEFAULT_STEPS, seed=sampling["--seed"] or 0
            ),
            executor=None if sampling["--executor"] is None else sampling["--executor"].value,
            **common,
        )


@contextmanager
def _folder(kept: Path | None) -> Iterator[Path]:
    """The folder of the samples: the given one, or one that goes away."""
    if kept is not None:
        yield kept
        return
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)
