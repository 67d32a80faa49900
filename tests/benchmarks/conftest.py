# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the benchmarks' tests: fresh seeds and small cases that the CPU computes in float32."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from vorta_trt.benchmarks.cases import Case, Inputs, make_inputs
from vorta_trt.model import AttentionGeometry

VIDEO = AttentionGeometry((4, 6, 8), (2, 3, 2), (1, 1, 3), (2, 3, 2), 6)
RAGGED = AttentionGeometry((6, 9, 10), (4, 2, 3), (1, 3, 1), (2, 3, 2), 5)  # tiles of 2 to 24 tokens
WITH_TEXT = AttentionGeometry((6, 6, 8), (2, 2, 4), (3, 1, 1), (2, 3, 2), 6, "key", 13)


@pytest.fixture
def seed() -> int:
    """A fresh seed for every run, printed so that a failure can be repeated by returning it here."""
    value = random.SystemRandom().randrange(1 << 31)
    print(f"seed {value}")
    return value


def small_cases() -> list[Case]:
    """Cases without text, and with text of which no, some or all tokens are valid."""
    cases = [Case("video", VIDEO, 4, 0, 16, "fp32"), Case("ragged", RAGGED, 3, 0, 8, "fp32")]
    return [*cases, *(Case("text", WITH_TEXT, 3, length, 8, "fp32") for length in (0, 5, 13))]


@pytest.fixture(params=small_cases(), ids=lambda case: f"{case.name}-{case.text_length}")
def case(request: pytest.FixtureRequest) -> Case:
    chosen: Case = request.param
    return chosen


@pytest.fixture
def inputs(case: Case, seed: int) -> Inputs:
    return make_inputs(case, "cpu", seed)


@pytest.fixture
def make_case() -> Callable[..., Case]:
    """make_case(**changes): a small case without text."""

    def make(**changes: object) -> Case:
        values: dict[str, object] = {
            "name": "video", "geometry": VIDEO, "heads": 4, "text_length": 0, "head_dim": 16, "dtype": "fp32"
        }  # fmt: skip
        return Case(**{**values, **changes})  # type: ignore[arg-type]

    return make
