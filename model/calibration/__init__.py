# SPDX-License-Identifier: Apache-2.0
"""Training-free routes: a branch per layer, head and bucket of timesteps, from the measured error of each branch.

Names are loaded on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vorta_trt.plugins.lazy import lazy_attributes

if TYPE_CHECKING:
    from vorta_trt.model.calibration.calibrate import calibrate_routes as calibrate_routes
    from vorta_trt.model.calibration.measure import CalibrationError as CalibrationError
    from vorta_trt.model.calibration.report import CalibrationReport as CalibrationReport
    from vorta_trt.model.calibration.settings import CalibrationSettings as CalibrationSettings

_HOME = {
    "CalibrationError": "measure",
    "CalibrationReport": "report",
    "CalibrationSettings": "settings",
    "calibrate_routes": "calibrate",
}
__all__ = list(_HOME)
__getattr__, __dir__ = lazy_attributes(__name__, _HOME)
