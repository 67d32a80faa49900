# SPDX-License-Identifier: Apache-2.0
"""`vorta-trt compare`."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vorta_trt.commands.app import AsJson, Debug, command
from vorta_trt.commands.expand import Options
from vorta_trt.commands.options import Routers, Size, Variant, check_folder, one_of, sources_of, usage
from vorta_trt.commands.sampling import CommonOptions
from vorta_trt.commands.verify import Executor
from vorta_trt.model.precision import PrecisionName

if TYPE_CHECKING:
    from vorta_trt.runtime.comparison.report import CompareReport
    from vorta_trt.runtime.console import Stages
    from vorta_trt.runtime.from_checkpoint import Source


@dataclass(frozen=True)
class ModelOptions(Options):
    """The model that samples both settings."""

    of: Annotated[
        Path | None,
        typer.Option(
            "--of", metavar="BUNDLE|ONNX|CHECKPOINT", help="Sample with this model, and compare two settings."
        ),
    ] = None
    prompts: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="With --of: sample every prompt of this file, one a line or a JSON list."),
    ] = None
    prompt: Annotated[str | None, typer.Option(help="With --of: sample this prompt.")] = None
    image: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="With --of: the image that the videos begin with, if the model takes one."),
    ] = None
    last_image: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="With --of: the image that the videos end with, if the model takes one."),
    ] = None
    checkpoint: Annotated[
        Path | None,
        typer.Option(help="With --of: the pipeline folder of a bundle or ONNX file [default: found as by `generate`]."),
    ] = None
    router: Routers = None
    size: Size = None
    variant: Variant = None
    precision: Annotated[
        PrecisionName | None,
        typer.Option(help="With --of: the type of a checkpoint's weights and activations [default: bf16]."),
    ] = None
    executor: Annotated[
        Executor | None, typer.Option(help="With --of: what runs the model [default: as for `generate`].")
    ] = None
    keep: Annotated[
        Path | None,
        typer.Option(help="With --of: keep the samples in this folder, as .npy [default: they are removed]."),
    ] = None

    def given(self, *names: str) -> list[str]:
        """The options with these names, or without names all options, that were given."""
        return [f"--{name.replace('_', '-')}" for name in names or vars(self) if getattr(self, name) is not None]

    def source(self, of: Path) -> list[Source] | None:
        """The sources of a checkpoint; None for a file or a bundle, for which options of a checkpoint are refused."""
        from vorta_trt.engines.manifest import MANIFEST
        from vorta_trt.model.checkpoint_place import is_weights

        if is_weights(of) or (of.is_dir() and not (of / MANIFEST).is_file()):
            return sources_of(of, self.router, self.size, self.precision or "bf16", None, variant=self.variant)
        if given := self.given("router", "size", "precision", "variant"):
            raise typer.BadParameter(
                f"belongs to checkpoints, and in {of} it is fixed; leave it out", param_hint=given[0]
            )
        return None

    @contextmanager
    def folder(self) -> Iterator[Path]:
        """Yields the folder of the samples: the given one, or a temporary one."""
        if self.keep is not None:
            yield self.keep
            return
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder)


@dataclass(frozen=True)
class PictureOptions(Options):
    """How samples are compared, and shown beside each other."""

    video: Annotated[
        Path | None,
        typer.Option(
            help="Write A, B and 4 times their difference side by side into this file, or for folders into this folder."
        ),
    ] = None
    fps: Annotated[
        float | None,
        typer.Option(min=0.1, max=999, help="Frames per second of --video [default: the samples' own, or 16]."),
    ] = None
    floor: Annotated[
        str | None,
        typer.Option(
            metavar="C",
            help="A computed in another way, whose distance from A is the noise floor: samples, or with --of a setting "
            "such as dense,compile or dense,kernels=sm80 or dense,executor=reference.",
        ),
    ] = None
    lpips: Annotated[
        bool | None,
        typer.Option(
            "--lpips/--no-lpips",
            help="Insist on LPIPS, or leave it out [default: computed if its package is installed].",
        ),
    ] = None


@command(
    "vorta-trt compare dense.mp4 routed.mp4 --video compared.mp4",
    "vorta-trt compare SAMPLES_DENSE SAMPLES_ROUTED -o compared.json --video COMPARED",
    "vorta-trt compare dense routed --of model.bundle --prompts prompts.txt --video COMPARED",
    "vorta-trt compare dense routed --of CHECKPOINT --router ROUTER --prompts prompts.txt --floor dense,compile",
    "vorta-trt compare dense override=calibration.json --of CHECKPOINT --size 77x480x832 --prompts prompts.txt",
)
def compare(
    first: Annotated[
        str,
        typer.Argument(
            metavar="A",
            help="A video, .npy or .safetensors file of frames, or a folder of them; with --of a setting: dense, "
            "routed, tau=0.4, override=FILE, override=none, dense-first=2, dense-last=1, kernels=NAME, compile, "
            "executor=NAME, or several with commas.",
        ),
    ],
    second: Annotated[
        str, typer.Argument(metavar="B", help="Like A. The files of two folders are paired by name without suffix.")
    ],
    model: ModelOptions,
    sampling: CommonOptions,
    picture: PictureOptions,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write the report as JSON to this file.")
    ] = None,
    table: Annotated[
        Path | None, typer.Option(help="Write summary and samples as Markdown, or the samples as CSV, to this file.")
    ] = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Compare samples, or two settings of one model.

    It shows PSNR, SSIM and LPIPS of two files or two folders. PSNR is over all pixels and channels, SSIM over the luma.
    With --of, both settings sample the same prompts from the same noise.
    """
    from vorta_trt.runtime.comparison.compare import compare_samples
    from vorta_trt.runtime.comparison.report import KIND
    from vorta_trt.runtime.comparison.tables import TABLE, check_table, compare_table, summary_table, write_table
    from vorta_trt.runtime.console import Stages, output_console

    if picture.fps is not None and picture.video is None:
        raise typer.BadParameter("belongs to --video; give both", param_hint="--fps")
    check_folder(output, "--output", KIND)
    if table is not None:
        with usage("--table"):
            check_table(table)
        check_folder(table, "--table", TABLE)
    if model.of is None and (given := [*model.given(), *sampling.given]):
        raise typer.BadParameter("samples with a model; give that with --of", param_hint=given[0])
    with Stages() as stages:
        if model.of is None:
            options = vars(picture) | {"floor": None if picture.floor is None else Path(picture.floor)}
            report = compare_samples(Path(first), Path(second), stages, **options)
        else:
            report = _compare_settings(model.of, first, second, model, sampling, picture, stages)
    if output is not None:
        from vorta_trt.model.files import write_text

        write_text(output, report.model_dump_json(indent=2) + "\n")
    if table is not None:
        write_table(table, report)
    if as_json:
        typer.echo(report.model_dump_json(indent=2))
        return
    console = output_console()
    console.print(compare_table(report))
    if len(report.pairs) > 1 or report.floor is not None:
        console.print(summary_table(report))
    if report.lpips_note is not None:
        console.print(f"no LPIPS: {report.lpips_note}", markup=False, soft_wrap=True)
    for path in filter(None, (output, table, picture.video, model.keep)):
        console.print(f"wrote {path}", markup=False, soft_wrap=True)


def _compare_settings(
    of: Path,
    first: str,
    second: str,
    model: ModelOptions,
    sampling: CommonOptions,
    picture: PictureOptions,
    stages: Stages,
) -> CompareReport:
    from vorta_trt.runtime.comparison.settings import Setting, compare_settings
    from vorta_trt.runtime.pipelines.prompts import read_prompts, warn_of_empty

    with usage():
        settings = Setting.parse(first), Setting.parse(second)
    with usage("--floor"):
        floor = None if picture.floor is None else Setting.parse(picture.floor)
    params = sampling.params()
    one_of("--prompt / --prompts", model.prompt, model.prompts)
    if model.prompt is not None:
        warn_of_empty(model.prompt)
    source = model.source(of)
    with model.folder() as folder:
        return compare_settings(
            of,
            *settings,
            [str(model.prompt)] if model.prompts is None else read_prompts(model.prompts),
            folder,
            stages,
            source=source,
            images={
                name: path
                for name, path in (("image", model.image), ("last_image", model.last_image))
                if path is not None
            },
            checkpoint=model.checkpoint,
            params=params,
            executor=None if model.executor is None else model.executor.value,
            **(vars(picture) | {"floor": floor}),
        )
