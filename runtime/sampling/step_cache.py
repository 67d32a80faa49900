# SPDX-License-Identifier: Apache-2.0
"""What every way of caching steps has in common.

A compiled engine gives the sample and nothing inside it, so what is reused on a skipped step is the whole output: the
sample that was last computed for the same context ("cond", "uncond"). The published methods reuse something inside the
model instead (TeaCache the residual of all blocks, Pyramid Attention Broadcast the outputs of single attentions), so
their published quality figures do not carry over; their rules for which steps to skip are taken as they are.

Which steps those are depends on the timesteps alone, never on the latents: it is known before sampling, equal for all
contexts of a request, and exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

from pydantic import ConfigDict

if TYPE_CHECKING:
    from vorta_trt.model.timestep_path import TimestepPath


SETTINGS = ConfigDict(extra="forbid")  # of caches, which are read from JSON, too


class StepCache(Protocol):
    """Which steps of a schedule are computed."""

    def for_model(self, path: TimestepPath | None) -> StepCache:
        """This cache with everything filled in that depends on the model.

        Args:
            path: Of the model, None if it is not at hand.

        Raises:
            ValueError: The cache needs what the model does not have.
        """

    def compute(
        self, timesteps: Sequence[float], path: TimestepPath | None, forced: Sequence[bool]
    ) -> tuple[bool, ...]:
        """One flag per step; False: the step reuses the last computed sample.

        Args:
            timesteps: As the transformer sees them.
            path: Of the model.
            forced: Steps that are computed whatever the cache thinks; the first and the last step always are.
        """

    def notes(self, timesteps: Sequence[float], path: TimestepPath | None) -> list[str]:
        """What the user should know of this cache on this schedule."""

    def to_dict(self) -> dict[str, Any]:
        """The settings, for reports."""


def ends_and(forced: Sequence[bool], first: int = 1, last: int = 1) -> list[bool]:
    """`forced`, with the first and last steps forced as well."""
    steps = len(forced)
    return [force or step < first or step >= steps - last for step, force in enumerate(forced)]
