# SPDX-License-Identifier: Apache-2.0
"""Rows and files of `vorta-trt bench blocks`."""

from __future__ import annotations

from dataclasses import dataclass

from vorta_trt.benchmarks.report import RowReport


@dataclass(frozen=True)
class BlockRow:
    """One implementation of one operator at one size.

    Attributes:
        operator: Name of the operator as an ONNX node.
        model: Name of the model that has this size.
        size: The size in words.
        dtype: Data type of the activations.
        implementation: Name of our implementation or of a peer.
        ours: Whether it is ours.
        state: "ok"; "wrong" where ours errs more than it may, so that it was not timed; "failed" where ours raised an
            error; "unavailable" where a peer did.
        note: The reason of a state that is not "ok".
        milliseconds: Median over `runs` runs.
        minimum: Milliseconds of the fastest run.
        p90: Milliseconds that 90 % of the runs do not exceed.
        tflops: FLOPs over the median; None where memory decides.
        terabytes_per_second: What a call reads and writes at least, over the median.
        relative_error: Relative error against float32 or float64.
        error_bound: Largest error that ours may have: twice that of the first peer.
        times_peer: How many times faster than the first peer.
    """

    operator: str
    model: str
    size: str
    dtype: str
    implementation: str
    ours: bool
    state: str = "ok"
    note: str = ""
    milliseconds: float | None = None
    minimum: float | None = None
    p90: float | None = None
    runs: int | None = None
    tflops: float | None = None
    terabytes_per_second: float | None = None
    relative_error: float | None = None
    error_bound: float | None = None
    times_peer: float | None = None

    @property
    def case(self) -> str:
        """Operator, model and size."""
        return f"{self.operator}, {self.model}, {self.size}"


@dataclass(frozen=True)
class BlockReport(RowReport[BlockRow]):
    """The report of `bench blocks`."""

    QUESTION = "blocks"
    ROW = BlockRow
