# SPDX-License-Identifier: Apache-2.0
"""`RouteGuards`: steps and layers that are dense whatever the router says, through `route_override`.

Precedence at a head, from strong to weak: a guard, a calibrated route, the router.

Letters: P denoising steps, L layers, N heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from vorta_trt.model.constants import ROUTER_DECIDES
from vorta_trt.model.geometry import Branch


@dataclass(frozen=True)
class RouteGuards:
    """Full attention where quality is decided.

    Args:
        dense_first: How many first steps are dense in all layers.
        dense_last: How many last steps are.
        dense_layers: Layers that are dense at every step, counted over all stacks of blocks.
    """

    dense_first: int = 0
    dense_last: int = 0
    dense_layers: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for name in ("dense_first", "dense_last"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} {getattr(self, name)}: must be a number of steps, 0 for none")

    def dense_steps(self, steps: int) -> list[bool]:
        """Which of P steps are dense in all layers. They are computed, too: a cache must not skip them."""
        return [step < self.dense_first or step >= steps - self.dense_last for step in range(steps)]

    def override(self, steps: int, layers: int, heads: int, calibrated: Tensor | None = None) -> Tensor | None:
        """The guards on top of calibrated routes: int32 [P, L, N]; None if neither says anything.

        Args:
            steps: P.
            layers: L.
            heads: N.
            calibrated: int32 [P, L, N] with -1 where the router decides; it is not changed.

        Raises:
            ValueError: Layers that the model does not have, or calibrated routes of another shape.
        """
        outside = [layer for layer in self.dense_layers if not 0 <= layer < layers]
        if outside:
            raise ValueError(f"dense_layers {outside[0]}: must be one of the model's, 0 to {layers - 1}")
        override = _checked(calibrated, (steps, layers, heads))
        dense = self.dense_steps(steps)
        if not any(dense) and not self.dense_layers:
            return override
        if override is None:
            override = torch.full((steps, layers, heads), ROUTER_DECIDES, dtype=torch.int32)  # [P, L, N]
        override[torch.tensor(dense)] = int(Branch.FULL)
        override[:, list(self.dense_layers)] = int(Branch.FULL)
        return override

    def to_dict(self) -> dict[str, Any]:
        """The guards as JSON has them."""
        return asdict(self)


def _checked(calibrated: Tensor | None, expected: Sequence[int]) -> Tensor | None:
    if calibrated is None:
        return None
    if calibrated.shape != torch.Size(expected) or calibrated.dtype != torch.int32:
        raise ValueError(
            f"calibrated routes of shape {tuple(calibrated.shape)}, {calibrated.dtype}: must be int32 "
            f"{tuple(expected)}, steps, layers and heads; calibrate for this model, and look the steps up with its "
            f"timesteps"
        )
    return calibrated.cpu().clone()
