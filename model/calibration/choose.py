# SPDX-License-Identifier: Apache-2.0
"""Which branch every head takes: the fewest attention FLOPs for an error, or the least error for the FLOPs.

Squared errors of heads after the output projection are added up: exact if the heads' errors are orthogonal there,
otherwise an estimate of the layer's squared error (which is at most N times the sum, by Cauchy-Schwarz). The check at
the end of a calibration measures the real error.

    within a budget   in every layer and bucket, the sum stays at or below the budget's square, and no other choice that
                      does so has fewer FLOPs; among those with as few FLOPs it has the least error. Exact.
    within a share    the FLOPs of the whole table stay at or below that share of dense attention's, and no other choice
                      with as many FLOPs as it has, or fewer, has a smaller sum of squared errors over all heads, layers
                      and steps. It may leave FLOPs unused, fewer than the next switch of a branch costs.

Letters: K buckets, L layers, N heads, U independent layers (K * L).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vorta_trt.model.geometry import Branch

_BISECTIONS = 200  # down to neighbouring float64 numbers
_ROUNDING = 1e-12  # relative error of sums that is allowed for


def choose_within_budget(squares: Tensor, costs: Sequence[int], budget: float) -> Tensor:
    """The cheapest branches whose errors stay within a budget, for every bucket and layer on its own.

    All heads of a layer have the same costs, so the cost of a choice depends on its numbers of heads per branch alone.
    For each pair of numbers (heads on coreset, heads on sliding), dynamic programming over the heads finds the least
    error: N^3 / 2 steps per layer.

    Args:
        squares: float64 [K, L, N, 3], squared relative errors; those of the full branch are 0.
        costs: FLOPs of a head, per branch.
        budget: Largest relative error of a layer.

    Returns:
        int8 [K, L, N].
    """
    buckets, layers, heads, _ = squares.shape
    each = squares.flatten(0, 1)  # [U, N, 3]
    units = each.shape[0]
    least = torch.full((units, heads + 1, heads + 1), torch.inf, dtype=torch.float64)  # [U, coreset, sliding]
    least[:, 0, 0] = 0
    taken = torch.zeros(heads, units, heads + 1, heads + 1, dtype=torch.int8)
    for head in range(heads):
        error = each[:, head, :, None, None]  # [U, 3, 1, 1]
        options = least.new_full((len(Branch), *least.shape), torch.inf)  # [3, U, coreset, sliding]
        options[Branch.FULL] = least + error[:, Branch.FULL]
        options[Branch.CORESET, :, 1:] = least[:, :-1] + error[:, Branch.CORESET]
        options[Branch.SLIDING, :, :, 1:] = least[:, :, :-1] + error[:, Branch.SLIDING]
        least, chosen = options.min(dim=0)
        taken[head] = chosen.to(torch.int8)

    coreset = torch.arange(heads + 1).view(-1, 1)  # [coreset, 1]
    sliding = torch.arange(heads + 1).view(1, -1)  # [1, sliding]
    full = heads - coreset - sliding  # [coreset, sliding], negative where there are not so many heads
    cost = full * costs[Branch.FULL] + coreset * costs[Branch.CORESET] + sliding * costs[Branch.SLIDING]
    allowed = (least <= budget**2 * (1 + _ROUNDING)) & (full >= 0)  # [U, coreset, sliding]
    none = torch.iinfo(torch.int64).max
    cheapest = torch.where(allowed, cost, none).flatten(1).amin(dim=1)  # [U]
    best = torch.where(allowed & (cost == cheapest[:, None, None]), least, torch.inf).flatten(1).argmin(dim=1)  # [U]

    routes = torch.empty(units, heads, dtype=torch.int8)
    unit, at = torch.arange(units), [best // (heads + 1), best % (heads + 1)]
    for head in reversed(range(heads)):
        branch = taken[head, unit, at[0], at[1]]  # [U]
        routes[:, head] = branch
        at = [at[0] - (branch == Branch.CORESET).long(), at[1] - (branch == Branch.SLIDING).long()]
    return routes.view(buckets, layers, heads)


def choose_within_share(squares: Tensor, costs: Sequence[int], steps: Sequence[int], share: float) -> Tensor:
    """The least error for a share of dense attention's FLOPs, over the whole table.

    Every head takes the branch of least `error + multiplier * cost`; the multiplier is bisected until the FLOPs fit.

    Args:
        squares: float64 [K, L, N, 3], squared relative errors; those of the full branch are 0.
        costs: FLOPs of a head, per branch.
        steps: Steps of the schedule in each bucket, K.
        share: Share of dense FLOPs.

    Returns:
        int8 [K, L, N].

    Raises:
        ValueError: Not even the cheapest branch everywhere stays within the share; see `check_share`.
    """
    check_share(costs, share)
    relative = torch.tensor([cost / costs[Branch.FULL] for cost in costs], dtype=torch.float64)  # [3]
    weights = torch.tensor(steps, dtype=torch.float64)  # [K]
    by_cost = sorted(Branch, key=lambda branch: costs[branch])  # ties go to the cheaper branch: the target is met

    def choice(multiplier: float) -> Tensor:
        total = squares + multiplier * relative  # [K, L, N, 3]
        return torch.tensor(by_cost)[total[..., by_cost].argmin(dim=3)]  # [K, L, N]

    def reached(routes: Tensor) -> float:
        return float((relative[routes].mean(dim=(1, 2)) * weights).sum() / weights.sum())

    low, high = 0.0, 1.0
    routes = choice(low)
    if reached(routes) > share * (1 + _ROUNDING):
        while reached(choice(high)) > share * (1 + _ROUNDING):
            low, high = high, 2 * high
        for _ in range(_BISECTIONS):
            middle = (low + high) / 2
            if reached(choice(middle)) > share * (1 + _ROUNDING):
                low = middle
            else:
                high = middle
        routes = choice(high)
    return routes.to(torch.int8)


def check_share(costs: Sequence[int], share: float) -> None:
    """Raises ValueError for a share of dense attention's FLOPs that not even the cheapest branch everywhere keeps."""
    lowest = min(costs) / costs[Branch.FULL]
    if share < lowest:
        raise ValueError(
            f"target share {share:g}: the cheapest branch everywhere takes {lowest:.4g} of dense attention's FLOPs at "
            f"this size; use at least that"
        )
