# SPDX-License-Identifier: Apache-2.0
"""`StepBroadcast`: inside a range of timesteps, only every k-th step is computed.

This is the equivalent of Pyramid Attention Broadcast (PAB, arXiv 2408.12588) for a compiled engine. PAB computes an
attention at every k-th step inside a range of timesteps, and broadcasts its output to the steps between. Each kind of
attention has its own k, and the other layers are computed at every step. Parts of a compiled engine cannot be skipped,
so here the output of the whole step is broadcast. With the same numbers, this saves more and approximates more than
PAB.

The rule is that of diffusers' PyramidAttentionBroadcastConfig with `spatial_attention_block_skip_range` and
`spatial_attention_timestep_skip_range`: a step is skipped if its timestep lies strictly inside the range and its index
is no multiple of the interval.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import pydantic

from vorta_trt.runtime.sampling.step_cache import SETTINGS, ends_and

if TYPE_CHECKING:
    from vorta_trt.model.timestep_path import TimestepPath

DEFAULT_INTERVAL = 2
DEFAULT_RANGE = (100.0, 800.0)


@pydantic.dataclasses.dataclass(frozen=True, config=SETTINGS)
class StepBroadcast:
    """A `StepCache`.

    Args:
        interval: Inside the range, only steps whose index is a multiple of this are computed; 1 computes all.
        timestep_range: Bounds (low, high) of the range of timesteps, both excluded.
        method: Name of this kind of cache in JSON.
    """

    interval: int = DEFAULT_INTERVAL
    timestep_range: tuple[float, float] = DEFAULT_RANGE
    method: Literal["broadcast"] = "broadcast"

    def __post_init__(self) -> None:
        low, high = self.timestep_range
        if self.interval < 1:
            raise ValueError(f"interval {self.interval}: must be at least 1, which computes every step; use 2")
        if not low < high:
            raise ValueError(f"timestep range {low:g} to {high:g}: must go up; use 100 to 800")

    def for_model(self, path: TimestepPath | None) -> StepBroadcast:
        return self

    def compute(
        self, timesteps: Sequence[float], path: TimestepPath | None, forced: Sequence[bool]
    ) -> tuple[bool, ...]:
        low, high = self.timestep_range
        return tuple(
            force or not low < timestep < high or step % self.interval == 0
            for step, (timestep, force) in enumerate(zip(timesteps, ends_and(forced), strict=True))
        )

    def notes(self, timesteps: Sequence[float], path: TimestepPath | None) -> list[str]:
        return []

    def to_dict(self) -> dict[str, Any]:
        return {"method": "broadcast", "interval": self.interval, "timestep_range": list(self.timestep_range)}
