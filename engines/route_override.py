# SPDX-License-Identifier: Apache-2.0
"""Calibrated routes in a bundle: the file is checked before a build, and described by `inspect`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from vorta_trt.engines.bundle import Bundle
from vorta_trt.engines.description import ModelDescription
from vorta_trt.engines.errors import BundleError

if TYPE_CHECKING:
    from vorta_trt.model.route_calibration import RouteCalibration


def check_route_override(path: Path, description: ModelDescription) -> None:
    """Raises ValueError or FileNotFoundError unless the file holds routes for the model."""
    from vorta_trt.model.geometry import AttentionGeometry
    from vorta_trt.model.route_calibration import RouteCalibration

    calibration = RouteCalibration.load(path)
    if description.family is None or description.metadata is None or description.geometry is None:
        raise ValueError(
            f"route_override {path}: cannot be checked, for the ONNX file says neither family nor heads; leave it out, "
            f"or export the model with vorta-trt export"
        )
    layers, heads = description.metadata["num_layers"], description.metadata["num_heads"]
    calibration.check(description.family, layers, heads, AttentionGeometry.from_dict(description.geometry))


def load_route_override(bundle: Bundle) -> RouteCalibration | None:
    """A bundle's calibrated routes, None if it has none. Raises BundleError if they are not readable."""
    from vorta_trt.model.route_calibration import RouteCalibration

    if bundle.route_override_path is None:
        return None
    try:
        return RouteCalibration.load(bundle.route_override_path)
    except ValueError as error:
        raise BundleError(bundle.path, [str(error)]) from error


def describe_route_override(bundle: Bundle) -> str | None:
    """A line about a bundle's calibrated routes, None if it has none; raises as `load_route_override`."""
    calibration = load_route_override(bundle)
    return None if calibration is None else calibration.describe()
