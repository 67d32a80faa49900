# SPDX-License-Identifier: Apache-2.0
"""Rows and files of `vorta-trt bench parallel`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from vorta_trt.benchmarks.report import RowReport

ONE_GPU = "one GPU"


@dataclass(frozen=True)
class ParallelRow:
    """One way to spread a step over GPUs, with one set of routes.

    Attributes:
        gpus: Number of GPUs.
        passes: Number of passes of the transformer that run at once, each on its share of the GPUs: 1, or the 2 of
            guidance.
        placement: How heads are placed on GPUs, "balanced" or "in_order"; ONE_GPU where a pass has one GPU.
        routes: Mix of the branches, see `mixed_routes`.
        exchange: What exchanged heads and tokens, "library" or "torch", with "+overlap" where half of the heads is
            attended to meanwhile; "" where a pass has one GPU.
        state: "ok"; "wrong" where the sample is not that of one GPU, or not the same on all, so that times count for
            nothing.
        note: The reason of a state that is not "ok".
        median: Seconds of a pass, of the slowest GPU; with guidance, of both passes and the exchange of predictions.
        minimum: Seconds of the fastest run.
        runs: Number of timed runs.
        speedup: Over one GPU of the same run, which computes passes one after the other.
        exchanges: Seconds of a pass by exchange, packing and unpacking included: "heads" (queries, keys and values),
            "tokens" (the attention's output), "sample" (projected rows) and, with guidance, "guidance". For every
            single exchange, the time of the GPU that comes last counts, since that GPU waits for no other. Where
            exchanges overlap, this is not the time that they add to the pass.
        waiting: Seconds of a pass that a GPU waits in exchanges for later GPUs, the mean of all GPUs; None where
            exchanges overlap, since their spans do not show it.
        exchange_share: The sum of `exchanges` over the median; None where they overlap.
        busiest: Attention work of each layer's busiest GPU over the mean of the GPUs, both summed over all layers, in
            the costs that placement uses.
        predicted: Seconds that `plan_ranks` predicts from an H100's rates, wherever this runs.
        difference: Relative L2 distance of the sample to one GPU's.
        own_error: Relative L2 distance of one GPU's sample to that of another form of the blocks that is as exact:
            torch's operators in the weights' type for the fused ones, or the reverse. It shows what rounding alone
            changes.
        peak_memory_gib: Peak of torch's allocated memory of a GPU, weights included.
    """

    gpus: int
    passes: int
    placement: str
    routes: str
    exchange: str = ""
    state: str = "ok"
    note: str = ""
    median: float | None = None
    minimum: float | None = None
    runs: int | None = None
    speedup: float | None = None
    exchanges: Mapping[str, float] = field(default_factory=dict)
    waiting: float | None = None
    exchange_share: float | None = None
    busiest: float | None = None
    predicted: float | None = None
    difference: float | None = None
    own_error: float | None = None
    peak_memory_gib: float | None = None

    @property
    def ours(self) -> bool:
        """True: there are no peers."""
        return True


@dataclass(frozen=True)
class ParallelReport(RowReport[ParallelRow]):
    """The report of `bench parallel`."""

    QUESTION = "parallel"
    ROW = ParallelRow
