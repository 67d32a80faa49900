# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import several_gpus as study
import torch

from vorta_trt.benchmarks.step.cases import CASES
from vorta_trt.model import AttentionGeometry
from vorta_trt.model.parallel.placement import BranchCosts
from vorta_trt.runtime.parallel.rates import H100, PassWork

ROOT = Path(__file__).parents[2]
RESULT = ROOT / "benchmarks/results/2026-11-28-simulated-several-gpus.json"


@pytest.fixture(scope="module")
def result() -> dict[str, Any]:
    read: dict[str, Any] = json.loads(RESULT.read_text(encoding="utf-8"))
    return read


def test_any_number_of_heads_places_each_of_them_once() -> None:
    routes = torch.tensor([[[0, 1, 1, 1, 2]]])
    loads, heads = study.any_counts(routes, BranchCosts(4.0, 1.0, 0.5), 2)
    assert sorted(loads.flatten().tolist()) == pytest.approx([3.5, 4])
    assert sorted(heads.flatten().tolist()) == [1, 4]


def test_one_order_of_equal_steps_is_the_balanced_one() -> None:
    routes = torch.tensor([0, 0, 1, 1]).expand(3, 2, 4)  # steps, layers, heads
    assert study.one_order(routes, BranchCosts(4.0, 1.0, 0.5), 2) == pytest.approx(1)


def test_what_windows_reach_in_the_other_half_of_the_frames() -> None:
    for grid, tile, share in (
        ((20, 45, 80), (5, 9, 8), 0.25),
        ((30, 45, 80), (6, 9, 8), 0.3),
        ((8, 4, 4), (8, 2, 2), 0.5),
    ):
        geometry = AttentionGeometry(grid, tile, (3, 3, 3), (2, 3, 2), 6)
        assert study.foreign_share(geometry) == pytest.approx(share)


def test_the_network_is_what_an_exchange_across_nodes_waits_for() -> None:
    sent = 15e9  # to 15 others, 8 of them in the other node
    assert study._exchange_across(sent, 16) == pytest.approx(H100.exchange_start + 8e9 / study.NETWORK)


@pytest.mark.parametrize(
    ("model", "layers", "heads", "flops"), [("wan-14b", 40, 40, 1753.8e12), ("hunyuan-video", 60, 24, 1471.4e12)]
)
def test_the_result_was_made_with_the_rates_of_today(
    result: dict[str, Any], model: str, layers: int, heads: int, flops: float
) -> None:
    work = PassWork(CASES[model].geometry, layers, heads, 128, flops)
    rows = [row for row in result["passes"] if row["model"] == model and row["precision"] == "same"]
    for row in rows:
        other = H100.profile(work).other * work.rows(row["gpus"]) / work.rows(1)
        assert row["other"] == pytest.approx(other, rel=1e-4)
        exchange = layers * sum(map(H100.exchange, work.sent_bytes(row["gpus"]))) if row["gpus"] > 1 else 0
        assert row["exchange"] == pytest.approx(exchange)


def test_the_document_has_the_figures_of_the_result(result: dict[str, Any]) -> None:
    document = (ROOT / "docs/several-gpus.md").read_text(encoding="utf-8")
    for model in study.MODELS:
        for mix in study.MIXES:
            rows = [each for each in result["balance"] if (each["model"], each["mix"]) == (model, mix)]
            cells = [f"{each[name]:.3f}" for each in rows[:3] for name in ("in_order", "balanced")]
            assert f"| {' | '.join(cells)} |" in document
