# SPDX-License-Identifier: Apache-2.0
"""`train_router`: everything around the loop, from a checkpoint and a data folder to a run folder."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from vorta_trt.model.checkpoint import CheckpointReader
from vorta_trt.model.constants import TRANSFORMER
from vorta_trt.model.families.training import check_trains, training_family
from vorta_trt.model.geometry import PUBLISHED_REDUCTION_RATE, AttentionGeometry
from vorta_trt.model.precision import torch_dtype
from vorta_trt.model.router_checkpoint import COMPONENT, load_router
from vorta_trt.model.tiling import PUBLISHED_WINDOW
from vorta_trt.model.training.data import LatentDataset, Progress
from vorta_trt.model.training.devices import make_accelerator
from vorta_trt.model.training.objective import RouterObjective, attach_routers, freeze_all_but_routers
from vorta_trt.model.training.run_folder import RunFolder, TrainingState, check_resumable, open_log, run_config
from vorta_trt.model.training.settings import TrainingSettings
from vorta_trt.model.training.timesteps import timesteps_of
from vorta_trt.model.training.trainer import RouterTrainer
from vorta_trt.model.transformer import RoutedTransformer


class TrainingReport(BaseModel):
    """The result of a run.

    Attributes:
        output: The run folder.
        step: Steps done.
        samples: Samples of the data.
        skipped: Samples that were left out.
        batch_size: Samples of a step, over all processes.
        processes: Processes that shared them.
        first: Means of the numbers in the log over the first steps, as many as there are intervals.
        last: Means over as many last steps, so that both can be compared.
    """

    output: Path
    step: int
    samples: int
    skipped: int
    batch_size: int
    processes: int
    first: dict[str, float]
    last: dict[str, float]

    def to_json(self) -> str:
        """Returns one JSON object."""
        return self.model_dump_json(indent=2)

    def summary(self) -> str:
        """Returns three lines for people."""
        skipped = f" ({self.skipped} skipped)" if self.skipped else ""
        processes = f"{self.processes} process{'es' if self.processes > 1 else ''}"
        return (
            f"{self.step} steps on {self.samples} samples{skipped}\n"
            f"batch size {self.batch_size}, on {processes} of {self.batch_size // self.processes}\n"
            f"loss {self.first['loss']:.4g} -> {self.last['loss']:.4g}, "
            f"score of the full branch {self.first['score_full']:.3f} -> {self.last['score_full']:.3f}"
        )


def train_router(
    checkpoint: str | Path,
    data: str | Path,
    output: str | Path,
    settings: TrainingSettings | None = None,
    *,
    component: str = TRANSFORMER,
    video_size: tuple[int, int, int] | None = None,
    tile: Sequence[int] | None = None,
    window: Sequence[int] = PUBLISHED_WINDOW,
    bucket: Sequence[int] | None = None,
    reduction_rate: float = PUBLISHED_REDUCTION_RATE,
    router: str | Path | None = None,
    resume: bool = False,
    skip_bad: bool = False,
    device: str = "auto",
    fsdp: bool = False,
    tensorboard: bool = False,
    progress: Progress = lambda what, done, total: None,
) -> TrainingReport | None:
    """Trains the routers of a diffusers checkpoint.

    Start one process per GPU, e.g. with torchrun, to train on several. They share the samples of a step out among them,
    so the batch is as large as with one.

    Args:
        checkpoint: A diffusers pipeline folder or its transformer/ folder.
        data: A folder of `prepare_data`, or the reference code's layout, see `data.py`.
        output: The run folder to make, see `run_folder.py`; with `resume`, the one to continue.
        settings: Settings of the run; None takes the published ones.
        component: Which of two experts gets a router, trained at the timesteps that this expert takes.
        video_size: Frames, height, width in pixels; None takes the data's.
        tile: Tile of the sliding branch in tokens; None takes the published one, or what fits the size.
        window: Window of the sliding branch in tiles.
        bucket: Bucket of the coreset branch in tokens; None takes the published one, or what fits the size.
        reduction_rate: Share of a bucket's tokens that the coreset branch drops.
        router: Router that the training starts from; None starts from random weights.
        resume: Continue with the step after the latest checkpoint as if there had been no interruption; bit for bit
            where torch's backward passes are deterministic, as they are on the CPU.
        skip_bad: Leave out samples that cannot be trained on instead of refusing to start.
        device: "auto", "cpu" or "cuda".
        fsdp: Shard the frozen weights over the processes.
        tensorboard: Write event files beside log.jsonl.
        progress: Called with (what, done, total), by the main process alone.

    Returns:
        The report; None in processes other than the main one.

    Raises:
        FileNotFoundError: A file or folder that is given does not exist.
        CheckpointError: Checkpoint or router are not what they should be.
        DataError: The data is not what it should be.
        RunError: The output folder cannot be used as asked.
        ValueError: Another argument is invalid.
        TrainingError: The loss became infinite or NaN.
        VortaError: A package that an option needs is not installed.
    """
    settings = settings or TrainingSettings()
    with CheckpointReader(checkpoint, component) as reader:
        ratio = reader.boundary_ratio
        config, name = reader.config, reader.family
    family = training_family(name, config)
    check_trains(family, checkpoint)
    # Finds errors that do not depend on the size, before the data is read.
    AttentionGeometry.for_grid(family.facts.published_grid, name, window=window, reduction_rate=reduction_rate)
    dataset = LatentDataset(data, family)
    size = dataset.size(video_size)
    geometry = AttentionGeometry.for_video(
        *size, family=name, tile=tile, bucket=bucket, window=window, reduction_rate=reduction_rate, config=config
    )
    dataset.shape = family.facts.sample_shape(config, geometry.grid)
    run = RunFolder(output)
    state = run.load_state() if resume else None
    accelerator = make_accelerator(device)
    settings.micro_batches(accelerator.num_processes)
    if state is None:
        if accelerator.is_main_process:
            run.check_new()
        accelerator.wait_for_everyone()
    if not accelerator.is_main_process:
        progress = _silent

    skipped = _check_data(accelerator, dataset, skip_bad, progress)
    decisive = {**settings.decisive(), "data": dataset.fingerprint(), "geometry": geometry.to_dict()}
    of_expert = {} if ratio is None else {COMPONENT: component}
    decisive |= of_expert
    if state is not None:
        check_resumable(state, decisive, settings.steps)

    progress("loading the model", 0, 0)
    start = run.router_file(state.step) if state is not None else router
    loaded = None if start is None else load_router(start)
    model = RoutedTransformer.from_pretrained(
        checkpoint, loaded, geometry, dtype=torch_dtype(settings.precision), component=component
    )
    attach_routers(model, settings.seed)
    freeze_all_but_routers(model)
    objective = RouterObjective(model, family, settings.weights, settings.intervals)
    trainer = RouterTrainer(accelerator, objective, dataset, settings, fsdp, timesteps_of(component, ratio))
    if state is not None:
        trainer.restore(state)
    if accelerator.is_main_process:
        run.start(
            run_config(
                model_class=config["_class_name"],
                checkpoint=str(checkpoint),
                video_size=size,
                geometry=geometry,
                training={
                    "settings": settings.model_dump(mode="json"),
                    "samples": len(dataset),
                    "processes": accelerator.num_processes,
                },
            )
            | of_expert
        )
    _run(trainer, run, state, decisive, tensorboard, progress)
    if not accelerator.is_main_process:
        return None
    lines, turn = run.read_log(), settings.intervals
    return TrainingReport(
        output=run.path,
        step=settings.steps,
        samples=len(dataset),
        skipped=skipped,
        batch_size=settings.batch_size,
        processes=accelerator.num_processes,
        first=_means(lines[:turn]),
        last=_means(lines[-turn:]),
    )


def _run(
    trainer: RouterTrainer,
    run: RunFolder,
    state: TrainingState | None,
    decisive: dict[str, Any],
    tensorboard: bool,
    progress: Progress,
) -> None:
    """Does the steps after `state`, with log and checkpoints."""
    accelerator, settings = trainer.accelerator, trainer.settings
    done = 0 if state is None else state.step
    main = accelerator.is_main_process
    with open_log(run, done, tensorboard) if main else nullcontext() as write:
        progress(f"step {done + 1} of {settings.steps}, batch size {settings.batch_size}", done, settings.steps)
        for number in range(done + 1, settings.steps + 1):
            metrics = trainer.step(number)
            if write is not None:
                write(metrics)
            if number % settings.checkpoint_every == 0 or number == settings.steps:
                router, reached = trainer.state(number, decisive)
                if main:
                    run.save(router, reached)
                accelerator.wait_for_everyone()
            what = f"step {number} of {settings.steps}, loss {metrics['loss']:.4g}, full {metrics['share_full']:.0%}"
            progress(what, number, settings.steps)


def _check_data(accelerator: Any, dataset: LatentDataset, skip_bad: bool, progress: Progress) -> int:
    """Reads all samples once, in the main process; returns how many are left out."""
    from accelerate.utils import broadcast_object_list

    found = [dataset.find_bad(progress) if accelerator.is_main_process else {}]
    bad: dict[int, str] = broadcast_object_list(found)[0]
    dataset.leave_out(bad, skip_bad, quiet=not accelerator.is_main_process)
    return len(bad)


def _means(lines: list[dict[str, Any]]) -> dict[str, float]:
    """Means of what the lines of a log measure."""
    names = [name for name, value in lines[0].items() if isinstance(value, float) and name != "learning_rate"]
    return {name: statistics.fmean(line[name] for line in lines) for name in names}


def _silent(what: str, done: int, total: int) -> None:
    pass
