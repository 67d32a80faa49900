# SPDX-License-Identifier: Apache-2.0
"""The scheduler of a checkpoint, as the commands make it, but without importing the room of the commands."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any


def scheduler_of(checkpoint: Path) -> Callable[[int], Any]:
    """Makes the pipeline's own scheduler with a number of steps set."""
    import diffusers

    config = json.loads((checkpoint / "scheduler/scheduler_config.json").read_text())

    def make(steps: int) -> Any:
        scheduler = getattr(diffusers, config["_class_name"]).from_config(config)
        scheduler.set_timesteps(steps)
        return scheduler

    return make
