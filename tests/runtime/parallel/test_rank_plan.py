# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from vorta_trt.benchmarks.step.cases import CASES, mixed_routes
from vorta_trt.model import AttentionGeometry
from vorta_trt.runtime.parallel.rank_plan import RankPlan, plan_ranks
from vorta_trt.runtime.parallel.rates import H100, PassWork
from vorta_trt.runtime.sampling.cost import StepProfile

# FLOPs outside the attention, of `model/transformer_flops.py` with the published configs.
WAN = PassWork(CASES["wan-14b"].geometry, 40, 40, 128, 1753.8e12)
HUNYUAN = PassWork(CASES["hunyuan-video"].geometry, 60, 24, 128, 1471.4e12)


def half_and_half(work: PassWork, steps: int = 1) -> Tensor:
    return mixed_routes("50/50", work.layers, work.heads).expand(steps, -1, -1)  # [S, L, N]


@pytest.mark.parametrize(
    ("work", "measured"),
    [
        (WAN, 4.08),  # 102 ms a layer, block operators
        (replace(WAN, attention_precision="fp8", linear_precision="fp8"), 40 * 75.5e-3),
        (HUNYUAN, 4.82),
    ],
    ids=["wan", "wan fp8", "hunyuan"],
)
def test_one_gpu_is_predicted_as_measured(work: PassWork, measured: float) -> None:
    """Seconds of a pass on an H100, of docs/measurements.md."""
    plan = plan_ranks(work, half_and_half(work), ulysses=1)
    assert plan.one_gpu.total == pytest.approx(measured, rel=0.05)
    assert plan.balanced == plan.in_order == plan.one_gpu


@pytest.mark.parametrize(
    ("ranks", "measured"), [(2, (1.8e-3, 0.7e-3)), (4, (1.3e-3, 0.5e-3))], ids=["2 GPUs", "4 GPUs"]
)
def test_exchanges_are_predicted_as_measured(ranks: int, measured: tuple[float, float]) -> None:
    sent = WAN.sent_bytes(ranks)
    assert sent[0] == 3 * 72000 // ranks * 5120 * 2 * (ranks - 1) // ranks
    assert [H100.exchange(each) for each in sent] == pytest.approx(measured, rel=0.06)


def test_parts_of_a_request_by_hand() -> None:
    geometry = AttentionGeometry.for_grid((4, 6, 6))
    work = PassWork(geometry, layers=1, heads=4, head_dim=16, other_flops=0.0)
    profile = StepProfile(other=6.0, full=4.0, coreset=1.0, sliding=0.5)
    routes = torch.tensor([[[0, 0, 1, 2]], [[2, 2, 2, 2]], [[0, 0, 0, 0]]])
    plan = plan_ranks(
        work, routes, ulysses=2, guidance=2, passes=(2, 1, 2), compute=(True, True, False), profile=profile
    )
    assert (plan.gpus, plan.guidance, plan.ulysses) == (4, 2, 2)
    assert plan.one_gpu.total == pytest.approx(2 * (6 + 9.5) + (6 + 2))  # the third step is reused
    exchange = sum(map(H100.exchange, work.sent_bytes(2)))
    assert plan.in_order.attention == pytest.approx(8 + 1)
    assert plan.balanced.attention == pytest.approx(5 + 1)
    assert plan.balanced.other == pytest.approx(3 + 3)
    assert plan.balanced.exchange == pytest.approx(2 * exchange)
    assert plan.step_seconds == pytest.approx([3 + 5 + exchange, 3 + 1 + exchange, 0])
    assert plan.speedup == pytest.approx(39 / (12 + 2 * exchange))
    assert RankPlan.model_validate_json(plan.model_dump_json()) == plan
    lines = list(plan.lines())
    assert lines[0].startswith("predicted seconds of the transformer on 2 x 2 GPUs (guidance x heads), from the step")
    assert lines[-1].split()[-1] == f"{plan.speedup:.2f}"
    assert lines[4].split()[-1] == f"{2 * exchange:.3g}", "tiny models have figures, too"


def test_text_rows_are_on_every_rank_and_ragged_shards_are_padded() -> None:
    work = PassWork(AttentionGeometry.for_grid((3, 3, 3), text_tokens=5), 2, 6, 8, 1e9)
    assert [work.rows(ranks) for ranks in (1, 2, 3)] == [32, 19, 14]
    assert work.exchange_bytes(2) == 8 * 19 * 48 * 2
    assert work.sent_bytes(2) == (3 * 14 * 48, 14 * 48 + 5 * 48)
    with pytest.raises(ValueError, match="4 GPUs for 6 heads"):
        plan_ranks(work, torch.zeros(1, 2, 6), ulysses=4)
