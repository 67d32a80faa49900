# SPDX-License-Identifier: Apache-2.0
"""The fuzz of the kernels itself, without a GPU: what it draws is valid, and what is wrong is found."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch

from vorta_trt.plugins import Problem, load_library

from .random_judge import BRANCHES, COUNTS, FIGURES, faults
from .random_problems import MISTAKES, Layout, RandomProblem, draw

NUMBERS = range(5000)


def problem_of(problem: RandomProblem) -> Problem:
    pattern = problem.pattern
    return Problem(
        dtype=problem.dtype, batch=problem.batch, heads=problem.heads, head_dim=problem.head_dim, grid=pattern.grid,
        tile=pattern.tile, window=pattern.window, bucket=pattern.bucket, keep=pattern.keep,
        coreset_keys=problem.coreset_keys, text_tokens=pattern.text, scale=problem.scale,
    )  # fmt: skip


def test_problems_are_valid_and_cover_what_there_is() -> None:
    seen: Counter[str] = Counter()
    for number in NUMBERS:
        problem = draw(number)
        assert problem == draw(number)
        load_library().validate(problem_of(problem))  # a mistake is made in the call, not here
        pattern = problem.pattern
        seen["ragged tile"] += any(extent % size for extent, size in zip(pattern.grid, pattern.tile, strict=True))
        seen["ragged bucket"] += any(extent % size for extent, size in zip(pattern.grid, pattern.bucket, strict=True))
        seen["tile above grid"] += any(size > extent for extent, size in zip(pattern.grid, pattern.tile, strict=True))
        seen["several query blocks"] += pattern.video > 300
        seen["over 32 heads"] += problem.batch * problem.heads > 32
        seen["repeated axis"] += any(layout.repeated for layout in problem.layouts.values())
        seen["length out of range"] += any(not 0 <= length <= pattern.text for length in problem.lengths)
        for what in (problem.poison, problem.mistake, problem.dtype, problem.coreset_keys, f"D {problem.head_dim}"):
            seen[what] += 1
        for route in (0, 1, 2):
            seen[f"route {route}"] += any(route in row for row in problem.routes)
    wanted = ["ragged tile", "ragged bucket", "several query blocks", "repeated axis", "nan", "inf", "bfloat16", "key"]
    wanted += ["float16", "query", "D 64", "D 128", "D 8", "D 256", "route 0", "route 1", "route 2", "over 32 heads"]
    assert all(seen[what] > 10 for what in wanted if not what.startswith("D ")), seen
    assert all(seen[what] for what in (*wanted, *MISTAKES, "tile above grid", "length out of range")), seen


@pytest.mark.parametrize("number", range(300))
def test_layouts_keep_rows_apart(number: int) -> None:
    problem = draw(number)
    sizes = problem.batch, min(problem.length, 50), problem.heads
    for name, layout in problem.layouts.items():
        assert name != "output" or not layout.repeated
        stride = layout.strides(sizes, problem.head_dim)
        places = torch.zeros(1, dtype=torch.long)
        for axis in range(3):
            count = 1 if axis in layout.repeated else sizes[axis]
            places = (places[:, None] + torch.arange(count) * stride[axis]).flatten()
        gaps = places.sort().values.diff()
        assert (gaps >= problem.head_dim).all()
        assert all(entry % 8 == 0 for entry in stride)


def test_layout_of_a_fused_projection() -> None:
    assert Layout().strides((2, 5, 3), 8) == (5 * 3 * 8, 3 * 8, 8)
    assert Layout((0, 2, 1), (0, 8, 0), (0,)).strides((2, 5, 3), 8) == (0, 16, 80)


def row(**figures: float) -> list[float]:
    """A verdict that is right but for these figures, of the sliding branch."""
    clean = {"rows": 10.0, "rms": 1e-3, "max": 1e-2, "torch_rms": 1e-3, "torch_max": 1e-2, "relative": 0.01}
    values = [0.0] * len(COUNTS)
    for branch in BRANCHES:
        given = {**clean, **(figures if branch == "sliding" else {})}
        values += [given.get(figure, 0.0) for figure in FIGURES]
    for at, name in enumerate(COUNTS):
        values[at] = figures.get(name, 0.0)
    return values


@pytest.mark.parametrize(
    ("figures", "precision", "found"),
    [
        ({}, "same", ""),
        ({"rms": 1.9e-3, "max": 1.9e-2}, "same", ""),
        ({"rms": 2.1e-3}, "same", "sliding: rms error 0.0021"),
        ({"max": 2.1e-2}, "same", "sliding: max error 0.021"),
        ({"rms": 2.1e-3, "rounding_rms": 1.1e-3}, "same", ""),
        ({"rms": math.inf}, "same", "sliding: rms error inf"),
        ({"rms": 1.0, "relative": 0.05}, "fp8", ""),
        ({"relative": 0.07}, "fp8", "sliding: relative error 0.0700"),
        *(({name: 3.0}, precision, f"{name}: 3") for name in COUNTS for precision in ("same", "fp8")),
    ],
)
def test_faults(figures: dict[str, float], precision: str, found: str) -> None:
    faulty = faults(row(**figures), precision, 0.06)
    assert [found] == [fault[: len(found)] for fault in faulty] if found else not faulty
