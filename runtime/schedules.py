# SPDX-License-Identifier: Apache-2.0
"""Computes the timesteps of a schedule before sampling, with diffusers' schedulers; the router depends on them."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vorta_trt.model.constants import TRAIN_TIMESTEPS
from vorta_trt.model.families import families, get_family, usual_shifts
from vorta_trt.model.hub_cache import snapshot_of
from vorta_trt.model.records import load_content
from vorta_trt.plugins.errors import VortaError

# Command-line name -> (diffusers class, its parameter for the flow shift, its parameters for flow matching).
SCHEDULERS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "unipc": ("UniPCMultistepScheduler", "flow_shift", {"prediction_type": "flow_prediction", "use_flow_sigmas": True}),
    "flow-euler": ("FlowMatchEulerDiscreteScheduler", "shift", {}),
    "dpm++": (
        "DPMSolverMultistepScheduler",
        "flow_shift",
        {"prediction_type": "flow_prediction", "use_flow_sigmas": True},
    ),
}
FLOW_EULER = "flow-euler"
_RESTORE = "restore it from the published checkpoint"


@dataclass(frozen=True)
class Schedule:
    """A sampling schedule.

    Attributes:
        scheduler: Name of the scheduler's class in diffusers.
        shift: Flow shift of the scheduler; None where the steps are given.
        timesteps: The timesteps in sampling order.
        instance: The diffusers scheduler, for a pipeline to sample with.
    """

    scheduler: str
    shift: float | None
    timesteps: tuple[float, ...]
    instance: Any = field(default=None, repr=False, compare=False)

    def __str__(self) -> str:
        return f"{self.scheduler}, " + ("steps as given" if self.shift is None else f"shift {self.shift:g}")


def schedule_timesteps(
    checkpoint: str | Path | None,
    steps: int,
    scheduler: str | None = None,
    shift: float | None = None,
    *,
    gives_sigmas: bool | None = None,
) -> Schedule:
    """The timesteps that diffusers would sample with.

    Args:
        checkpoint: A pipeline folder, whose scheduler/scheduler_config.json has the defaults, or its transformer
            folder; None if there is none.
        steps: Number of sampling steps.
        scheduler: "unipc", "flow-euler" or "dpm++"; None takes the pipeline's own.
        shift: Flow shift; None takes the pipeline's own.
        gives_sigmas: Whether the pipeline gives its scheduler evenly spaced sigmas, see `ModelFamily`; None asks the
            checkpoint.

    Raises:
        ValueError: The scheduler is unknown, `steps` is below 1 or above 1000, or no scheduler is given and the
            checkpoint has none.
    """
    import diffusers
    import numpy as np

    if not 1 <= steps <= TRAIN_TIMESTEPS:
        raise ValueError(
            f"num_inference_steps {steps}: must be from 1 to {TRAIN_TIMESTEPS}, the timesteps that models are trained "
            f"with; the pipelines' default is 50"
        )
    config = None if checkpoint is None else _scheduler_config(Path(checkpoint))
    source = "the pipeline" if checkpoint is None else str(checkpoint)
    if scheduler is None:
        if config is None:
            missing = (
                "no checkpoint was found, so the schedule is unknown; give the pipeline folder with --checkpoint "
                "(to generate, there is no other way), or for a plan alone"
                if checkpoint is None
                else f"{source} has no scheduler/scheduler_config.json, so its schedule is unknown; "
                "give the pipeline folder, or"
            )
            raise ValueError(f"{missing} --scheduler ({', '.join(SCHEDULERS)}) and --flow-shift")
        name = config.get("_class_name")
        scheduler = next((key for key, (known, _, _) in SCHEDULERS.items() if known == name), None)
        if scheduler is None:
            raise ValueError(
                f"scheduler {name!r} of {source}: not one whose timesteps are known here; "
                f"choose one with --scheduler ({', '.join(SCHEDULERS)})"
            )
    if scheduler not in SCHEDULERS:
        raise ValueError(f"scheduler {scheduler!r}: must be one of {', '.join(SCHEDULERS)}")
    class_name, shift_key, required = SCHEDULERS[scheduler]
    if shift is None and config is not None:
        shift = config.get("flow_shift", config.get("shift"))
    if shift is None:
        unknown = "no checkpoint was found" if checkpoint is None else f"{source} does not say"
        raise ValueError(f"shift: {unknown}; give --flow-shift ({usual_shifts()})")
    if isinstance(shift, bool) or not isinstance(shift, int | float) or not 0 < shift < math.inf:
        raise ValueError(f"shift {shift!r}: must be positive; {usual_shifts()}")
    if gives_sigmas is None:
        gives_sigmas = checkpoint is not None and _evenly_spaced_sigmas(Path(checkpoint))
    overrides = {**required, shift_key: shift}
    with _config_errors(checkpoint):
        instance = getattr(diffusers, class_name).from_config({**(config or {}), **overrides})
        if gives_sigmas and takes_sigmas(instance):
            instance.set_timesteps(sigmas=np.linspace(1.0, 0.0, steps + 1)[:-1])  # as pipelines with `gives_sigmas` do
        else:
            instance.set_timesteps(steps)
    return Schedule(class_name, float(shift), tuple(float(timestep) for timestep in instance.timesteps), instance)


def given_schedule(
    checkpoint: str | Path | None,
    scheduler: str = FLOW_EULER,
    *,
    sigmas: Sequence[float] | None = None,
    timesteps: Sequence[float] | None = None,
    renoise: bool = False,
) -> Schedule:
    """A schedule with exactly these sigmas or timesteps, whatever the pipeline would choose; nothing is shifted.

    Args:
        checkpoint: The pipeline folder. Its scheduler config sets all other parameters, if it is of the same class.
        scheduler: "unipc", "flow-euler" or "dpm++".
        sigmas: Falling sigmas, from at most 1 to above 0; the last step goes to 0. The scheduler derives the timesteps:
            1000 times the sigma, for "unipc" and "dpm++" without the fraction.
        timesteps: Falling timesteps, from at most 1000 to above 0, if no sigmas are given.
        renoise: Whether to take the predicted video after every step and add fresh noise, as models of distribution
            matching distillation (DMD) are sampled. Otherwise the scheduler takes its plain step.
    """
    import diffusers
    import torch

    class_name, shift_key, required = SCHEDULERS[scheduler]
    kind: Any = getattr(diffusers, class_name)
    given = [float(value) for value in sigmas or ()] or [value / TRAIN_TIMESTEPS for value in timesteps or ()]

    class GivenSteps(kind):  # type: ignore[misc]
        """The scheduler with the given steps.

        Attributes:
            generator: Generator of the noise that is added after every step.
        """

        generator: torch.Generator | None = None
        sigmas: Any
        timesteps: Any

        def set_timesteps(
            self, num_inference_steps: Any = None, device: Any = None, sigmas: Any = None, mu: Any = None
        ) -> None:
            """Sets the given steps, whatever number of steps or sigmas the pipeline asks for."""
            super().set_timesteps(len(given), device=device)  # begins a new sample
            exact = torch.tensor(given, dtype=torch.float64)  # [P]
            times = exact * TRAIN_TIMESTEPS if timesteps is None else torch.tensor(timesteps, dtype=torch.float64)
            if scheduler != FLOW_EULER:  # the others take the logarithm of the signal, which is 0 at sigma 1
                exact = exact.clamp(max=1 - 1e-6)
                times = exact * TRAIN_TIMESTEPS if timesteps is None else times
            self.sigmas = torch.cat((exact, torch.zeros(1))).to(self.sigmas.device, torch.float32)  # [P + 1]
            self.timesteps = times.to(self.timesteps.device, self.timesteps.dtype)  # [P]

        def step(self, *arguments: Any, **options: Any) -> Any:
            noise = {"generator": self.generator} if renoise else {}
            return super().step(*arguments, **noise, **options)

    GivenSteps.__name__ = GivenSteps.__qualname__ = f"Given{class_name}"
    config = None if checkpoint is None else _scheduler_config(Path(checkpoint))
    if config is None or config.get("_class_name") != class_name:
        config = {}
    plain = {shift_key: 1.0, "use_dynamic_shifting": False, "stochastic_sampling": renoise}
    with _config_errors(checkpoint):
        instance = GivenSteps.from_config({**config, **required, **plain})
        instance.set_timesteps()
    return Schedule(class_name, None, tuple(map(float, instance.timesteps)), instance)


def takes_sigmas(scheduler: Any) -> bool:
    """Whether a diffusers scheduler lets the pipeline choose the sigmas."""
    return "sigmas" in inspect.signature(scheduler.set_timesteps).parameters


def _evenly_spaced_sigmas(checkpoint: Path) -> bool:
    """Whether the pipeline of this checkpoint gives its scheduler evenly spaced sigmas."""
    checkpoint = snapshot_of(checkpoint)
    for folder in (checkpoint / "transformer", checkpoint):
        path = folder / "config.json"
        if path.is_file():
            content = path.read_text(encoding="utf-8")
            return any(f'"{family.transformer_class}"' in content for family in families() if family.gives_sigmas)
    if checkpoint.is_file() or any(checkpoint.glob("*.safetensors")):  # weights without a config
        from vorta_trt.model.checkpoint import CheckpointReader

        with CheckpointReader(checkpoint) as reader:
            return get_family(reader.family).gives_sigmas
    return False


def _scheduler_config(checkpoint: Path) -> dict[str, Any] | None:
    """The pipeline's scheduler config; `checkpoint` may also be its transformer/ folder."""
    checkpoint = snapshot_of(checkpoint)
    for folder in (checkpoint, checkpoint.parent):
        path = folder / "scheduler" / "scheduler_config.json"
        if path.is_file():
            config = load_content(path, "scheduler config", _RESTORE)
            if not isinstance(config, dict):
                raise ValueError(f"scheduler config {path}: must hold one JSON object; {_RESTORE}")
            return config
    return None


@contextmanager
def _config_errors(checkpoint: str | Path | None) -> Iterator[None]:
    """Turns any error of diffusers' scheduler for invalid values into an error that names the file."""
    try:
        yield
    except VortaError:
        raise
    except Exception as error:
        raise ValueError(
            f"scheduler config of {checkpoint}: does not work ({type(error).__name__}: {error}); {_RESTORE}"
        ) from error
