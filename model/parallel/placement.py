# SPDX-License-Identifier: Apache-2.0
"""Which rank computes which heads: with equal counts, so that no rank has much more work than another.

A rank computes N/P heads, because the exchange of Q, K, V and the output moves as many bytes to every rank. Heads of
different branches take very different times, and a layer is done when its slowest rank is. Routes are known before
sampling, so the heads of every step and layer can be placed so that the largest sum of work is small:

1. Heads are sorted by work, and dealt in N/P rounds of P heads. In each round the heaviest head goes to the rank with
   the least work so far, the next to the second, and so on. So ranks never differ by more than the two most different
   heads do, and the largest sum is at most the mean + (1 - 1/P) * (heaviest - lightest head).
2. P + 4 times, of all swaps of a head of the busiest rank with a head of another rank, the best one is made, if it
   makes the larger of their two sums smaller. So the largest sum never grows, and the bound above stays true.

For 40 heads on 2 ranks the largest sum is at most 1.7 % above the optimum, and for 40 on 4 and 8 and for 24 on 2, 4 and
8 it is the optimum, for every number of full, coreset and sliding heads and the costs of the published geometries
(tests/model/parallel/test_placement.py compares all of them with the optimum).

Nothing here reads a value of a tensor on the host: routes stay on their device, and the number of operations depends on
N and P alone. Sums are of integers, so all ranks find the same order from the same routes.

Letters: B batch, L layers, N heads, P ranks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal, NamedTuple

import torch
from torch import Tensor

from vorta_trt.model.geometry import AttentionGeometry, Branch
from vorta_trt.plugins.operator_schema import SAME_PRECISION, AttentionPrecision

Placement = Literal["balanced", "in_order"]

# Seconds per FLOP relative to the full branch, by precision of the attention: full, coreset, sliding. Medians of bench
# attention on H100 and H200 at the two published sizes, 2026-11-24 and 2026-11-28, which are within 4 % of these. Only
# ratios count for a placement.
SLOWDOWN: Final[dict[AttentionPrecision, tuple[float, float, float]]] = {
    "same": (1.0, 1.03, 1.09),
    "fp8": (1.0, 1.04, 1.2),
}
UNITS: Final = 1 << 20  # a head of the costliest branch in integers; 64 bits hold the sums of any batch


class BranchCosts(NamedTuple):
    """The cost of a head in each branch, in any unit: seconds that were measured, or relative work.

    Attributes:
        full: Cost of a head in the full branch, for one layer and sample.
        coreset: Cost of a head in the coreset branch.
        sliding: Cost of a head in the sliding branch.
    """

    full: float
    coreset: float
    sliding: float

    @classmethod
    def of(
        cls,
        geometry: AttentionGeometry,
        attention_precision: AttentionPrecision = SAME_PRECISION,
        text_length: int | None = None,
    ) -> BranchCosts:
        """Relative work from the pairs of query and key that a branch computes, text queries included; full is 1.

        Args:
            geometry: Geometry of the attention.
            attention_precision: "same" or "fp8", in which the branches have different speeds.
            text_length: Valid text tokens; None are all T.
        """
        pairs = [geometry.attention_flops(branch, 1, text_length) for branch in Branch]
        slowdown = SLOWDOWN[attention_precision]
        return cls(*(each * slow / pairs[Branch.FULL] for each, slow in zip(pairs, slowdown, strict=True)))


def head_order(
    routes: Tensor, costs: Sequence[float], ranks: int, placement: Placement = "balanced"
) -> Tensor:  # [..., B, N] -> [..., N]
    """The order of heads in which rank p computes `order[..., p*N/P : (p+1)*N/P]`.

    The samples of a batch share an order: a head's work is the sum over them.

    Args:
        routes: Branch ids, int [..., B, N], e.g. of all layers [L, B, N]; an unknown id is full attention.
        costs: Cost of a head in the full, coreset and sliding branch, e.g. `BranchCosts`; Python numbers.
        ranks: P, which must divide N.
        placement: "balanced", or "in_order" for the heads as they are.

    Returns:
        A permutation of the heads for each row, int64 [..., N], on the device of `routes`; ascending within a rank.

    Raises:
        ValueError: P does not divide N, a cost is negative or not finite, or the placement is unknown.
    """
    if placement not in ("balanced", "in_order"):
        raise ValueError(f"placement {placement!r}: must be 'balanced' or 'in_order'")
    *rows, _, heads = routes.shape
    check_ranks(heads, ranks)
    in_order = torch.arange(heads, device=routes.device).expand(*rows, heads)
    if placement == "in_order" or ranks == 1:
        return in_order.contiguous()
    work = head_work(routes, costs).sum(-2)  # [..., N]
    ranks_of_heads: Tensor = _place(work.reshape(-1, heads), ranks).view(work.shape)
    return (ranks_of_heads * heads + in_order).argsort(dim=-1)


def head_orders(
    routes: Tensor, costs: Sequence[float], ranks: int, placement: Placement = "balanced"
) -> Tensor:  # [..., N] -> [..., N]
    """`head_order` of a whole schedule: branch ids [steps, L, N] without a batch, as a `RouteTable` has them."""
    return head_order(routes.unsqueeze(-2), costs, ranks, placement)


def rank_loads(routes: Tensor, costs: Sequence[float], order: Tensor, ranks: int) -> Tensor:
    """Work of every rank with an order of heads, in the unit of `costs`.

    Args:
        routes: Branch ids [..., B, N].
        costs: Cost of a head in the full, coreset and sliding branch.
        order: Order of the heads, [..., N].
        ranks: P.

    Returns:
        float64 [..., P].
    """
    full, coreset, sliding = costs
    each = _by_branch(routes, float(full), float(coreset), float(sliding), torch.float64).sum(-2)  # [..., N]
    loads: Tensor = each.gather(-1, order).view(*order.shape[:-1], ranks, -1).sum(-1)
    return loads


def check_ranks(heads: int, ranks: int) -> None:
    """Raises ValueError unless `ranks` GPUs can have the same number of heads."""
    if ranks < 1 or heads % ranks:
        fit = ", ".join(str(count) for count in range(1, heads + 1) if heads % count == 0)
        raise ValueError(f"{ranks} GPUs for {heads} heads: every GPU must have as many heads; use one of {fit}")


def check_costs(costs: Sequence[float]) -> tuple[float, ...]:
    """The costs of full, coreset and sliding heads; raises ValueError unless they are valid."""
    values = tuple(float(cost) for cost in costs)
    if len(values) != len(Branch) or not all(0 <= value < float("inf") for value in values) or not max(values):
        raise ValueError(f"costs {values}: must be a number >= 0 for each of full, coreset and sliding, not all 0")
    return values


def head_work(routes: Tensor, costs: Sequence[float]) -> Tensor:
    """Work of every head as integers, the costliest branch `UNITS`: int64, shaped as `routes`."""
    values = check_costs(costs)
    full, coreset, sliding = (round(value / max(values) * UNITS) for value in values)
    return _by_branch(routes, full, coreset, sliding, torch.int64)


def _by_branch(routes: Tensor, full: float, coreset: float, sliding: float, dtype: torch.dtype) -> Tensor:
    each = torch.full(routes.shape, full, dtype=dtype, device=routes.device)  # scalars: nothing is copied to the GPU
    each.masked_fill_(routes == int(Branch.CORESET), coreset)
    return each.masked_fill_(routes == int(Branch.SLIDING), sliding)


def _place(work: Tensor, ranks: int) -> Tensor:
    """The rank of every head: int64 [M, N] -> [M, N]."""
    by_work = work.argsort(dim=-1, descending=True, stable=True)
    work = work.gather(-1, by_work)
    rank = _deal(work, ranks)
    for _ in range(ranks + 4):
        rank = _swap(work, rank, ranks)
    return torch.empty_like(rank).scatter_(-1, by_work, rank)


def _deal(work: Tensor, ranks: int) -> Tensor:
    """Ranks of heads that are sorted by work, a round of P heads after the other: [M, N] -> [M, N]."""
    load = work.new_zeros(len(work), ranks)
    rounds = []
    for dealt in work.split(ranks, dim=-1):  # [M, P]
        least_first = load.argsort(dim=-1, stable=True)
        load = load.scatter_add(-1, least_first, dealt)
        rounds.append(least_first)
    return torch.cat(rounds, dim=-1)


def _swap(work: Tensor, rank: Tensor, ranks: int) -> Tensor:
    """The ranks [M, N] after the best swap of a head of the busiest rank, where one helps."""
    heads = work.shape[-1]
    load = work.new_zeros(len(work), ranks).scatter_add(-1, rank, work)  # [M, P]
    most, busiest = load.amax(-1, keepdim=True), load.argmax(-1, keepdim=True)
    moved = work.unsqueeze(-1) - work.unsqueeze(-2)  # [M, N, N]: from the rank of the first head to that of the second
    theirs = load.gather(-1, rank)  # [M, N]
    larger = torch.maximum(most.unsqueeze(-1) - moved, theirs.unsqueeze(-2) + moved)
    possible = (rank == busiest).unsqueeze(-1) & (rank != busiest).unsqueeze(-2)
    larger = torch.where(possible, larger, most.unsqueeze(-1)).flatten(1)  # as it is where there is nothing to swap
    best = larger.argmin(-1, keepdim=True)  # [M, 1]
    first, second = best // heads, best % heads
    swapped = rank.scatter(-1, first, rank.gather(-1, second)).scatter(-1, second, rank.gather(-1, first))
    return torch.where(larger.gather(-1, best) < most, swapped, rank)
