# SPDX-License-Identifier: Apache-2.0
"""The choice of branches, against every other choice there is."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from vorta_trt.model import AttentionGeometry, Branch
from vorta_trt.model.calibration.choose import choose_within_budget, choose_within_share

COSTS = (1000, 250, 135)
HEADS = 5
ALL = torch.tensor(list(itertools.product(range(3), repeat=HEADS)))  # [3^N, N]


def random_squares(seed: int, buckets: int = 3, layers: int = 4, heads: int = HEADS) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    squares = torch.rand(buckets, layers, heads, 3, generator=generator, dtype=torch.float64) ** 3
    squares[..., Branch.FULL] = 0
    return squares


def error_of(squares: Tensor, routes: Tensor) -> Tensor:
    """Sum over the heads: [K, L, N, 3], [K, L, N] -> [K, L]"""
    return squares.gather(3, routes.long().unsqueeze(3)).squeeze(3).sum(dim=2)


def cost_of(routes: Tensor, costs: tuple[int, ...] = COSTS) -> Tensor:
    return torch.tensor(costs)[routes.long()].sum(dim=-1)


@pytest.mark.parametrize("costs", [COSTS, (1000, 100, 400), (1000, 300, 300), (1000, 250, 1000)])
@pytest.mark.parametrize("budget", [0.05, 0.3, 0.8])
def test_no_cheaper_choice_keeps_the_budget(costs: tuple[int, ...], budget: float, seed: int) -> None:
    squares = random_squares(seed)
    routes = choose_within_budget(squares, costs, budget)
    assert routes.dtype == torch.int8 and routes.shape == (3, 4, HEADS)
    found, errors = cost_of(routes, costs), error_of(squares, routes)
    assert bool((errors <= budget**2 * (1 + 1e-9)).all())
    for bucket, layer in itertools.product(range(3), range(4)):
        every = squares[bucket, layer].gather(1, ALL.T).sum(dim=0)  # [3^N]
        allowed = every <= budget**2
        cheapest = cost_of(ALL, costs)[allowed].min()
        assert found[bucket, layer] == cheapest
        least = every[allowed & (cost_of(ALL, costs) == cheapest)].min()
        torch.testing.assert_close(errors[bucket, layer], least)


def test_it_is_more_than_a_threshold_for_each_head() -> None:
    """One head on full pays for two others: 0.9 does not fit beside 0.5, but 0.5 and 0.4 fit together."""
    squares = torch.zeros(1, 1, 3, 3, dtype=torch.float64)
    squares[0, 0, :, Branch.CORESET] = squares[0, 0, :, Branch.SLIDING] = torch.tensor([0.5, 0.9, 0.4])
    assert choose_within_budget(squares, COSTS, 0.95**0.5).tolist() == [[[2, 0, 2]]]
    assert choose_within_budget(squares, COSTS, 0.89**0.5).tolist() in ([[[2, 0, 0]]], [[[0, 0, 2]]])


def test_the_ends(seed: int) -> None:
    squares = random_squares(seed)
    assert not choose_within_budget(squares, COSTS, 1e-9).any()
    assert bool((choose_within_budget(squares, COSTS, 1e3) == Branch.SLIDING).all())
    assert not choose_within_share(squares, COSTS, [1, 1, 1], 1.0).any()
    assert bool((choose_within_share(squares, COSTS, [1, 1, 1], 0.135) == Branch.SLIDING).all())
    with pytest.raises(ValueError, match="target share 0.134: the cheapest branch everywhere takes 0.135 of dense"):
        choose_within_share(squares, COSTS, [1, 1, 1], 0.134)


def test_a_branch_without_error_is_free(seed: int) -> None:
    squares = random_squares(seed)
    squares[..., Branch.CORESET] = 0
    assert bool((choose_within_budget(squares, COSTS, 1e-9) == Branch.CORESET).all())
    assert bool((choose_within_share(squares, COSTS, [1, 1, 1], 1.0) == Branch.CORESET).all())


@pytest.mark.parametrize("share", [0.2, 0.4, 0.7])
def test_no_other_choice_of_the_flops_has_less_error(share: float, seed: int) -> None:
    squares, steps = random_squares(seed, buckets=2, layers=1, heads=3), [3, 1]
    routes = choose_within_share(squares, COSTS, steps, share)
    weights = torch.tensor(steps, dtype=torch.float64)

    def totals(table: Tensor) -> tuple[float, float]:
        """FLOPs and error over the schedule."""
        cost, error = cost_of(table).double().sum(dim=1), error_of(squares, table).sum(dim=1)  # [K]
        return float((cost * weights).sum()), float((error * weights).sum())

    cost, error = totals(routes)
    dense = COSTS[0] * 3 * sum(steps)
    assert cost <= share * dense * (1 + 1e-9)
    larger = []
    for choice in itertools.product(range(3), repeat=6):
        other_cost, other_error = totals(torch.tensor(choice).view(2, 1, 3))
        if other_cost <= cost:
            assert other_error >= error - 1e-12
        elif other_error < error - 1e-12:
            larger.append(other_cost)
    if cost < share * dense and larger:  # what is left is less than one bucket's switch to full
        assert share * dense - cost < max(steps) * (COSTS[0] - COSTS[2])


def test_real_size_takes_seconds(seed: int) -> None:
    """5 buckets of Wan 14B, costs of its published geometry."""
    geometry = AttentionGeometry.for_video(77, 720, 1280)
    costs = [geometry.attention_flops(branch, 128) for branch in Branch]
    squares = random_squares(seed, buckets=5, layers=40, heads=40) / 40
    routes = choose_within_budget(squares, costs, 0.3)
    errors = error_of(squares, routes).sqrt()
    assert bool((errors <= 0.3).all()) and bool((errors > 0.2).all())
    share = float(cost_of(routes, tuple(costs)).double().mean()) / (40 * costs[0])
    same = choose_within_share(squares, costs, [10] * 5, share)  # not layer by layer: less error for as many FLOPs
    assert float(cost_of(same, tuple(costs)).double().mean()) / (40 * costs[0]) == pytest.approx(share, rel=1e-3)
    assert float(error_of(squares, same).sum()) < float(error_of(squares, routes).sum())
