# SPDX-License-Identifier: Apache-2.0
"""Calibrated routes, as `RequestPlanner` uses them."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from torch import Tensor

if TYPE_CHECKING:
    from vorta_trt.model.geometry import AttentionGeometry

MODULE = "vorta_trt.model.route_calibration"


class Calibration(Protocol):
    """The part of `RouteCalibration` that sampling needs."""

    def check(self, family: str, layers: int, heads: int, geometry: AttentionGeometry) -> None:
        """Raises ValueError unless the routes were calibrated for such a model."""

    def overrides(self, timesteps: Iterable[float]) -> Tensor:
        """int32 [P, L, N]; -1 lets the router decide."""


def load_calibration(path: Path | None) -> Calibration | None:
    """Reads a file of calibrated routes; None for no path."""
    if path is None:
        return None
    calibration: Calibration = import_module(MODULE).RouteCalibration.load(path)
    return calibration
