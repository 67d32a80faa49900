# SPDX-License-Identifier: Apache-2.0
"""`RankPlan`: how long passes are predicted to take on several GPUs, and where the time goes.

Three things take time in a pass: what every GPU does with its share of the tokens; the attention, which is done in each
layer when the GPU with the most work is; and two exchanges in each layer. With guidance in parallel, groups of GPUs
compute one pass each; the exchange of the samples between them, a millisecond at most, is left out.

Letters: S steps, L layers, N heads.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from pydantic import BaseModel, computed_field
from torch import Tensor

from vorta_trt.model.parallel.placement import BranchCosts, Placement, head_orders, rank_loads
from vorta_trt.model.tables import table_lines
from vorta_trt.runtime.parallel.layout import in_groups
from vorta_trt.runtime.parallel.rates import H100, PassWork, Rates
from vorta_trt.runtime.sampling.cost import StepProfile


class PassSeconds(BaseModel):
    """Seconds by part, summed over passes that follow each other.

    Attributes:
        other: Of all but the attention and its exchanges.
        attention: Of the busiest GPU of every layer.
        exchange: Of the all-to-alls.
    """

    other: float
    attention: float
    exchange: float

    @property
    def total(self) -> float:
        """Of all parts."""
        return self.other + self.attention + self.exchange


class RankPlan(BaseModel):
    """A request on several GPUs; predicted.

    Attributes:
        gpus: How many, `guidance` times `ulysses`.
        guidance: Groups of GPUs that compute the passes of a step at the same time.
        ulysses: GPUs that share tokens and heads of a pass.
        source: Where the times come from.
        one_gpu: Seconds of the transformer on one GPU.
        in_order: On all GPUs, heads as the model has them.
        balanced: On all GPUs, heads placed by work.
        step_seconds: Of every step, balanced; 0 where it is not computed.
    """

    gpus: int
    guidance: int
    ulysses: int
    source: str
    one_gpu: PassSeconds
    in_order: PassSeconds
    balanced: PassSeconds
    step_seconds: list[float]

    @computed_field  # type: ignore[prop-decorator]
    @property
    def speedup(self) -> float:
        """How many times faster than one GPU."""
        return self.one_gpu.total / self.balanced.total

    def lines(self) -> Iterator[str]:
        """The plan as text."""
        groups = in_groups(self.guidance, self.ulysses)
        yield f"predicted seconds of the transformer on {groups}, from {self.source}; not timed"
        columns = ("", "1 GPU", f"{self.gpus} GPUs, heads in order", f"{self.gpus} GPUs, balanced")
        times = (self.one_gpu, self.in_order, self.balanced)
        names = {"other": "all but attention", "attention": "attention, busiest GPU", "exchange": "exchanges"}
        rows = [(text, *(f"{getattr(each, name):.3g}" for each in times)) for name, text in names.items()]
        rows += [("all", *(f"{each.total:.3g}" for each in times))]
        rows += [("times faster", *(f"{self.one_gpu.total / each.total:.2f}" for each in times))]
        yield from table_lines(columns, rows, left=1)


def plan_ranks(
    work: PassWork,
    routes: Tensor,
    *,
    ulysses: int,
    guidance: int = 1,
    passes: Sequence[int] = (),
    compute: Sequence[bool] = (),
    profile: StepProfile | None = None,
    rates: Rates = H100,
) -> RankPlan:
    """Predicts a request.

    Args:
        work: Of a pass.
        routes: Branch ids [S, L, N].
        ulysses: GPUs that share tokens and heads of a pass; must divide N.
        guidance: Groups of GPUs that compute passes of a step at the same time, 2 with guidance in parallel.
        passes: Passes of every step, 2 with guidance; none given: one each.
        compute: Which steps are computed; none given: all.
        profile: Measured seconds of a pass on one GPU, which win over `rates`; exchanges are those of `rates`.
        rates: Of the GPU.

    Raises:
        ValueError: `ulysses` does not divide N.
    """
    steps = len(routes)
    # Groups compute in turn where there are more passes than groups; steps that are reused take nothing.
    turns = torch.tensor(
        [
            [count * each, -(-count // guidance) * each]
            for count, each in zip(passes or [1] * steps, compute or [True] * steps, strict=True)
        ],
        dtype=torch.float64,
    )  # [S, 2]: on one GPU, on several
    seconds = rates.profile(work) if profile is None else profile
    share = work.rows(ulysses) / work.rows(1)
    exchange = 0.0 if ulysses == 1 else work.layers * sum(map(rates.exchange, work.sent_bytes(ulysses)))

    def attention(ranks: int, placement: Placement) -> Tensor:
        """Seconds of a pass of every step [S], placed by what the model knows, timed by what was measured."""
        costs = BranchCosts.of(work.geometry, work.attention_precision)
        order = head_orders(routes, costs, ranks, placement)
        return rank_loads(routes.unsqueeze(-2), seconds.branch_costs, order, ranks).amax(-1).sum(-1)

    def summed(turn: Tensor, other: float, attended: Tensor, exchanged: float) -> PassSeconds:
        total = float(turn.sum())
        return PassSeconds(other=other * total, attention=float((attended * turn).sum()), exchange=exchanged * total)

    balanced = attention(ulysses, "balanced")
    alone, several = turns.T
    return RankPlan(
        gpus=guidance * ulysses,
        guidance=guidance,
        ulysses=ulysses,
        source=f"the rates of {rates.name}" if profile is None else f"the step profile, exchanges of {rates.name}",
        one_gpu=summed(alone, seconds.other, attention(1, "in_order"), 0.0),
        in_order=summed(several, seconds.other * share, attention(ulysses, "in_order"), exchange),
        balanced=summed(several, seconds.other * share, balanced, exchange),
        step_seconds=(several * (seconds.other * share + balanced + exchange)).tolist(),
    )
