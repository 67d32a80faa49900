# SPDX-License-Identifier: Apache-2.0
"""The interface of all step caches.

A compiled engine returns the sample and no values from inside the model. So a skipped step reuses the whole output: the
sample that was last computed for the same context ("cond", "uncond"). The published methods reuse values from inside
the model instead: TeaCache the residual of all blocks, Pyramid Attention Broadcast the outputs of single attentions. So
their published quality figures do not carry over. Their rules for which steps to skip are used unchanged.

Which steps are skipped depends on the timesteps alone, never on the latents. So it is known exactly before sampling,
and it is the same for all contexts of a request.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

from pydantic import ConfigDict

if TYPE_CHECKING:
    from vorta_trt.model.timestep_path import TimestepPath


SETTINGS = ConfigDict(extra="forbid")  # pydantic configuration of the caches, which are also read from JSON


class StepCache(Protocol):
    """Which steps of a schedule are computed."""

    def for_model(self, path: TimestepPath | None) -> StepCache:
        """A copy of this cache with all settings filled in that depend on the model.

        Args:
            path: Timestep path of the model; None if it is not available.

        Raises:
            ValueError: The cache needs something that the model does not have.
        """

    def compute(
        self, timesteps: Sequence[float], path: TimestepPath | None, forced: Sequence[bool]
    ) -> tuple[bool, ...]:
        """One flag per step; False: the step reuses the last computed sample.

        Args:
            timesteps: Timesteps of the steps, as the transformer gets them.
            path: Timestep path of the model; None if it is not available.
            forced: Whether each step must be computed. The first and the last step are always computed.
        """

    def notes(self, timesteps: Sequence[float], path: TimestepPath | None) -> list[str]:
        """Notes for the user about this cache on this schedule."""

    def to_dict(self) -> dict[str, Any]:
        """The settings, for reports."""


def ends_and(forced: Sequence[bool], first: int = 1, last: int = 1) -> list[bool]:
    """`forced`, with the first and last steps forced as well."""
    steps = len(forced)
    return [force or step < first or step >= steps - last for step, force in enumerate(forced)]
