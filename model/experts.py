# SPDX-License-Identifier: Apache-2.0
"""The experts of a pipeline: one transformer, or two of which each takes a part of the schedule.

With two experts, diffusers' pipelines run `transformer` at the steps whose timestep is at least `boundary_ratio` x 1000
(much noise), and `transformer_2` at the later ones (little noise). So the switch happens once in a video. People call
them high and low.

Letters: P denoising steps.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from vorta_trt.model.constants import TRAIN_TIMESTEPS, TRANSFORMER, TRANSFORMER_2
from vorta_trt.model.errors import CheckpointError

BOUNDARY = "boundary_ratio"  # the setting of model_index.json
Component = Literal["transformer", "transformer_2"]
NOISE = {TRANSFORMER: "high", TRANSFORMER_2: "low"}  # what people call them
BY_NOISE = {name: component for component, name in NOISE.items()}


def boundary_timestep(boundary_ratio: float) -> float:
    """The lowest timestep that the first of two experts takes, as diffusers' pipelines compute it."""
    return boundary_ratio * TRAIN_TIMESTEPS


def steps_of_experts(timesteps: Sequence[float], boundary_ratio: float | None) -> dict[str, range]:
    """Which steps of a schedule each expert takes.

    Args:
        timesteps: P timesteps, as the scheduler gives them.
        boundary_ratio: Boundary ratio of the pipeline; None with one expert, which takes all steps.

    Returns:
        The steps by component, in the order in which they run; an expert without a step is left out.

    Raises:
        ValueError: The timesteps go back and forth over the boundary.
    """
    if boundary_ratio is None:
        return {TRANSFORMER: range(len(timesteps))}
    import torch

    # The pipelines compare a float32 tensor with a Python number, and so does this.
    first = (torch.tensor(timesteps, dtype=torch.float32) >= boundary_timestep(boundary_ratio)).tolist()  # [P]
    switch = first.index(False) if False in first else len(first)
    if any(first[switch:]):
        raise ValueError(
            f"timesteps {', '.join(f'{timestep:g}' for timestep in timesteps)}: must fall, so that the experts switch "
            f"once, at {boundary_timestep(boundary_ratio):g}"
        )
    parts = {TRANSFORMER: range(switch), TRANSFORMER_2: range(switch, len(first))}
    return {component: steps for component, steps in parts.items() if steps}


def timesteps_of_expert(component: str, boundary_ratio: float | None) -> tuple[float, float]:
    """The highest and the lowest timestep that an expert sees."""
    if boundary_ratio is None:
        return TRAIN_TIMESTEPS, 0.0
    boundary = boundary_timestep(boundary_ratio)
    return (TRAIN_TIMESTEPS, boundary) if component == TRANSFORMER else (boundary, 0.0)


def check_boundary(value: object, source: str) -> float:
    """Returns the boundary ratio of two experts, checked.

    Raises:
        CheckpointError: The value is no number between 0 and 1.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1:
        raise CheckpointError(
            f"{source}: {BOUNDARY} {value!r} with a {TRANSFORMER_2}: must be a number between 0 and 1, which says "
            f"where the second expert takes over; restore the original file of the checkpoint"
        )
    return float(value)


def check_alike(configs: Mapping[str, Mapping[str, Any]], source: str) -> None:
    """Raises CheckpointError unless the transformers of both experts have one config."""
    first, *others = configs.values()
    for other in others:
        differing = [name for name in {**first, **other} if _shown(name) and first.get(name) != other.get(name)]
        if differing:
            name = differing[0]
            raise CheckpointError(
                f"{source}: its experts differ in {name}, {first.get(name)!r} and {other.get(name)!r}; they must be "
                f"two trainings of one architecture; download the checkpoint again"
            )


def _shown(name: str) -> bool:
    return not name.startswith("_")


def named(component: str) -> Component:
    """A component's name as the literal type of records; any unknown name becomes "transformer"."""
    return TRANSFORMER_2 if component == TRANSFORMER_2 else TRANSFORMER


def in_words(components: Iterable[str]) -> str:
    """Names of components with their noise levels, e.g. "transformer (high noise)"."""
    return " and ".join(f"{component} ({NOISE[component]} noise)" for component in components)
