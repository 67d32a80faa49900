# SPDX-License-Identifier: Apache-2.0
"""`MakeVideos`: a complete description of videos to make, which can be sent to other processes; and its functions.

Either one process makes the videos alone (`make_videos`), or several processes with one GPU each make them together.
`make_with_gpus` launches such processes; with torchrun, each of them calls `make_as_rank`. Rank 0 writes the files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from vorta_trt.model.transformer import PLUGIN_OPS, RoutedTransformer
from vorta_trt.model.video_size import VideoSize
from vorta_trt.runtime.executors import ON_CPU
from vorta_trt.runtime.parallel.engine_ranks import engine_ranks
from vorta_trt.runtime.parallel.launch import launch
from vorta_trt.runtime.parallel.layout import Layout, choose_layout
from vorta_trt.runtime.parallel.ranks import Ranks
from vorta_trt.runtime.parallel.world import CPU, CUDA, TIMEOUT, World
from vorta_trt.runtime.pipelines.experts import BUNDLED, Override
from vorta_trt.runtime.pipelines.pipeline import GeneratedVideo, VortaPipeline
from vorta_trt.runtime.pipelines.planned import PlannedRequest
from vorta_trt.runtime.pipelines.planner import RequestPlanner
from vorta_trt.runtime.pipelines.residency import ResidencyChoice
from vorta_trt.runtime.sampling.params import SamplingParams
from vorta_trt.runtime.target import read_target
from vorta_trt.runtime.video_file import BackgroundFiles

if TYPE_CHECKING:
    from vorta_trt.runtime.from_checkpoint import Source

OnVideo = Callable[[dict[str, Any]], None]  # path of the file as "output", and the entries of `GeneratedVideo.to_dict`
OnStep = Callable[[int, int], None]  # (number of the video, number of the step that begins)
OnStage = Callable[[str, int, int], None]


@dataclass(frozen=True)
class MakeVideos:
    """Videos to make.

    Attributes:
        target: A bundle or an exported file; None for a checkpoint.
        sources: The transformers of a checkpoint that run in torch.
        checkpoint: The pipeline folder, see `RequestPlanner`.
        route_override: See `RequestPlanner`.
        variant: See `RequestPlanner`.
        size: Size of the videos; None takes the target's first size.
        pipeline: Keyword arguments of `VortaPipeline`.
        params: How to sample, without a seed.
        prompts: Prompts, one per video.
        seeds: Seeds of the noise, one per video.
        files: Output files, one per video.
        images: Images that the videos begin or end with, by the name of the pipeline's argument.
        frames_per_second: Frames per second of the files; None takes the model's own rate.
        locate: See `VortaTransformer.request`.
        guidance_parallel: See `choose_layout`.
        check_every: See `Ranks`.
    """

    target: Path | None
    sources: tuple[Source, ...] = ()
    checkpoint: Path | None = None
    route_override: Override | Mapping[str, Override] = BUNDLED
    variant: str | None = None
    size: str | None = None
    pipeline: Mapping[str, Any] = field(default_factory=dict)
    params: SamplingParams = field(default_factory=SamplingParams)
    prompts: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()
    files: tuple[Path, ...] = ()
    images: Mapping[str, Path] = field(default_factory=dict)
    frames_per_second: float | None = None
    locate: bool | None = None
    guidance_parallel: bool | None = None
    check_every: int = 0

    @property
    def executor(self) -> str | None:
        """Name of the executor of the transformer; None if the request does not name one."""
        return self.pipeline.get("executor")

    def planner(self, device: torch.device | None = None) -> RequestPlanner:
        """The planner of the videos.

        Args:
            device: The device that the models of a checkpoint are loaded to. None leaves their weights on disk, so the
                planner can plan but not run.

        Raises:
            Exception: Whatever loading a checkpoint or `RequestPlanner` raises.
        """
        options: dict[str, Any] = {"route_override": self.route_override, "variant": self.variant}
        if self.target is not None:
            return RequestPlanner(self.target, self.checkpoint, size=self.size, **options)
        models = [_loaded(source, device) for source in self.sources]
        if self.route_override == BUNDLED:  # a checkpoint has no bundled routes
            options["route_override"] = None
        both = (models[0], models[1]) if len(models) > 1 else models[0]
        return RequestPlanner(both, self.checkpoint or self.sources[0].checkpoint, **options)


def _loaded(source: Source, device: torch.device | None) -> RoutedTransformer:
    model = source.model(materialize=device is not None)
    if device is not None and device.type == CUDA:
        model.to(device)
        if model.dtype != torch.float32:
            model.block_ops = PLUGIN_OPS
    return model


def kind_of(request: MakeVideos) -> str:
    """The kind of device that the ranks compute on: "cuda", or "cpu" without a GPU or with an executor for the CPU."""
    executor = request.executor
    if request.target is not None and executor is None and read_target(request.target).bundle is None:
        return CPU
    return CUDA if torch.cuda.is_available() and executor not in ON_CPU else CPU


def layout_of(request: MakeVideos, planner: RequestPlanner, planned: PlannedRequest, ranks: int) -> Layout:
    """The layout of the ranks for a request; raises ValueError if the request cannot be run on that many ranks."""
    return choose_layout(
        ranks,
        guided=planned.guided,
        heads=planner.heads[1],
        guidance_parallel=request.guidance_parallel,
        shared_by=None if request.target is None else _engine_gpus(request.target),
    )


def _engine_gpus(target: Path) -> int:
    """The number of GPUs that must share a pass of an engine or an exported file."""
    metadata = read_target(target).metadata
    return 1 if metadata is None else metadata.ulysses


def make_videos(
    request: MakeVideos,
    planner: RequestPlanner,
    *,
    ranks: Ranks | None = None,
    device: str | None = None,
    on_video: OnVideo,
    on_step: OnStep,
    on_stage: OnStage,
) -> ResidencyChoice:
    """Makes the videos in this process, alone or as one of several ranks. Rank 0 writes the files.

    Args:
        request: The videos to make.
        planner: Planner of the request, whose models are loaded to a device (see `MakeVideos.planner`).
        ranks: The ranks that make the videos together; None for this process alone.
        device: Device of the engines, instead of the request's own.
        on_video: Called with each video that is written.
        on_step: Called as each step begins.
        on_stage: Called with the name and progress of the other stages.

    Returns:
        The residency of the pipeline: what was freed between the stages.
    """
    options = dict(request.pipeline)
    if device is not None:
        options["device"] = device

    writes = ranks is None or ranks.world.is_first
    rate = request.frames_per_second or planner.frames_per_second

    def close(number: int, made: GeneratedVideo) -> None:
        if writes:
            files.finish()
            on_video({"output": str(request.files[number]), **made.to_dict()})

    with (
        BackgroundFiles(lambda number: request.files[number], rate) as files,
        VortaPipeline(planner, ranks=ranks, **options) as pipe,
    ):
        pipe.generate_each(
            request.prompts,
            close,
            params=request.params,
            seeds=request.seeds,
            size=VideoSize(*planner.size),
            locate=request.locate,
            on_step=lambda number, step, planned: on_step(number, step),
            on_stage=on_stage,
            on_frames=files.write if writes else None,
            **request.images,  # type: ignore[arg-type]
        )
        return pipe.residency


def make_as_rank(
    world: World, request: MakeVideos, *, on_video: OnVideo, on_step: OnStep, on_stage: OnStage
) -> ResidencyChoice:
    """`make_videos` as one of several ranks; only rank 0 calls `on_step` and `on_stage`."""
    nothing = lambda *what: None  # noqa: E731
    with as_rank(world, request) as (planner, ranks, device):
        return make_videos(
            request,
            planner,
            ranks=ranks,
            device=device,
            on_video=on_video,
            on_step=on_step if world.is_first else nothing,
            on_stage=on_stage if world.is_first else nothing,
        )


@contextmanager
def as_rank(world: World, request: MakeVideos) -> Iterator[tuple[RequestPlanner, Ranks, str | None]]:
    """Yields the planner of a request on this rank, the `Ranks`, and the device of the engines.

    The device is None where the pipeline is to choose it. Within the block, engines for several GPUs can exchange data.
    """
    on_gpu = world.device.type == CUDA and request.target is not None
    planner = request.planner(world.device)
    layout = layout_of(request, planner, planner.plan(request.params), world.size)
    ranks = Ranks(world, layout, request.check_every)
    library = None
    if on_gpu and request.target is not None and ranks.sharing is not None:
        bundle = read_target(request.target).bundle
        library = None if bundle is None else bundle.plugin_library(world.device.index)
    with (
        nullcontext()
        if library is None or ranks.sharing is None
        else engine_ranks(library, ranks.sharing, world.device, world.timeout)
    ):
        yield planner, ranks, str(world.device) if on_gpu else None


def make_with_gpus(
    request: MakeVideos,
    gpus: int,
    *,
    port: int | None = None,
    timeout: float = TIMEOUT,
    on_video: OnVideo,
    on_step: OnStep,
    on_stage: OnStage,
) -> ResidencyChoice:
    """Starts one process per GPU; the processes make the videos together, and have ended when it returns or raises.

    Args:
        request: The videos to make.
        gpus: Number of processes.
        port: See `launch`.
        timeout: See `launch`.
        on_video: See `make_videos`. All three callbacks are called in this process.
        on_step: See `make_videos`.
        on_stage: See `make_videos`.

    Raises:
        RankError: One of the processes failed.
        ParallelError: See `launch`.
    """
    told = {"video": on_video, "step": on_step, "stage": on_stage}

    def hear(rank: int, message: tuple[str, tuple[Any, ...]]) -> None:
        kind, content = message
        told[kind](*content)  # type: ignore[operator]

    results = launch(_rank, request, gpus=gpus, kind=kind_of(request), port=port, timeout=timeout, on_message=hear)
    choice: ResidencyChoice = results[0]
    return choice


def _rank(world: World, request: MakeVideos) -> ResidencyChoice:
    """The function that every process of `make_with_gpus` runs."""

    def tell(kind: str, *content: Any) -> None:
        world.send((kind, content))

    return make_as_rank(
        world, request, on_video=partial(tell, "video"), on_step=partial(tell, "step"), on_stage=partial(tell, "stage")
    )
