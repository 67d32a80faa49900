# SPDX-License-Identifier: Apache-2.0
"""How long does a denoising step take, and a whole schedule of them: routed beside dense, end to end?

`vorta-trt bench step`. The model has its published size and random weights; routes are drawn with the published shares
and given through `route_override`. Dense is the same torch code with cuDNN's attention, diffusers' own model, and our
kernels with every head full, on the same weights in the same run: the last tells the gain of the kernels from that of
routing. The first sample of every row is compared with the first one of the same routes, which it must equal but for
rounding: dense rows with a peer's, compiled routed rows with the eager one. What the kernels compute is checked by
`vorta-trt bench attention`.
"""

from __future__ import annotations

import gc
import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path

import torch
from torch import Tensor

from vorta_trt.benchmarks.attention import Progress
from vorta_trt.benchmarks.harness import environment
from vorta_trt.benchmarks.step.cases import DENSE, MIXES, StepCase, mixed_routes
from vorta_trt.benchmarks.step.engine import open_engine
from vorta_trt.benchmarks.step.loops import MEASURED_STEPS, Loop, run_loop, scheduler_of
from vorta_trt.benchmarks.step.measure import difference, time_step
from vorta_trt.benchmarks.step.model_options import VARIANT_CHOICES, ModelOptions
from vorta_trt.benchmarks.step.models import COMPILED, DIFFUSERS, EAGER, ENGINE, OURS, TORCH, Run, Subject, Variant
from vorta_trt.benchmarks.step.report import LoopRow, StepReport, StepRow
from vorta_trt.model.precision import torch_dtype
from vorta_trt.model.timestep_path import TimestepPath
from vorta_trt.runtime.sampling.step_plan import StepPlan, plan_steps
from vorta_trt.runtime.sampling.tea_cache import IDENTITY, TeaCache

logger = logging.getLogger(__name__)
MODES = (EAGER, COMPILED)
PEERS = {"cudnn": TORCH, "diffusers": DIFFUSERS}
STEPS = 50  # of the ordinary schedule
DISTILLED_STEPS = 6
TEA_SHARE = 0.5  # of the steps that TeaCache computes: Wan 14B takes half the time at the usual threshold, 0.2
DIFFERENCE_BOUND = {torch.bfloat16: 0.1, torch.float16: 0.02, torch.float32: 1e-3}
"""How far samples may differ that are equal but for rounding, which grows from layer to layer of a deep network."""


@dataclass(frozen=True)
class StepOptions(ModelOptions):
    """What a run measures.

    Attributes:
        dense: Whether our own dense row is measured, whatever the mixes are. It tells what the kernels gain from what
            routing gains, but takes most of the time of a run.
        modes: The modes that are measured, from `MODES`.
        peers: The peers that are measured, from `PEERS`.
        precisions: Attention precisions of ours, "same" and "fp8".
        block_ops: How our blocks are computed, "native" and "plugin".
        linear_precisions: Products of our linear layers, "same" and "fp8".
        loops: Whether sampling loops are measured, too.
        device: Where the model runs.
        bundle: An engine of the same model, measured as well.
    """

    mixes: tuple[str, ...] = (DENSE, *MIXES)
    dense: bool = True
    modes: tuple[str, ...] = MODES
    peers: tuple[str, ...] = tuple(PEERS)
    precisions: tuple[str, ...] = ("same",)
    block_ops: tuple[str, ...] = ("native",)
    linear_precisions: tuple[str, ...] = ("same",)
    loops: bool = True
    device: str = "cuda"
    bundle: Path | None = None

    def __post_init__(self) -> None:
        """Raises ValueError for what is not known."""
        known: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
            name: (getattr(self, name), allowed)
            for name, allowed in zip(("precisions", "block_ops", "linear_precisions"), VARIANT_CHOICES, strict=True)
        }
        known |= {"modes": (self.modes, MODES), "peers": (self.peers, tuple(PEERS))}
        self.check(known, {"modes": self.modes})


def run(options: StepOptions, progress: Progress) -> StepReport:
    """Measures one model on a device; raises what making the model raises."""
    return run_case(options.case, options, progress)


def run_case(case: StepCase, options: StepOptions, progress: Progress) -> StepReport:
    """Measures a case of the caller's on a device; see `run`."""
    start = time.perf_counter()
    progress(f"{case}: making the model")
    subject = Subject.make(case, options.device, torch_dtype(options.dtype), options.seed)
    bench = _Bench(subject, options, progress)
    rows = [row for mode in options.modes for row in bench.rows(mode)]
    loops = bench.loops(rows) if options.loops else []
    if options.bundle is not None:
        rows += with_speedups(bench.engine_rows(options.bundle), bench.dense_seconds(rows))
    layers, heads = case.layers_and_heads(subject.routed.config)
    about = {
        **environment(),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "case": str(case),
        "family": case.family,
        "geometry": case.geometry.to_dict(),
        "layers": layers,
        "heads": heads,
        "weights": f"random, {options.dtype}",
        "passes_per_step": case.passes,
        "options": {**asdict(options), "bundle": None if options.bundle is None else options.bundle.name},
        "seconds": round(time.perf_counter() - start, 1),
    }
    return StepReport(about, rows, loops)


class _Bench:
    """The rows of one subject."""

    def __init__(self, subject: Subject, options: StepOptions, progress: Progress) -> None:
        self.subject, self.options, self.progress = subject, options, progress
        self.case = subject.case
        self.layers, self.heads = self.case.layers_and_heads(subject.routed.config)
        self.timesteps = self._timesteps(STEPS)[:: max(1, STEPS // options.steps)][: options.steps]
        self.bound = DIFFERENCE_BOUND[torch_dtype(options.dtype)]
        self.samples: dict[str, Tensor] = {}  # by routes, the first sample: others are compared with it

    def rows(self, mode: str) -> list[StepRow]:
        """Every implementation in one mode."""
        rows = []
        for implementation, wanted in self._plan():
            with self.subject.compiled(implementation) if mode == COMPILED else nullcontext():
                for routes, variant in wanted:
                    rows.append(self._row(implementation, mode, routes, variant))
        return with_speedups(rows, next((row.median for row in rows if row.implementation == TORCH), None))

    def _plan(self) -> Iterator[tuple[str, Sequence[tuple[str, Variant]]]]:
        """Implementations and their routes, peers first: the first sample is what the dense ones are compared with."""
        for peer in self.options.peers:
            yield PEERS[peer], [(DENSE, Variant())]
        for ops, linears in product(self.options.block_ops, self.options.linear_precisions):
            variants = [Variant(precision, ops, linears) for precision in self.options.precisions]
            yield OURS, [(mix, variant) for variant in variants for mix in self._mixes()]

    def _mixes(self) -> Sequence[str]:
        """The mixes of the options, with dense before them if it is measured."""
        return tuple(dict.fromkeys((*((DENSE,) if self.options.dense else ()), *self.options.mixes)))

    def engine_rows(self, bundle: Path) -> list[StepRow]:
        """The rows of an engine. It has weights of its own, so its samples are only checked to be finite."""
        options = self.options
        rows = []
        with open_engine(bundle, self.case, self.layers, self.heads, options.device, options.seed) as engine:
            for routes in self._mixes():
                chosen = self._routes(routes)
                run = engine.run(chosen, routes == DENSE)
                rows.append(self._guarded(StepRow(engine.name, ENGINE, routes), run, chosen))
        return rows

    def _routes(self, mix: str) -> Tensor:
        return mixed_routes(mix, self.layers, self.heads, self.options.seed).to(self.subject.device)  # [L, N]

    def _row(self, implementation: str, mode: str, routes: str, variant: Variant) -> StepRow:
        row, chosen = StepRow(variant.named(implementation), mode, routes), self._routes(routes)
        with self.subject.computed_by(variant):
            return self._guarded(row, self.subject.runs(implementation, chosen), chosen, variant.exact)

    def _guarded(self, row: StepRow, run: Run, routes: Tensor, exact: bool = False) -> StepRow:
        """A measured row, or one that says what was raised, so that a long run's other rows are kept."""
        self.progress(f"{self.case}: {row.implementation}, {row.mode}, {row.routes}")
        try:
            return self._measured(row, run, routes, exact)
        except (RuntimeError, NotImplementedError) as error:  # out of memory, no kernel, a compiler's error
            logger.debug("%s", row, exc_info=True)
            state = "unavailable" if row.implementation in PEERS.values() else "failed"
            note = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:200]}"
            return replace(row, state=state, note=note)
        finally:
            gc.collect()
            if self.subject.device.type == "cuda":
                torch.cuda.empty_cache()

    def _measured(self, row: StepRow, run: Run, routes: Tensor, exact: bool) -> StepRow:
        first: list[Tensor] = []

        def kept(timestep: float) -> Tensor:
            sample: Tensor = run(timestep)
            if not first:
                first.append(sample)
            return sample

        timing = time_step(kept, self.timesteps, self.subject.device)
        sample = first[0].cpu()
        found = difference(sample, sample if row.mode == ENGINE else self.samples.setdefault(row.routes, sample))
        flops = self.case.flops(self.subject.routed.config, routes)
        row = replace(
            row,
            difference=found,
            cold=round(timing.cold, 3),
            median=round(timing.median, 4),
            minimum=round(timing.minimum, 4),
            runs=timing.runs,
            peak_memory_gib=timing.peak_memory_gib,
            kernel_shares=timing.kernel_shares,
            flops=flops,
            tflops=round(flops / timing.median * 1e-12, 1),
        )
        if not found <= (self.bound if exact else 1.0):  # fp8 rounds more
            return replace(row, state="wrong", note=f"differs by {found:.2e}, more than {self.bound:.0e}")
        return row

    def dense_seconds(self, rows: Sequence[StepRow]) -> float | None:
        """The time of a pass of torch with cuDNN's attention, in the last of the modes."""
        wanted = (TORCH, self.options.modes[-1], "ok")
        return next((row.median for row in rows if (row.implementation, row.mode, row.state) == wanted), None)

    # -- loops ---------------------------------------------------------------------------------------------------------

    def loops(self, rows: Sequence[StepRow]) -> list[LoopRow]:
        """Runs the sampling loops, in the last mode with the middle routed mix; none if that mix's row failed.

        The loops: the ordinary schedule, the same with TeaCache, and few distilled steps.
        """
        mode, mixes = self.options.modes[-1], [mix for mix in self.options.mixes if mix != DENSE] or [DENSE]
        mix = mixes[len(mixes) // 2]
        states = {row.state for row in rows if (row.implementation, row.mode, row.routes) == (OURS, mode, mix)}
        if states - {"ok"}:
            return []  # the row says why
        routed = self.subject.routed
        run = self.subject.runs(OURS, self._routes(mix))
        latents = self.subject.inputs["hidden_states"][:, : routed.facts().latent_channels(routed.config)]
        made = []
        with self.subject.compiled(OURS) if mode == COMPILED else nullcontext():
            run(self.timesteps[0])  # compiles
            for loop in self._planned_loops():
                self.progress(f"{self.case}: {loop.name}, {mix}")
                made.append(run_loop(self.case, loop, run, latents, mix))
        if (dense := self.dense_seconds(rows)) is None:
            return made
        whole = STEPS * self.case.passes * dense  # seconds of the dense schedule
        against = f"against {STEPS} dense steps of {self.case.passes} x {dense:.3f} s (row {TORCH}, {mode})"
        return [
            replace(
                loop,
                times_dense=round(whole / loop.seconds, 2),
                note="; ".join(filter(None, (loop.note, against))),
            )
            for loop in made
        ]

    def _planned_loops(self) -> list[Loop]:
        cached, how = self._tea_plan()
        return [
            Loop(f"{STEPS} steps", self._plan_of(STEPS), self.case.passes, MEASURED_STEPS // 2),
            Loop(f"{STEPS} steps, TeaCache", cached, self.case.passes, MEASURED_STEPS, how),
            Loop(f"{DISTILLED_STEPS} distilled steps", self._plan_of(DISTILLED_STEPS), 1, DISTILLED_STEPS),
        ]

    def _plan_of(self, steps: int, cache: TeaCache | None = None) -> StepPlan:
        path = TimestepPath.from_model(self.subject.routed)
        return plan_steps(self._timesteps(steps), path=path, cache=cache)

    def _tea_plan(self) -> tuple[StepPlan, str]:
        """Plans TeaCache's steps and says how they were chosen.

        Which steps it skips is a matter of trained weights, which are not here. The share that its authors report is
        taken instead, through the bare distance of the random embeddings and a threshold that gives it.
        """
        path = TimestepPath.from_model(self.subject.routed)
        distances = TeaCache(0.0, IDENTITY).distances(self._timesteps(STEPS), path)
        low, high = 0.0, sum(distances)
        for _ in range(30):  # the number of computed steps falls as the threshold grows
            middle = (low + high) / 2
            plan = self._plan_of(STEPS, TeaCache(middle, IDENTITY))
            low, high = (middle, high) if plan.computed_steps > STEPS * TEA_SHARE else (low, middle)
        plan = self._plan_of(STEPS, TeaCache(high, IDENTITY))
        return plan, f"{plan.computed_steps} of {STEPS} steps computed, as TeaCache's authors report for Wan 14B at 0.2"

    def _timesteps(self, steps: int) -> list[float]:
        return [float(timestep) for timestep in scheduler_of(self.case, steps).timesteps]


def with_speedups(rows: Sequence[StepRow], dense: float | None) -> list[StepRow]:
    """The rows, with how many times faster they are than `dense` seconds, and than their own implementation, dense."""
    own = {(row.implementation, row.mode): row.median for row in rows if (row.routes, row.state) == (DENSE, "ok")}

    def times(seconds: float | None, row: StepRow) -> float | None:
        return None if seconds is None or row.median is None else round(seconds / row.median, 3)

    return [
        replace(row, times_dense=times(dense, row), times_own_dense=times(own.get((row.implementation, row.mode)), row))
        for row in rows
    ]
