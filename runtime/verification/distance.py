# SPDX-License-Identifier: Apache-2.0
"""The relative L2 distance of two tensors, and the ratio of their norms."""

from __future__ import annotations

from typing import Any

import torch


def distance(given: Any, expected: Any) -> tuple[float, float]:
    """|given - expected| / |expected| and |given| / |expected| of two arrays or tensors; 0 and 1 where both are 0."""
    given, expected = (torch.as_tensor(each).double().flatten() for each in (given, expected))
    norm = float(expected.norm())
    if norm == 0.0:
        return (0.0, 1.0) if float(given.norm()) == 0.0 else (float("inf"), float("inf"))
    return float((given - expected).norm()) / norm, float(given.norm()) / norm
