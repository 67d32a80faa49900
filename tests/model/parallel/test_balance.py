# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from vorta_trt.model import AttentionGeometry, RouteTable
from vorta_trt.model.parallel.balance import Balance
from vorta_trt.model.parallel.placement import BranchCosts

COSTS = BranchCosts(4.0, 1.0, 0.5)


def test_loads_ratios_and_what_placing_brings() -> None:
    routes = torch.tensor([[[0, 0, 1, 2], [2, 2, 2, 2]], [[1, 0, 1, 0], [2, 1, 2, 1]]])  # 2 steps, 2 layers, 4 heads
    balance = Balance.of(routes, 2, COSTS)
    assert balance.in_order.tolist() == [[[8, 1.5], [1, 1]], [[5, 5], [1.5, 1.5]]]
    assert balance.balanced.amax(-1).tolist() == [[5, 1], [5, 1.5]]
    assert balance.balanced.sum(-1).equal(balance.in_order.sum(-1))
    assert balance.over_mean()["in order"][0].tolist() == pytest.approx([8 / 4.75, 1])
    assert balance.speedup == pytest.approx((8 + 1 + 5 + 1.5) / (5 + 1 + 5 + 1.5))
    lines = balance.lines((1000.0, 500.0))
    assert [line.split() for line in lines[2:5]] == [
        ["1000.0", "1.565", "1.684", "1.043", "1.053"],
        ["500.0", "1.000", "1.000", "1.000", "1.000"],
        ["all", "1.265", "1.684", "1.020", "1.053"],
    ]
    written = json.loads(json.dumps(balance.to_dict()))
    assert written["gpus"] == 2
    assert written["costs"] == {"full": 4, "coreset": 1, "sliding": 0.5}
    assert written["loads_in_order"] == balance.in_order.tolist()
    assert written["busiest_over_mean"]["in_order"] == pytest.approx(15.5 / 12.25)


def test_seconds_keep_their_digits_and_branches_may_cost_nothing() -> None:
    routes = torch.tensor([[[0, 1, 2, 2], [2, 2, 2, 2]]])
    balance = Balance.of(routes, 2, BranchCosts(3.5e-3, 9.1234567e-4, 0.0))
    assert balance.to_dict()["loads_in_order"][0][0] == pytest.approx([4.41234567e-3, 0], rel=1e-6)
    assert balance.over_mean()["balanced"][0, 1] == 1


def test_the_picture_shows_both_placements(tmp_path: Path) -> None:
    routes = torch.randint(0, 3, (3, 2, 4), generator=torch.Generator().manual_seed(0), dtype=torch.int8)
    table = RouteTable(
        (1000.0, 500.0, 1.0), routes, torch.full((3, 2, 4, 3), 1 / 3), 0.3, AttentionGeometry.for_grid((4, 6, 6)), 16
    )
    file = table.plot(tmp_path / "balance.svg", balance=Balance.of(routes, 2, BranchCosts.of(table.geometry)))
    picture = file.read_text()
    for text in ("2 GPUs, heads in order", "2 GPUs, heads balanced", "busiest GPU / mean"):
        assert f"<!-- {text} -->" in picture
