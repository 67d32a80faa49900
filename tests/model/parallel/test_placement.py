# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from vorta_trt.model import AttentionGeometry, Branch
from vorta_trt.model.parallel.placement import UNITS, BranchCosts, head_order, head_orders, head_work, rank_loads
from vorta_trt.model.parallel.ranks import Ranks

WAN = BranchCosts.of(AttentionGeometry.for_video(77, 720, 1280, "wan"))
HUNYUAN = BranchCosts.of(AttentionGeometry.for_video(117, 720, 1280, "hunyuan_video"))
FP8 = BranchCosts.of(AttentionGeometry.for_video(77, 720, 1280, "wan"), "fp8")


def every_mix(heads: int) -> Tensor:
    """Routes [mixes, N] with every number of full, coreset and sliding heads."""
    rows = [
        [Branch.FULL] * full + [Branch.CORESET] * coreset + [Branch.SLIDING] * (heads - full - coreset)
        for full in range(heads + 1)
        for coreset in range(heads + 1 - full)
    ]
    return torch.tensor(rows, dtype=torch.int32)


def least_makespans(heads: int, ranks: int, costs: BranchCosts) -> Tensor:
    """The optimum of every row of `every_mix`, by what is left for the next rank: the largest sum in integers."""
    of_branch = head_work(torch.tensor([Branch.FULL, Branch.CORESET, Branch.SLIDING]), costs).tolist()
    each, unreachable = heads // ranks, 1 << 40
    best = torch.full((heads + 1, heads + 1), unreachable)  # by full and coreset heads placed so far
    best[0, 0] = 0
    for _ in range(ranks):
        after = torch.full_like(best, unreachable)
        for full, coreset in itertools.product(range(each + 1), repeat=2):
            if full + coreset <= each:
                load = full * of_branch[0] + coreset * of_branch[1] + (each - full - coreset) * of_branch[2]
                before = best[: heads + 1 - full, : heads + 1 - coreset]
                reached = torch.where(before == unreachable, before, before.clamp(min=load))
                after[full:, coreset:] = torch.minimum(after[full:, coreset:], reached)
        best = after
    return torch.stack([best[full, coreset] for full in range(heads + 1) for coreset in range(heads + 1 - full)])


def largest_sums(routes: Tensor, costs: BranchCosts, ranks: int) -> Tensor:
    """In integers, of the balanced order."""
    order = head_orders(routes, costs, ranks)
    return head_work(routes, costs).gather(-1, order).unflatten(-1, (ranks, -1)).sum(-1).amax(-1)


@pytest.mark.parametrize("costs", [WAN, HUNYUAN, FP8], ids=["wan", "hunyuan", "fp8"])
@pytest.mark.parametrize(
    ("heads", "ranks", "above"),
    [(40, 2, 1.017), (40, 4, 1.0), (40, 8, 1.0), (24, 2, 1.0), (24, 3, 1.0), (24, 4, 1.0), (24, 8, 1.0), (12, 4, 1.0)],
)
def test_every_mix_is_at_the_optimum_or_near(heads: int, ranks: int, above: float, costs: BranchCosts) -> None:
    generator = torch.Generator().manual_seed(heads + ranks)
    routes = every_mix(heads)[:, torch.randperm(heads, generator=generator)]
    over = largest_sums(routes, costs, ranks) / least_makespans(heads, ranks, costs)
    assert float(over.min()) >= 1, "no order is better than the optimum"
    assert float(over.max()) <= above


@pytest.mark.parametrize(("heads", "ranks"), [(8, 2), (8, 4), (9, 3), (6, 3)])
def test_batches_with_different_routes_are_near_the_optimum_of_all_placements(heads: int, ranks: int) -> None:
    routes = torch.randint(0, 3, (40, 3, heads), generator=torch.Generator().manual_seed(0), dtype=torch.int32)
    work = head_work(routes, HUNYUAN).sum(-2)  # [40, N]
    each = heads // ranks
    orders = torch.tensor(list(partitions(tuple(range(heads)), each)))
    optimum = work[:, orders].unflatten(-1, (ranks, each)).sum(-1).amax(-1).amin(-1)
    balanced = work.gather(-1, head_order(routes, HUNYUAN, ranks)).unflatten(-1, (ranks, each)).sum(-1).amax(-1)
    over = balanced / optimum
    assert float(over.min()) >= 1
    assert float(over.max()) <= 1.1
    assert float(over.mean()) <= 1.01


def partitions(heads: tuple[int, ...], each: int) -> list[list[int]]:
    """Every placement once, as an order: the first head left is joined by every choice of others."""
    if not heads:
        return [[]]
    return [
        [heads[0], *others, *rest]
        for others in itertools.combinations(heads[1:], each - 1)
        for rest in partitions(tuple(head for head in heads[1:] if head not in others), each)
    ]


@pytest.mark.parametrize(("heads", "ranks"), [(40, 2), (40, 8), (24, 4), (7, 7), (6, 1)])
def test_an_order_is_a_permutation_within_the_stated_bound(heads: int, ranks: int) -> None:
    routes = torch.randint(-1, 4, (5, 4, 2, heads), generator=torch.Generator().manual_seed(1))  # unknown ids as well
    order = head_order(routes, WAN, ranks)
    assert order.dtype == torch.int64
    assert order.shape == (5, 4, heads)
    assert torch.equal(order.sort(dim=-1).values, torch.arange(heads).expand(5, 4, heads))
    by_rank = order.unflatten(-1, (ranks, -1))
    assert torch.equal(by_rank, by_rank.sort(dim=-1).values), "heads of a rank ascend"
    loads = rank_loads(routes, WAN, order, ranks)
    work = head_work(routes, WAN).sum(-2) * WAN.full / UNITS
    spread = work.amax(-1) - work.amin(-1)
    assert bool((loads.amax(-1) <= loads.mean(-1) + (1 - 1 / ranks) * spread + 1e-4).all())
    assert bool((loads.amax(-1) <= rank_loads(routes, WAN, in_order(routes, ranks), ranks).amax(-1) + 1e-4).all())


def in_order(routes: Tensor, ranks: int) -> Tensor:
    return head_order(routes, WAN, ranks, "in_order")


def test_layers_at_once_are_layers_one_by_one_and_an_unknown_id_is_full() -> None:
    routes = torch.randint(0, 3, (3, 2, 8), generator=torch.Generator().manual_seed(2), dtype=torch.int32)
    at_once = head_order(routes, WAN, 4)
    assert torch.equal(at_once, torch.stack([head_order(layer, WAN, 4) for layer in routes]))
    assert torch.equal(head_orders(routes, WAN, 4)[:, 1], head_order(routes[:, 1:], WAN, 4))
    assert torch.equal(head_order(torch.where(routes == 0, 7, routes), WAN, 4), at_once)
    assert torch.equal(in_order(routes, 4), torch.arange(8).expand(3, 8))
    assert in_order(routes, 4).is_contiguous()


def test_loads_are_the_sums_of_costs_in_their_own_unit() -> None:
    routes = torch.tensor([[0, 0, 1, 2]])
    costs = BranchCosts(4e-3, 1e-3, 0.5e-3)
    assert rank_loads(routes, costs, head_order(routes, costs, 2, "in_order"), 2).tolist() == pytest.approx(
        [8e-3, 1.5e-3]
    )
    balanced = rank_loads(routes, costs, head_order(routes, costs, 2), 2)
    assert balanced.tolist() == pytest.approx([5e-3, 4.5e-3])


def test_relative_work_follows_the_kernels_that_were_timed() -> None:
    """Milliseconds of bench attention, H100, 8 heads: full, coreset, sliding."""
    for costs, measured in ((WAN, (27.8, 7.31, 4.16)), (HUNYUAN, (62.4, 15.92, 7.50)), (FP8, (23.7, 6.3, 4.0))):
        assert costs == pytest.approx([time / measured[0] for time in measured], rel=0.05)


def test_measured_costs_win_over_those_of_the_geometry() -> None:
    """Where sliding heads are the slowest, both of them are not on one rank."""
    geometry = AttentionGeometry.for_grid((4, 6, 6))
    routes = torch.tensor([[[0, 1, 2, 2]]], dtype=torch.int32)
    group: Any = SimpleNamespace(size=lambda: 2)
    orders = []
    for costs in (None, BranchCosts(1.0, 1.0, 5.0)):
        (attention,) = Ranks(group, costs=costs).attentions(routes, geometry, "same")
        orders.append(cast(Any, attention).keywords["head_order"])
    assert torch.equal(orders[0], head_order(routes[0], BranchCosts.of(geometry), 2))
    assert {frozenset(pair.tolist()) for pair in orders[1].view(2, 2)} in (
        {frozenset({0, 2}), frozenset({1, 3})},
        {frozenset({0, 3}), frozenset({1, 2})},
    )


def test_what_cannot_be_placed_is_refused() -> None:
    routes = torch.zeros(1, 24, dtype=torch.int32)
    with pytest.raises(ValueError, match="5 GPUs for 24 heads: .* use one of 1, 2, 3, 4, 6, 8, 12, 24"):
        head_order(routes, WAN, 5)
    with pytest.raises(ValueError, match="placement 'best'"):
        head_order(routes, WAN, 4, "best")  # type: ignore[arg-type]
    for costs in ((1.0, -1.0, 0.0), (0.0, 0.0, 0.0), (1.0, float("nan"), 1.0), (1.0, 2.0)):
        with pytest.raises(ValueError, match="must be a number >= 0 for each"):
            head_order(routes, costs, 4)


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
def test_nothing_waits_for_the_gpu_and_every_device_finds_the_same_order() -> None:
    routes = torch.randint(0, 3, (60, 2, 40), generator=torch.Generator().manual_seed(3), dtype=torch.int32)
    on_gpu = routes.cuda()
    head_order(on_gpu, WAN, 4)
    torch.cuda.set_sync_debug_mode("error")
    try:
        order = head_order(on_gpu, WAN, 4)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(order.cpu(), head_order(routes, WAN, 4))
