# SPDX-License-Identifier: Apache-2.0
"""`train_router`: everything around the loop, from a checkpoint and a data folder to a run folder."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vorta_trt.model.checkpoint import CheckpointReader, load_router
from vorta_trt.model.families.training import training_family
from vorta_trt.model.geometry import PUBLISHED_REDUCTION_RATE, AttentionGeometry
from vorta_trt.model.tiling import PUBLISHED_WINDOW
from vorta_trt.model.training.dataset import LatentDataset, Progress
from vorta_trt.model.training.devices import make_accelerator
from vorta_trt.model.training.layouts import open_layout
from vorta_trt.model.training.metrics import MetricsLog, read_log
from vorta_trt.model.training.objective import RouterObjective
from vorta_trt.model.training.routers import attach_routers, freeze_all_but_routers
from vorta_trt.model.training.run_folder import RunFolder, TrainingState, check_resumable, run_config
from vorta_trt.model.training.settings import TrainingSettings
from vorta_trt.model.training.trainer import RouterTrainer
from vorta_trt.model.transformer import RoutedTransformer

TENSORBOARD_FOLDER = "report"  # where the authors' code has it


@dataclass(frozen=True)
class TrainingReport:
    """What a run came to.

    Attributes:
        output: the run folder. step: steps done. samples, skipped: of the data. first, last: means of the numbers in
            the log over the first and the last steps, as many as there are intervals, so that they compare.
    """

    output: Path
    step: int
    samples: int
    skipped: int
    first: dict[str, float]
    last: dict[str, float]

    def to_json(self) -> str:
        return json.dumps({**vars(self), "output": str(self.output)}, indent=2)

    def summary(self) -> str:
        skipped = f" ({self.skipped} skipped)" if self.skipped else ""
        return (
            f"{self.step} steps on {self.samples} samples{skipped}\n"
            f"loss {self.first['loss']:.4g} -> {self.last['loss']:.4g}, "
            f"score of the full branch {self.first['score_full']:.3f} -> {self.last['score_full']:.3f}"
        )


def train_router(
    checkpoint: str | Path,
    data: str | Path,
    output: str | Path,
    settings: TrainingSettings | None = None,
    *,
    video_size: tuple[int, int, int] | None = None,
    window: Sequence[int] = PUBLISHED_WINDOW,
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

    Start one process per GPU, e.g. with torchrun, to train on several.

    Args:
        checkpoint: a diffusers pipeline folder or its transformer/ folder.
        data: a folder of `prepare_data`, or the reference code's layout, see `layouts.py`.
        output: the run folder to make, see `run_folder.py`; with `resume`, the one to continue.
        settings: numbers; None is the published ones.
        video_size: frames, height, width in pixels; None takes the data's.
        window, reduction_rate: of the sliding and the coreset branch.
        router: where the routers start; None is random.
        resume: continue with the step after the latest checkpoint as if there had been no interruption; bit for bit
            where torch's backward passes are deterministic, as they are on the CPU.
        skip_bad: leave out samples that cannot be trained on instead of refusing to start.
        device: "auto", "cpu" or "cuda". fsdp: shard the frozen weights over the processes.
        tensorboard: write event files beside log.jsonl.
        progress: called with (what, done, total); by the main process alone.

    Returns:
        The report; None in processes other than the main one.

    Raises:
        FileNotFoundError, CheckpointError, DataError, RunError, ValueError: an argument is not what it should be.
        TrainingError: the loss became infinite or NaN.
        VortaError: a package that an option needs is not installed.
    """
    settings = settings or TrainingSettings()
    with CheckpointReader(checkpoint) as reader:
        config, name = reader.config, reader.family
    family = training_family(name, config)
    layout = open_layout(Path(data), name)
    size = layout.size(video_size)
    geometry = AttentionGeometry.for_video(*size, family=name, window=window, reduction_rate=reduction_rate)
    run = RunFolder(output)
    state = run.load_state() if resume else None
    accelerator = make_accelerator(device)
    if state is None:
        if accelerator.is_main_process:
            run.check_new()
        accelerator.wait_for_everyone()
    if not accelerator.is_main_process:
        progress = _silent

    dataset = LatentDataset(layout, family, family.facts.latent_shape(config, geometry.grid))
    skipped = _check_data(accelerator, dataset, skip_bad, progress)
    decisive = {
        **settings.decisive(),
        "data": dataset.fingerprint(),
        "geometry": geometry.to_dict(),
        "processes": accelerator.num_processes,
    }
    if state is not None:
        check_resumable(state, decisive, settings.steps)

    progress("loading the model", 0, 0)
    start = run.router_file(state.step) if state is not None else router
    model = _trainable_model(checkpoint, start, geometry, settings)
    objective = RouterObjective(model, family, settings.weights, settings.intervals)
    trainer = RouterTrainer(accelerator, objective, dataset, settings, fsdp)
    if state is not None:
        trainer.restore(state)
    if accelerator.is_main_process:
        training = {"settings": settings.to_dict(), "samples": len(dataset), "processes": accelerator.num_processes}
        run.start(
            run_config(
                model_class=config["_class_name"],
                checkpoint=str(checkpoint),
                video_size=size,
                geometry=geometry,
                training=training,
            )
        )
    _run(trainer, run, state, decisive, tensorboard, progress)
    if not accelerator.is_main_process:
        return None
    lines, turn = read_log(run.log_file), settings.intervals
    return TrainingReport(run.path, settings.steps, len(dataset), skipped, _means(lines[:turn]), _means(lines[-turn:]))


def _run(
    trainer: RouterTrainer,
    run: RunFolder,
    state: TrainingState | None,
    decisive: dict[str, Any],
    tensorboard: bool,
    progress: Progress,
) -> None:
    """The steps after `state`, with log and checkpoints."""
    accelerator, settings = trainer.accelerator, trainer.settings
    done = 0 if state is None else state.step
    log = None
    if accelerator.is_main_process:
        log = MetricsLog(run.log_file, done, run.path / TENSORBOARD_FOLDER if tensorboard else None)
    try:
        progress(f"step {done + 1} of {settings.steps}", done, settings.steps)
        for number in range(done + 1, settings.steps + 1):
            metrics = trainer.step(number)
            if log is not None:
                log.write(metrics)
            if number % settings.checkpoint_every == 0 or number == settings.steps:
                router, reached = trainer.state(number, decisive)
                if accelerator.is_main_process:
                    run.save(router, reached)
                accelerator.wait_for_everyone()
            what = f"step {number} of {settings.steps}, loss {metrics['loss']:.4g}, full {metrics['share_full']:.0%}"
            progress(what, number, settings.steps)
    finally:
        if log is not None:
            log.close()


def _trainable_model(
    checkpoint: str | Path, router: str | Path | None, geometry: AttentionGeometry, settings: TrainingSettings
) -> RoutedTransformer:
    loaded = None if router is None else load_router(router)
    model = RoutedTransformer.from_pretrained(checkpoint, router=loaded, geometry=geometry, dtype=settings.dtype)
    attach_routers(model, settings.seed)
    freeze_all_but_routers(model)
    return model


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
