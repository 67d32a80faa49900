# SPDX-License-Identifier: Apache-2.0
"""The timing function's arithmetic, and on a GPU that it sees the GPU's time."""

from __future__ import annotations

import pytest
import torch

from vorta_trt.benchmarks.timing import Timer, Timing, matmul_ceiling, tflops


def test_statistics() -> None:
    assert Timing.of([3.0, 1.0, 2.0]) == Timing(median=2.0, minimum=1.0, p90=3.0, runs=3)
    assert Timing.of([float(value) for value in range(1, 21)]) == Timing(10.5, 1.0, 18.0, 20)
    assert Timing.of([4.0]) == Timing(4.0, 4.0, 4.0, 1)
    with pytest.raises(ValueError, match="no measurement"):
        Timing.of([])


def test_tflops() -> None:
    assert tflops(2 * 8192**3, 1.0) == pytest.approx(1099.5, abs=0.1)


@pytest.mark.gpu
def test_twice_the_work_takes_twice_as_long() -> None:
    left = torch.randn(2048, 2048, device="cuda", dtype=torch.float16)
    timer = Timer(seconds=0.05)
    once = timer(lambda: [left @ left for _ in range(8)])
    twice = timer(lambda: [left @ left for _ in range(16)])
    assert once.minimum <= once.median <= once.p90 and once.runs >= 5
    assert 1.5 < twice.median / once.median < 2.5


@pytest.mark.gpu
def test_ceiling() -> None:
    assert matmul_ceiling(Timer(seconds=0.05), torch.float16, size=2048) > 1
