# SPDX-License-Identifier: Apache-2.0
"""`RouteGuards`: makes steps and layers dense through `route_override`, whatever the router says.

At each head a guard wins over a calibrated route, and a calibrated route over the router.

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
    """Steps and layers that have full attention because they matter most for quality.

    Args:
        dense_first: How many first steps are dense in all layers.
        dense_last: How many last steps are dense in all layers.
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
        """Whether each of P steps is dense in all layers. A cache must not skip such steps."""
        return [step < self.dense_first or step >= steps - self.dense_last for step in range(steps)]

    def override(self, steps: int, layers: int, heads: int, calibrated: Tensor | None = None) -> Tensor | None:
        """The calibrated routes with the guards applied, int32 [P, L, N]; None if there are neither.

        Args:
            steps: Number of steps P.
            layers: Number of layers L.
            heads: Number of heads N.
            calibrated: Calibrated routes, int32 [P, L, N] with -1 where the router decides; not modified.

        Raises:
            ValueError: The guards name layers that the model does not have, or the calibrated routes have another
                shape.
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
        """The guards as an object for JSON."""
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
