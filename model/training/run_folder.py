# SPDX-License-Identifier: Apache-2.0
"""A training run on disk, in the layout of the published routers; `load_router` and the authors' code read it.

    config.json                     model, video size and geometry (`self_attention_kwargs`); ours adds `training`
    ckpt/step-000100/router.pt      the routers' parameters
    ckpt/step-000100/training.pt    what resuming needs besides: optimiser, settings
    log.jsonl                       a line per step
    report/                         TensorBoard's event files, if asked for, where the authors' code has them

A step's folder appears whole or not at all. A line of the log has step, loss (weighted), diffusion, distillation,
regularisation (before weighting), grad_norm, learning_rate, interval and timesteps that were drawn, score_<branch>
(mean of the routers' scores), share_<branch> (of the heads, by hard routes), seconds, and on a GPU peak_memory_gib.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from torch import Tensor

from vorta_trt.model.files import make_folder, new_folder, write_json, write_text
from vorta_trt.model.geometry import AttentionGeometry
from vorta_trt.model.records import Record, first_error
from vorta_trt.model.torch_files import UnreadableTorchFile, load_torch_file
from vorta_trt.plugins.extras import import_extra

ROUTER_FILE = "router.pt"
STATE_FILE = "training.pt"
WriteMetrics = Callable[[dict[str, Any]], None]
_STEP = re.compile(r"step-(\d{6,})")


class RunError(ValueError):
    """A run folder cannot be used as asked; the message says why and what to do."""


class TrainingState(Record):
    """The state that a run is resumed from.

    Attributes:
        step: Steps done.
        decisive: Settings, data and geometry, which a resumed run must not change.
        optimizer: The optimiser's `state_dict`, tensors whole and on the CPU.
    """

    step: Annotated[int, Field(ge=1)]
    decisive: dict[str, Any]
    optimizer: dict[str, Any]


class _LogLine(Record):
    model_config = ConfigDict(extra="allow")

    step: Annotated[int, Field(ge=1)]


class RunFolder:
    """The folder of a run; only the main process writes to it."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.checkpoints = self.path / "ckpt"
        self.log_file = self.path / "log.jsonl"

    def steps(self) -> list[int]:
        """Returns the steps that have a checkpoint, ascending."""
        if not self.checkpoints.is_dir():
            return []
        found = [_STEP.fullmatch(entry.name) for entry in self.checkpoints.iterdir()]
        return sorted(int(match[1]) for match in found if match)

    def check_new(self) -> None:
        """Raises RunError if a run with checkpoints is here already."""
        if self.steps():
            raise RunError(
                f"output {self.path}: holds a training run already; continue it with --resume, or give another folder"
            )

    def start(self, config: dict[str, Any]) -> None:
        """Makes the folder and writes config.json."""
        make_folder(self.checkpoints)
        write_json(self.path / "config.json", config)

    def save(self, router: dict[str, Tensor], state: TrainingState) -> Path:
        """Writes a step's folder and returns it."""
        with new_folder(self._folder(state.step)) as unfinished:
            torch.save(router, unfinished / ROUTER_FILE)
            torch.save(state.model_dump(), unfinished / STATE_FILE)
        return self._folder(state.step)

    def load_state(self) -> TrainingState:
        """Returns the state of the latest step.

        Raises:
            RunError: There is none, or it is not readable.
        """
        steps = self.steps()
        if not steps:
            raise RunError(f"output {self.path}: has no ckpt/step-* to resume from; start the run without --resume")
        file = self._folder(steps[-1]) / STATE_FILE
        if not file.is_file():
            raise RunError(
                f"output {self.path}: {file} does not exist, so it was not trained here and cannot be resumed; start "
                f"another run from it with --router {self.path}"
            )
        try:
            return TrainingState.model_validate(load_torch_file(file))
        except (UnreadableTorchFile, ValidationError) as error:
            reason = first_error(error) if isinstance(error, ValidationError) else error
            raise RunError(
                f"output {self.path}: {file} is not readable ({reason}); remove {file.parent.name} to resume from the "
                f"step before"
            ) from error

    def router_file(self, step: int) -> Path:
        """Returns where the routers of a step are."""
        return self._folder(step) / ROUTER_FILE

    def read_log(self) -> list[dict[str, Any]]:
        """Returns the lines of the log; a last line that a kill cut off is left out.

        Raises:
            RunError: A line is no line of a log; the message names it.
        """
        if not self.log_file.is_file():
            return []
        line, lines = TypeAdapter(_LogLine), []
        for number, text in enumerate(self.log_file.read_bytes().split(b"\n")[:-1], 1):
            try:
                lines.append(line.validate_json(text).model_dump())
            except ValidationError as error:
                raise RunError(
                    f"log {self.log_file}, line {number}: {first_error(error)}; remove the line, or the whole file"
                ) from error
        return lines

    def _folder(self, step: int) -> Path:
        return self.checkpoints / f"step-{step:06d}"


@contextmanager
def open_log(run: RunFolder, resumed_from: int = 0, tensorboard: bool = False) -> Iterator[WriteMetrics]:
    """Opens a run's log, and gives a function that appends one step's line to it, at once.

    Args:
        run: The folder.
        resumed_from: Step that the run resumes from; lines of later steps, which are done again, are dropped. 0 starts
            a new log.
        tensorboard: Whether to write event files, too.

    Raises:
        MissingExtraError: tensorboard is not installed.
    """
    events: Any = None
    if tensorboard:
        import_extra("tensorboard", "train")
        from torch.utils.tensorboard import SummaryWriter

        events = SummaryWriter(str(run.path / "report"), purge_step=resumed_from + 1 if resumed_from else None)
    kept = [line for line in run.read_log() if line["step"] <= resumed_from] if resumed_from else []
    write_text(run.log_file, "".join(json.dumps(line) + "\n" for line in kept))

    def write(metrics: dict[str, Any]) -> None:
        stream.write(json.dumps(metrics) + "\n")
        stream.flush()
        if events is not None:
            for name, value in metrics.items():
                if name != "step" and isinstance(value, int | float):
                    events.add_scalar(name, value, metrics["step"])

    with run.log_file.open("a", encoding="utf-8") as stream, closing(events) if events else nullcontext():
        yield write


def check_resumable(state: TrainingState, decisive: dict[str, Any], steps: int) -> None:
    """Raises RunError unless a run with these settings can continue the run that saved `state`."""
    before, now = _flat(state.decisive), _flat(decisive)
    changed = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    if changed:
        name = changed[0]
        raise RunError(
            f"--resume: {name} is {now.get(name)}, but the run was started with {before.get(name)}"
            f"{f' (and {len(changed) - 1} more differ)' if changed[1:] else ''}; give the same, or start another run "
            f"from its router with --router"
        )
    if state.step >= steps:
        raise RunError(
            f"--resume: the run has done {state.step} steps, {steps} are asked for; nothing to do, or give more --steps"
        )


def run_config(
    *, model_class: str, checkpoint: str, video_size: tuple[int, int, int], geometry: AttentionGeometry, training: Any
) -> dict[str, Any]:
    """Returns the content of config.json, as the authors' code writes it, and `training` beside."""
    return {
        "name": model_class,
        "pretrained_model_path": checkpoint,
        "revision": None,
        "train_video_size": list(video_size),
        "self_attention_kwargs": {
            "lowres_window_size": list(geometry.bucket),
            "lowres_reduction_rate": reduction_rate(geometry),
            "window_size": list(geometry.window),
            "tile_size": list(geometry.tile),
            "latent_shape": list(geometry.grid),
        },
        "training": training,
    }


def reduction_rate(geometry: AttentionGeometry) -> float:
    """Returns the rate that `int(tokens * (1 - rate))` turns into the geometry's `keep`.

    That formula is the authors' own. They do not limit its result to at least 1, and a rate that gives 0 breaks their
    coreset branch.
    """
    tokens = geometry.bucket_tokens
    rate = 1 - geometry.keep / tokens
    if int(tokens * (1 - rate)) != geometry.keep:  # rounded down to one less
        rate = 1 - (geometry.keep + 0.5) / tokens
    return rate


def _flat(values: dict[str, Any]) -> dict[str, Any]:
    """Nested dicts as one, and tuples as the lists that JSON makes of them."""
    flat: dict[str, Any] = {}
    for name, value in json.loads(json.dumps(values)).items():
        nested = value if isinstance(value, dict) else {}
        flat.update({f"{name}.{key}": part for key, part in nested.items()} or {name: value})
    return flat
