# SPDX-License-Identifier: Apache-2.0
"""Random ragged problems on every family of kernels, against the mask oracle; other ones every day.

`studies/fuzz_kernels.py` runs thousands of them.
"""

from __future__ import annotations

import pytest

from .random_judge import FP8_LIMIT, Judge, faults, refusal, runs_of
from .random_problems import draw

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("place", range(80))
def test_a_random_problem(place: int, seed: int) -> None:
    problem = draw(seed)
    if problem.mistake:
        assert not refusal(problem), problem
        return
    judge = Judge(problem)
    for family, precision in runs_of(problem):
        row = judge.run(family, precision)
        if row is not None:
            limit = FP8_LIMIT if problem.mild else float("inf")
            assert not faults(row.tolist(), precision, limit, problem.few_rows), (family, precision, problem)
