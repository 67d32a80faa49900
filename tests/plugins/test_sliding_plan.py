# SPDX-License-Identifier: Apache-2.0
"""The sliding branch as the host plans it: every query once, and to each exactly the keys that the mask says.

`list_sliding.cpp` lists the query tokens of every work item and its blocks of key tokens, which the Hopper kernel
fetches; mask_oracle.py says from the geometry alone what each query sees. No GPU is needed.
"""

from __future__ import annotations

import json
import random
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from .conftest import ROOT
from .mask_oracle import Pattern, sliding_mask
from .test_compiled_kernels import package_file

KERNELS = ROOT / "plugins" / "kernels"
SOURCES = (
    ROOT / "tests" / "plugins" / "driver" / "list_sliding.cpp",
    KERNELS / "sliding_plan.cpp",
    KERNELS / "sm90" / "window_cut.cpp",
)
ROWS, KEYS = 128, 144  # of a block


def pattern(grid: Any, tile: Any, window: Any) -> Pattern:
    return Pattern(grid, tile, window, bucket=(1, 1, 1), keep=1)


def random_pattern(number: int) -> Pattern:
    pick = random.Random(number)
    grid = pick.randint(1, 9), pick.randint(1, 26), pick.randint(1, 26)
    tile = tuple(pick.randint(1, max(1, pick.choice((extent, extent // 2, extent // 4)))) for extent in grid)
    return pattern(grid, tile, tuple(pick.choice((1, 3, 3, 5)) for _ in range(3)))


PATTERNS = (
    pattern((10, 18, 24), (5, 9, 8), (3, 3, 3)),
    pattern((7, 20, 26), (2, 9, 8), (3, 1, 3)),
    pattern((1, 1, 1), (1, 1, 1), (1, 1, 1)),
    pattern((3, 42, 45), (2, 37, 37), (1, 1, 1)),  # three of its windows are cut in two
    pattern((5, 19, 23), (9, 30, 40), (3, 3, 3)),  # tiles larger than the grid
    *(random_pattern(number) for number in range(24)),
)


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("needs g++ to compile the listing")
    path = tmp_path_factory.mktemp("sliding") / "list_sliding"
    cuda = package_file("nvidia", "cu13/include")
    foreign = (package_file("cutlass_library", "source/include"), cuda, cuda / "cccl")
    command = [
        compiler, "-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", f"-I{KERNELS}", f"-I{ROOT / 'plugins/include'}",
        *(f"-isystem{folder}" for folder in foreign), *SOURCES, "-o", path,
    ]  # fmt: skip
    result = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return path


def listed(program: Path, pattern: Pattern, cluster: int) -> list[list[dict[str, Any]]]:
    numbers = [*pattern.grid, *pattern.tile, *pattern.window, ROWS, KEYS, cluster]
    result = subprocess.run([program, *map(str, numbers)], capture_output=True, text=True, check=True)
    items: list[list[dict[str, Any]]] = json.loads(result.stdout)
    return items


@pytest.mark.parametrize("cluster", [1, 2])
@pytest.mark.parametrize("pattern", PATTERNS, ids=lambda p: f"{p.grid}-{p.tile}-{p.window}".replace(" ", ""))
def test_every_query_sees_what_the_mask_says(program: Path, pattern: Pattern, cluster: int) -> None:
    mask = sliding_mask(pattern)  # [S, S]
    times = torch.zeros(pattern.video, dtype=torch.int64)  # [S] that a token is computed
    for parts in listed(program, pattern, cluster):
        assert len({len(part["keys"]) for part in parts}) == 1  # they go over their blocks in step
        if parts[0]["shared"]:
            assert all(part["shared"] and part["keys"] == parts[0]["keys"] for part in parts)
        for part in parts:
            assert all(0 < len(block) <= KEYS for block in part["keys"])
            keys = torch.tensor([token for block in part["keys"] for token in block])
            seen = torch.zeros(pattern.video, dtype=torch.int64)
            seen.index_add_(0, keys, torch.ones_like(keys))
            queries = torch.tensor(part["queries"], dtype=torch.int64)
            assert len(queries) <= ROWS
            times.index_add_(0, queries, torch.ones_like(queries))
            assert (mask[queries].long() == seen).all()
    assert (times == 1).all()
