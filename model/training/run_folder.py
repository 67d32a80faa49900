# SPDX-License-Identifier: Apache-2.0
"""A training run on disk, in the layout of the published routers; `load_router` and the authors' code read it.

    config.json                     model, video size and geometry (`self_attention_kwargs`); ours adds `training`
    ckpt/step-000100/router.pt      the routers' parameters
    ckpt/step-000100/training.pt    what resuming needs besides: optimiser, settings
    log.jsonl                       a line per step, see `metrics.py`

A step's folder appears whole or not at all.
"""

from __future__ import annotations

import json
import pickle
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vorta_trt.model.files import new_folder, write_json
from vorta_trt.model.geometry import AttentionGeometry

ROUTER_FILE = "router.pt"
STATE_FILE = "training.pt"
CONFIG_FILE = "config.json"
LOG_FILE = "log.jsonl"
_STEP = re.compile(r"step-(\d{6,})")


class RunError(ValueError):
    """A run folder cannot be used as asked; the message says why and what to do."""


@dataclass(frozen=True)
class TrainingState:
    """What a run is resumed from.

    Attributes:
        step: steps done. decisive: settings, data, geometry and number of processes, which must stay. optimizer: its
        `state_dict`, tensors whole and on the CPU.
    """

    step: int
    decisive: dict[str, Any]
    optimizer: dict[str, Any]


class RunFolder:
    """The folder of a run; only the main process writes to it."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.checkpoints = self.path / "ckpt"
        self.log_file = self.path / LOG_FILE

    def steps(self) -> list[int]:
        """Steps that have a checkpoint, ascending."""
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
        self.checkpoints.mkdir(parents=True, exist_ok=True)
        write_json(self.path / CONFIG_FILE, config)

    def save(self, router: dict[str, Tensor], state: TrainingState) -> Path:
        """Writes a step's folder and returns it."""
        folder = self._folder(state.step)
        with new_folder(folder) as unfinished:
            torch.save(router, unfinished / ROUTER_FILE)
            torch.save(vars(state), unfinished / STATE_FILE)
        return folder

    def load_state(self) -> TrainingState:
        """The state of the latest step. Raises RunError if there is none or it is not readable."""
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
            content = torch.load(file, map_location="cpu", weights_only=True)
            return TrainingState(**content)
        except (pickle.UnpicklingError, EOFError, OSError, RuntimeError, ValueError, TypeError, LookupError) as error:
            raise RunError(
                f"output {self.path}: {file} is not readable ({error}); remove {file.parent.name} to resume from the "
                f"step before"
            ) from error

    def router_file(self, step: int) -> Path:
        return self._folder(step) / ROUTER_FILE

    def _folder(self, step: int) -> Path:
        return self.checkpoints / f"step-{step:06d}"


def check_resumable(state: TrainingState, decisive: dict[str, Any], steps: int) -> None:
    """Raises RunError unless a run with these settings continues the one that `state` is of."""
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
    """config.json, as the authors' code writes it, and `training` beside."""
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

    That formula is the authors' own. They take no minimum of it: a rate that gives 0 breaks their coreset branch.
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
