# SPDX-License-Identifier: Apache-2.0
"""`vorta-trt train-router [run]` and `train-router prepare`."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from vorta_trt.commands.app import EXAMPLE, AsJson, Debug, command, group
from vorta_trt.commands.options import Checkpoint, Device, ExpertOption, expert_of, pixels
from vorta_trt.commands.settings_options import SettingsOptions
from vorta_trt.model.precision import TrainingPrecision


class _RunUnlessNamed(TyperGroup):
    """A group whose command `run` may be left out: `train-router CHECKPOINT` is `train-router run CHECKPOINT`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in (*self.commands, *ctx.help_option_names):
            args = ["run", *args]
        return super().parse_args(ctx, args)


train = group(
    "train-router",
    "Train routers, or prepare the data for it.",
    "vorta-trt train-router prepare CHECKPOINT --videos VIDEOS --size 77x480x832 -o DATA",
    "vorta-trt train-router CHECKPOINT --data DATA -o ROUTER",
    cls=_RunUnlessNamed,
)


class TrainingOptions(SettingsOptions):
    """Numeric options of a training run."""

    @classmethod
    def model(cls) -> Any:
        """Imports the settings."""
        from vorta_trt.model.training.settings import TrainingSettings

        return TrainingSettings


@command(
    f"vorta-trt train-router {EXAMPLE} --data DATA -o ROUTER",
    f"vorta-trt train-router {EXAMPLE} --data DATA -o ROUTER --resume",
    f"torchrun --nproc-per-node 2 -m vorta_trt.cli train-router {EXAMPLE} --data DATA -o ROUTER --fsdp",
    group=train,
)
def run(
    checkpoint: Checkpoint,
    data: Annotated[
        Path, typer.Option(help="A folder of `train-router prepare`, or the authors' videos2caption.json layout.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The router's training folder to write.")],
    training: TrainingOptions,
    expert: ExpertOption = None,
    size: Annotated[
        str | None, typer.Option(metavar="FxHxW", help="Frames x height x width in pixels [default: the data's].")
    ] = None,
    router: Annotated[Path | None, typer.Option(help="Start from this router [default: random].")] = None,
    tile: Annotated[
        str | None,
        typer.Option(metavar="FxHxW", help="Tile of the sliding branch, in tokens [default: what fits the size]."),
    ] = None,
    window: Annotated[
        str, typer.Option(metavar="FxHxW", help="Window of the sliding branch, in tiles; odd numbers.")
    ] = "3x3x3",
    bucket: Annotated[
        str | None,
        typer.Option(metavar="FxHxW", help="Bucket of the coreset branch, in tokens [default: what fits the size]."),
    ] = None,
    reduction_rate: Annotated[
        float, typer.Option(help="Share of a bucket's tokens that the coreset branch drops.")
    ] = 0.5,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the latest checkpoint in --output.")] = False,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave out samples that cannot be used.")] = False,
    device: Annotated[Device, typer.Option(help="auto is the GPU, if there is one.")] = Device.auto,
    fsdp: Annotated[bool, typer.Option("--fsdp", help="Shard the model over the processes of torchrun.")] = False,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Write event files into OUTPUT/report, beside log.jsonl.")
    ] = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Train the routers of a checkpoint (`run` may be left out).

    It writes config.json, ckpt/step-*/router.pt (what --router takes everywhere) and log.jsonl. For several GPUs, start
    one process per GPU with torchrun; they share the samples of a step out among them.
    """
    from vorta_trt.model.training import train_router

    settings = training.settings()
    component, _ = expert_of(checkpoint, expert)
    with _stages_of_main_process() as stages:
        report = train_router(
            checkpoint,
            data,
            output,
            settings,
            component=component,
            video_size=None if size is None else pixels(size),
            tile=None if tile is None else _shape(tile, "--tile"),
            window=_shape(window, "--window"),
            bucket=None if bucket is None else _shape(bucket, "--bucket"),
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
    router_option = str(output) if expert is None else f"{expert.value}={output}"
    typer.echo(
        f"{report.output}\n{report.summary()}\n"
        f"next: {shlex.join(['vorta-trt', 'routes', str(checkpoint), '--router', router_option])}"
    )


@command(f"vorta-trt train-router prepare {EXAMPLE} --videos VIDEOS --size 77x480x832 -o DATA", group=train)
def prepare(
    checkpoint: Checkpoint,
    videos: Annotated[Path, typer.Option(help="A folder of video files, <video>.txt with the caption beside each.")],
    size: Annotated[str, typer.Option(metavar="FxHxW", help="Frames x height x width in pixels.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The data folder to write, or to complete.")],
    captions: Annotated[
        Path | None,
        typer.Option(help="Take captions from this JSON object, video file -> caption, instead of text files."),
    ] = None,
    fps: Annotated[float | None, typer.Option(help="Frames per second to take [default: the model's own].")] = None,
    precision: Annotated[TrainingPrecision, typer.Option(help="The type of the text encoder.")] = "bf16",
    device: Annotated[Device, typer.Option(help="auto is the GPU, if there is one.")] = Device.auto,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave out videos that cannot be used.")] = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Make training data from videos and captions.

    It encodes both with the pipeline's own text encoder and VAE. What the folder has already is kept.
    """
    from vorta_trt.model.training import prepare_data
    from vorta_trt.runtime.console import Stages

    video = pixels(size)
    with Stages() as stages:
        prepared = prepare_data(
            checkpoint,
            videos,
            output,
            video,
            captions=captions,
            frames_per_second=fps,
            precision=precision,
            device=None if device is Device.auto else device.value,
            skip_bad=skip_bad,
            progress=stages,
        )
    if as_json:
        typer.echo(prepared.to_json())
        return
    command = ["vorta-trt", "train-router", str(checkpoint), "--data", str(output), "-o", "ROUTER"]
    typer.echo(f"{prepared.output}\n{prepared.summary()}\nnext: {shlex.join(command)}")


def _shape(text: str, option: str) -> tuple[int, int, int]:
    """Parses a tile, window or bucket such as 2x3x2."""
    parts = text.split("x")
    if len(parts) != 3 or not all(part.isdecimal() for part in parts):
        raise typer.BadParameter(f"{text!r}: must be FRAMESxHEIGHTxWIDTH; use e.g. 2x3x2", param_hint=option)
    frames, height, width = map(int, parts)
    return frames, height, width


def _stages_of_main_process() -> AbstractContextManager[Callable[[str, int, int], None]]:
    """A progress line in the main process; a callback that shows nothing in the other processes of torchrun."""
    from vorta_trt.runtime.console import Stages

    return Stages() if os.environ.get("RANK", "0") == "0" else nullcontext(lambda what, done, total: None)
