# SPDX-License-Identifier: Apache-2.0
"""What every process of `vorta-trt bench parallel` does: all make the same model, then measure layout by layout.

Letters: P ranks of a pass, L layers, N heads.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import NamedTuple, cast

import torch
import torch.distributed as dist
from torch import Tensor

from vorta_trt.benchmarks.harness import gib
from vorta_trt.benchmarks.parallel.options import OVERLAP, Layout, ParallelOptions
from vorta_trt.benchmarks.parallel.report import ONE_GPU, ParallelRow
from vorta_trt.benchmarks.parallel.spans import Span, Spans, exchanges_and_waiting
from vorta_trt.benchmarks.step.cases import StepCase, mixed_routes
from vorta_trt.benchmarks.step.measure import difference
from vorta_trt.benchmarks.step.models import OURS, Subject, Variant
from vorta_trt.model.parallel.exchange import gather
from vorta_trt.model.parallel.exchange_choice import ExchangeChoice
from vorta_trt.model.parallel.placement import BranchCosts, head_order, rank_loads
from vorta_trt.model.parallel.ranks import Ranks
from vorta_trt.model.precision import torch_dtype
from vorta_trt.plugins.operator_schema import AttentionPrecision, LinearPrecision
from vorta_trt.runtime.parallel.rank_plan import plan_ranks
from vorta_trt.runtime.parallel.rates import PassWork
from vorta_trt.runtime.parallel.world import World

TIMESTEP = 700.0
GUIDANCE, SCALE = "guidance", 5.0
TEXT = "encoder_hidden_states"  # an input of every family; the second pass of guidance gets another text
ERROR_BOUND = 2.0  # times what rounding alone changes
LEAST_ERROR = 1e-5  # always allowed, for float32 on the CPU


GroupOf = Callable[[Sequence[int]], dist.ProcessGroup]


class Outcome(NamedTuple):
    """What one rank measured of one layout.

    Attributes:
        seconds: Wall-clock seconds of every timed pass.
        spans: Spans of the exchanges, for every timed pass.
        checksum: Sum of the sample's numbers.
        difference: See `ParallelRow`; only rank 0 measures it, the others have 0.
        peak_memory_gib: See `ParallelRow`.
        exchange: See `ParallelRow`.
    """

    seconds: list[float]
    spans: list[list[Span]]
    checksum: float
    difference: float
    peak_memory_gib: float
    exchange: str


@dataclass(frozen=True)
class Groups:
    """Process groups of one layout, as this rank sees them.

    Attributes:
        taking_part: All ranks of the layout.
        of_pass: The ranks that compute the same pass.
        across: One rank of every pass; they exchange their predictions.
    """

    taking_part: dist.ProcessGroup
    of_pass: dist.ProcessGroup
    across: dist.ProcessGroup

    @classmethod
    def of(cls, layout: Layout, rank: int, group_of: GroupOf) -> Groups | None:
        """Makes the groups. All ranks must call this; it returns None on ranks that take no part in the layout."""
        everyone = group_of(range(layout.gpus))
        parts = [range(first, first + layout.ulysses) for first in range(0, layout.gpus, layout.ulysses)]
        of_pass = [group_of(part) for part in parts]
        across = [group_of(range(first, layout.gpus, layout.ulysses)) for first in range(layout.ulysses)]
        if rank >= layout.gpus:
            return None
        return cls(everyone, of_pass[rank // layout.ulysses], across[rank % layout.ulysses])


def measure(world: World, what: tuple[StepCase, ParallelOptions]) -> dict[str, int]:
    """Measures all layouts; rank 0 sends every row to the process that started it.

    Returns:
        Layers and heads of the model.
    """
    case, options = what
    if world.is_first:
        world.send(f"{case}: making the model on {world.size} GPUs")
    subject = Subject.make(case, str(world.device), torch_dtype(options.dtype), options.seed)
    layers, heads = case.layers_and_heads(subject.routed.config)
    bench = _Bench(world, options, subject, layers, heads)
    shapes = {(each.gpus, each.passes): each for each in options.layouts(case, heads)}
    group_of = cache(world.group)  # one for the same ranks of several layouts
    by_shape = {shape: Groups.of(layout, world.rank, group_of) for shape, layout in shapes.items()}
    for mix in options.mixes:
        for layout in options.layouts(case, heads):
            bench.row(layout, mix, by_shape[layout.gpus, layout.passes])
    return {"layers": layers, "heads": heads}


class _Bench:
    """The rows as one rank measures them; only rank 0 keeps what rows are compared with."""

    def __init__(self, world: World, options: ParallelOptions, subject: Subject, layers: int, heads: int) -> None:
        self.world, self.options, self.subject = world, options, subject
        self.layers, self.heads = layers, heads
        self.expected: dict[str, Tensor] = {}  # samples of one GPU, by mix
        self.own_errors: dict[str, float] = {}
        self.one_gpu: dict[str, float] = {}  # seconds of a pass, by mix
        self.choices: list[ExchangeChoice] = []  # kept: rows share a communicator, which takes time to make

    def row(self, layout: Layout, mix: str, groups: Groups | None) -> None:
        """Measures a row; ranks without a part in it wait."""
        if self.world.is_first:
            self.world.send(f"{self.subject.case}: {mix}, {layout}")
        routes = mixed_routes(mix, self.layers, self.heads, self.options.seed).to(self.world.device)  # [L, N]
        outcome = None if groups is None else self._outcome(layout, mix, groups, routes)
        outcomes = [each for each in self.world.gather(outcome) if each is not None]
        if self.world.is_first:
            self.world.send(self._row(layout, mix, outcomes, routes))

    def _outcome(self, layout: Layout, mix: str, groups: Groups, routes: Tensor) -> Outcome:
        device, routed, spans = self.world.device, self.subject.routed, Spans(self.world.device)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        number = self.world.rank // layout.ulysses  # of the pass
        subject = self.subject
        if number:
            subject = replace(subject, inputs={**subject.inputs, TEXT: -subject.inputs[TEXT]})
        exchange = ""
        try:
            if layout.ulysses > 1:
                asked, overlap = layout.exchange.removesuffix(OVERLAP), layout.exchange.endswith(OVERLAP)
                routed.parallelize(groups.of_pass, layout.placement, exchange=asked, overlap=overlap)
                assert isinstance(routed.parallel, Ranks)
                routed.parallel.watch = spans
                self.choices.append(routed.parallel.choice)
                exchange = routed.parallel.exchange + OVERLAP * overlap
            with subject.computed_by(self.options.variant):
                self.subject.fp8 = subject.fp8
                run = subject.runs(OURS, routes)
                sample = run(TIMESTEP).contiguous()  # the first one, which is not timed
                found = self._compared(layout, mix, sample, routes) if self.world.is_first else 0.0
                checksum = float(sample.double().sum())
                across = groups.across if layout.passes > 1 else None
                if across is not None:
                    gather(sample, across)
                spans.take()
                step = _step(run, spans, across)
                seconds, of_passes = self._timed(step, spans, groups.taking_part)
        finally:
            routed.parallel = None
            gc.collect()
        peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0
        return Outcome(seconds, of_passes, checksum, found, gib(peak), exchange)

    def _timed(
        self, step: Callable[[], object], spans: Spans, group: dist.ProcessGroup
    ) -> tuple[list[float], list[list[Span]]]:
        seconds, of_passes = [], []
        for _ in range(self.options.steps):
            if group.size() > 1:
                dist.all_reduce(torch.zeros(1, device=self.world.device), group=group)  # all begin together
            self._synchronize()
            start = time.perf_counter()
            step()
            self._synchronize()
            seconds.append(time.perf_counter() - start)
            of_passes.append(spans.take())
        return seconds, of_passes

    def _compared(self, layout: Layout, mix: str, sample: Tensor, routes: Tensor) -> float:
        """The distance to one GPU's sample; on one GPU, keeps its sample and its distance to that of the other form."""
        if layout.gpus > 1:
            return difference(sample, self.expected[mix])
        self.expected[mix] = sample.clone()
        usual = Variant()
        other = usual if self.options.variant != usual else Variant(block_ops="plugin")
        with self.subject.computed_by(other):
            self.own_errors[mix] = difference(sample, self.subject.runs(OURS, routes)(TIMESTEP))
        return 0.0

    def _synchronize(self) -> None:
        if self.world.device.type == "cuda":
            torch.cuda.synchronize(self.world.device)

    def _row(self, layout: Layout, mix: str, outcomes: Sequence[Outcome], routes: Tensor) -> ParallelRow:
        slowest = [max(same) for same in zip(*(outcome.seconds for outcome in outcomes), strict=True)]
        median = statistics.median(slowest)
        middle = min(range(len(slowest)), key=lambda index: abs(slowest[index] - median))
        exchanges, waiting = exchanges_and_waiting([outcome.spans[middle] for outcome in outcomes])
        self.one_gpu.setdefault(mix, median)
        found, own = outcomes[0].difference, self.own_errors[mix]
        overlaps = layout.exchange.endswith(OVERLAP)
        row = ParallelRow(
            layout.gpus,
            layout.passes,
            layout.placement,
            mix,
            outcomes[0].exchange,
            median=round(median, 5),
            minimum=round(min(slowest), 5),
            runs=len(slowest),
            speedup=round(layout.passes * self.one_gpu[mix] / median, 3),
            exchanges={name: round(seconds, 6) for name, seconds in exchanges.items()},
            waiting=None if overlaps else round(waiting, 6),
            exchange_share=None if overlaps else round(sum(exchanges.values()) / median, 4),
            busiest=self._busiest(layout, routes),
            predicted=self._predicted(layout, routes),
            difference=found,
            own_error=own,
            peak_memory_gib=max(outcome.peak_memory_gib for outcome in outcomes),
        )
        if not found <= max(ERROR_BOUND * own, LEAST_ERROR):
            note = f"differs by {found:.2e} from one GPU, more than {ERROR_BOUND:g} x {own:.2e}, what rounding changes"
            return replace(row, state="wrong", note=note)
        passes = [outcomes[first : first + layout.ulysses] for first in range(0, layout.gpus, layout.ulysses)]
        if any(outcome.checksum != same[0].checksum for same in passes for outcome in same):
            return replace(row, state="wrong", note="ranks of the same pass have different samples")
        return row

    def _busiest(self, layout: Layout, routes: Tensor) -> float:
        if layout.placement == ONE_GPU:
            return 1.0
        costs = BranchCosts.of(
            self.subject.case.geometry, cast(AttentionPrecision, self.options.variant.attention_precision)
        )
        of_layers = routes.cpu().unsqueeze(1)  # [L, 1, N]
        order = head_order(of_layers, costs, layout.ulysses, layout.placement)  # type: ignore[arg-type]
        loads = rank_loads(of_layers, costs, order, layout.ulysses)  # [L, P]
        return round(float(loads.amax(-1).sum() / loads.mean(-1).sum()), 4)

    def _predicted(self, layout: Layout, routes: Tensor) -> float:
        variant = self.options.variant
        work = replace(
            PassWork.of(self.subject.routed),
            attention_precision=cast(AttentionPrecision, variant.attention_precision),
            linear_precision=cast(LinearPrecision, variant.linear_precision),
        )
        plan = plan_ranks(
            work,
            routes.cpu().unsqueeze(0),  # [1, L, N]
            ulysses=layout.ulysses,
            guidance=layout.passes,
            passes=(layout.passes,),
        )
        return round((plan.in_order if layout.placement == "in_order" else plan.balanced).total, 5)


def _step(run: Callable[[float], Tensor], spans: Spans, across: dist.ProcessGroup | None) -> Callable[[], Tensor]:
    """Returns what is timed: a pass, or with guidance one of two passes and the guided mix of both predictions."""

    def step() -> Tensor:
        sample = run(TIMESTEP).contiguous()
        if across is None:
            return sample
        with spans(GUIDANCE):
            prompt, negative = gather(sample, across)
        guided: Tensor = negative + SCALE * (prompt - negative)
        return guided

    return step
