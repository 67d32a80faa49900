# SPDX-License-Identifier: Apache-2.0
"""How fast is each operator of a transformer block, beside torch's way to compute the same?

`vorta-trt bench blocks`. Every implementation is checked on a sample of rows, then timed with a cold L2, on the same
tensors in the same run. Ours may err at most twice as much as the first peer does.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace

import torch

from vorta_trt.benchmarks.attention import Progress, require_gpu
from vorta_trt.benchmarks.blocks.case import Implementation, OperatorCase, Prepared
from vorta_trt.benchmarks.blocks.operators import select_cases
from vorta_trt.benchmarks.blocks.report import BlockReport, BlockRow
from vorta_trt.benchmarks.checks import FACTOR
from vorta_trt.benchmarks.harness import environment
from vorta_trt.benchmarks.timing import Run, Timer, Timing, matmul_ceiling, tflops
from vorta_trt.model.precision import torch_dtype
from vorta_trt.plugins import load_library
from vorta_trt.plugins.linear import LINEAR_PRECISIONS, backend

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class BlockOptions:
    """The options of a run; empty tuples mean everything."""

    operators: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    dtype: str = "bf16"
    seed: int = 0
    seconds: float = 0.5

    def __post_init__(self) -> None:
        """Raises ValueError for a name that is not known."""
        select_cases(self.operators, self.models)


def run(options: BlockOptions, progress: Progress) -> BlockReport:
    """Measures everything on the current CUDA device. Raises NoGpuError; LibraryNotFoundError without the kernels."""
    require_gpu("bench blocks")
    library = load_library()
    start = time.perf_counter()
    cases = select_cases(options.operators, options.models)
    rows: list[BlockRow] = []
    with torch.no_grad():
        timer = Timer(options.seconds)
        progress("measuring the matrix product's ceiling")
        ceiling = matmul_ceiling(timer, torch_dtype(options.dtype))
        for index, case in enumerate(cases):
            progress(str(case), index, len(cases))
            rows += case_rows(case, options, timer)
            torch.cuda.empty_cache()
    about = {
        **environment(),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "library": {"version": library.version, "cuda_architectures": list(library.cuda_architectures)},
        "linear_backends": {precision: backend(library, precision)[0] for precision in LINEAR_PRECISIONS},
        "options": asdict(options),
        "ceiling_tflops": round(ceiling, 1),
        "seconds": round(time.perf_counter() - start, 1),
    }
    return BlockReport(about, rows)


def case_rows(case: OperatorCase, options: BlockOptions, timer: Callable[[Run], Timing]) -> list[BlockRow]:
    """All rows of a case; if it cannot be prepared, one failed row, so that the rows of other cases are kept."""
    dtype = str(torch_dtype(options.dtype)).removeprefix("torch.")
    blank = BlockRow(case.operator, case.model, case.size, dtype, "vorta-trt", ours=True)
    try:
        prepared = case.prepare(dtype, options.seed)
    except RuntimeError as error:  # out of memory, or a GPU that a kernel has left in error
        logger.exception("%s", case)
        return [replace(blank, state="failed", note=_reason(error))]
    rows: list[BlockRow] = []
    for implementation in sorted(
        prepared.implementations, key=lambda one: one.ours
    ):  # peers first: they give the bound
        row = replace(blank, implementation=implementation.name, ours=implementation.ours)
        rows.append(_row(row, case, prepared, implementation, _bound(rows), timer))
    return with_speedups(rows)


def _bound(rows: Sequence[BlockRow]) -> float | None:
    errors = [row.relative_error for row in rows if row.state == "ok" and row.relative_error is not None]
    return FACTOR * errors[0] if errors else None


def _row(
    row: BlockRow,
    case: OperatorCase,
    prepared: Prepared,
    implementation: Implementation,
    bound: float | None,
    timer: Callable[[Run], Timing],
) -> BlockRow:
    """Checks and times an implementation; if that fails, the row says why."""
    try:
        error = prepared.error(implementation.run())
        row = replace(row, relative_error=error, error_bound=bound if row.ours else None)
        if row.ours and bound is not None and not error <= bound:
            return replace(row, state="wrong", note=f"relative error {error:.2e} above {bound:.2e}; not timed")
        timing = timer(implementation.run)
    except Exception as error:  # foreign code raises what it likes, and its absence has to be explained
        logger.debug("%s, %s", case, implementation.name, exc_info=True)
        return replace(row, state="failed" if row.ours else "unavailable", note=_reason(error))
    return replace(
        row,
        milliseconds=round(timing.median, 4),
        minimum=round(timing.minimum, 4),
        p90=round(timing.p90, 4),
        runs=timing.runs,
        tflops=round(tflops(case.flops, timing.median), 1) if case.flops else None,
        terabytes_per_second=round(case.bytes / timing.median * 1e-9, 3),
    )


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:200]}"


def with_speedups(rows: Sequence[BlockRow]) -> list[BlockRow]:
    """The rows of one case, with how many times faster they are than the first peer that was timed."""
    peer = next((row.milliseconds for row in rows if not row.ours and row.milliseconds is not None), None)

    def times(row: BlockRow) -> float | None:
        return None if peer is None or row.milliseconds is None else round(peer / row.milliseconds, 3)

    return [replace(row, times_peer=times(row)) for row in rows]
