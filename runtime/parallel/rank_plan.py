# SPDX-License-Identifier: Apache-2.0
"""`RankPlan`: how long passes are predicted to take on several GPUs, and where the time goes.

Three things take time in a pass: the work of every GPU on its share of the tokens; the attention, which in each layer
takes as long as on the GPU with the most work; and two exchanges in each layer. With guidance in parallel, each group
of GPUs computes one pass. The exchange of the samples between the groups, a millisecond at most, is left out.

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
    """Seconds by part, summed over passes that run one after the other.

    Attributes:
        other: Seconds of everything but the attention and its exchanges.
        attention: Seconds of the attention, in each layer those of the busiest GPU.
        exchange: Seconds of the all-to-all exchanges.
    """

    other: float
    attention: float
    exchange: float

    @property
    def total(self) -> float:
        """Seconds of all parts together."""
        return self.other + self.attention + self.exchange


class RankPlan(BaseModel):
    """The predicted times of a request on several GPUs.

    Attributes:
        gpus: Number of GPUs, `guidance` times `ulysses`.
        guidance: Number of groups of GPUs that compute the passes of a step at the same time.
        ulysses: Number of GPUs that share the tokens and heads of a pass.
        source: Where the times come from, in words.
        one_gpu: Seconds of the transformer on one GPU.
        in_order: Seconds of the transformer on all GPUs, with heads in the model's order.
        balanced: Seconds of the transformer on all GPUs, with heads placed by their work.
        step_seconds: Seconds of each step on all GPUs with heads placed by work; 0 for a step that is not computed.
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
        """How many times faster the balanced GPUs are than one GPU."""
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
        work: The work of one pass.
        routes: Branch ids [S, L, N].
        ulysses: Number of GPUs that share the tokens and heads of a pass; must divide N.
        guidance: Number of groups of GPUs that compute the passes of a step at the same time, 2 with guidance in
            parallel.
        passes: Number of passes of each step, 2 with guidance; if empty, each step has one.
        compute: Whether each step is computed; if empty, all steps are.
        profile: Measured seconds of a pass on one GPU, used instead of `rates`; exchanges still take the times of
            `rates`.
        rates: The rates of the GPU.

    Raises:
        ValueError: `ulysses` does not divide N.
    """
    steps = len(routes)
    # Where there are more passes than groups, a group computes several in turn. Steps that are reused take no time.
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
        """Seconds of the attention in a pass of each step [S].

        Heads are placed by the model's own branch costs, and timed by the profile or the rates.
        """
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
