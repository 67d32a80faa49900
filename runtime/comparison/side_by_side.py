# SPDX-License-Identifier: Apache-2.0
"""Frames of two samples beside each other, with their difference."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from vorta_trt.runtime.frames import Frame

GAIN = 4  # factor of the difference, which is hard to see otherwise
GAP = 8  # white pixels between the panels


def beside(first: Frame, second: Frame) -> npt.NDArray[np.uint8]:
    """Joins two frames [H, W, 3] and their difference into one [H', W', 3] with even sides, as the encoder needs."""
    gap = np.ones((first.shape[0], GAP, 3))  # [H, GAP, 3]
    difference = (GAIN * np.abs(first - second)).clip(0, 1)  # [H, W, 3]
    panels = np.concatenate((first, gap, second, gap, difference), axis=1)  # [H, 3 W + 2 GAP, 3]
    height, width = panels.shape[:2]
    panels = np.pad(panels, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")  # [H', W', 3]
    return np.ascontiguousarray(np.rint(panels * 255).astype(np.uint8))
