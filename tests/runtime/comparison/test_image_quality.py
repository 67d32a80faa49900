# SPDX-License-Identifier: Apache-2.0
"""PSNR and SSIM against values computed by hand and from the definition."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from vorta_trt.runtime.comparison.image_quality import mean_squared_error, psnr, ssim

C1, C2 = 0.0001, 0.0009


def grey(values: Any) -> Any:
    return np.repeat(np.asarray(values, dtype=float)[..., None], 3, axis=2)


def test_psnr() -> None:
    assert psnr(mean_squared_error(grey(np.zeros((4, 5))), grey(np.full((4, 5), 0.1)))) == pytest.approx(20)
    assert psnr(mean_squared_error(grey(np.zeros((4, 5))), grey(np.ones((4, 5))))) == 0
    assert psnr(0.0) == math.inf


@pytest.mark.parametrize(("one", "other"), [(0.0, 1.0), (0.2, 0.6), (0.5, 0.5)])
def test_ssim_of_flat_pictures_is_the_luminance_term(one: float, other: float) -> None:
    expected = (2 * one * other + C1) / (one**2 + other**2 + C1)
    assert ssim(grey(np.full((12, 30), one)), grey(np.full((12, 30), other))) == pytest.approx(expected, rel=1e-9)


def test_ssim_of_a_checkerboard_and_its_negative() -> None:
    """In an 11 x 11 window, the centre's colour outweighs the other by e: means (1 ± e) / 2, variance (1 - e²) / 4."""
    board = np.indices((11, 11)).sum(axis=0) % 2
    alternating = sum((-1) ** offset * math.exp(-(offset**2) / 4.5) for offset in range(-5, 6))
    excess = (alternating / sum(math.exp(-(offset**2) / 4.5) for offset in range(-5, 6))) ** 2
    means, variance = ((1 - excess) / 2, (1 + excess) / 2), (1 - excess**2) / 4
    luminance = (2 * means[0] * means[1] + C1) / (means[0] ** 2 + means[1] ** 2 + C1)
    expected = luminance * (-2 * variance + C2) / (2 * variance + C2)
    assert ssim(grey(board), grey(1 - board)) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("size", [(11, 11), (13, 17), (24, 12)])
def test_ssim_from_its_definition(size: tuple[int, int], seed: int) -> None:
    generator = np.random.default_rng(seed)
    first = generator.random((*size, 3))
    second = (first + 0.3 * generator.standard_normal((*size, 3))).clip(0, 1)
    offsets = np.arange(-5, 6)
    weights = np.exp(-(offsets[:, None] ** 2 + offsets[None] ** 2) / (2 * 1.5**2))
    weights /= weights.sum()
    x, y = (picture @ [0.299, 0.587, 0.114] for picture in (first, second))
    values = []
    for top in range(size[0] - 10):
        for left in range(size[1] - 10):
            a, b = x[top : top + 11, left : left + 11], y[top : top + 11, left : left + 11]
            mean_a, mean_b = (weights * a).sum(), (weights * b).sum()
            variance_a, variance_b = (weights * (a - mean_a) ** 2).sum(), (weights * (b - mean_b) ** 2).sum()
            covariance = (weights * (a - mean_a) * (b - mean_b)).sum()
            numerator = (2 * mean_a * mean_b + C1) * (2 * covariance + C2)
            values.append(numerator / ((mean_a**2 + mean_b**2 + C1) * (variance_a + variance_b + C2)))
    assert ssim(first, second) == pytest.approx(np.mean(values), rel=1e-9)
    assert ssim(first, second) == ssim(second, first) < 1
    assert ssim(first, first) == pytest.approx(1)


def test_too_small() -> None:
    with pytest.raises(ValueError, match="picture of 10 x 40: SSIM's window needs at least 11 x 11"):
        ssim(np.zeros((10, 40, 3)), np.zeros((10, 40, 3)))
