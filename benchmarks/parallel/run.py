# SPDX-License-Identifier: Apache-2.0
"""How much faster is a denoising step on several GPUs of one machine than on one, and what do the exchanges take?

`vorta-trt bench parallel` starts a process for each GPU. All make the same model of the published size with random
weights, and measure one GPU, then more of them: video tokens sharded and heads exchanged around the attention, heads
placed by their routes and in order; with `guidance`, the two passes of a step on two halves of the GPUs. Every sample
is compared with that of one GPU.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch

from vorta_trt.benchmarks.attention import Progress
from vorta_trt.benchmarks.harness import environment
from vorta_trt.benchmarks.parallel.options import ParallelOptions
from vorta_trt.benchmarks.parallel.rank import measure
from vorta_trt.benchmarks.parallel.report import ParallelReport, ParallelRow
from vorta_trt.benchmarks.step.cases import StepCase
from vorta_trt.runtime.parallel.launch import launch

OnReport = Callable[[ParallelReport], object]


def run(options: ParallelOptions, progress: Progress, on_report: OnReport = lambda report: None) -> ParallelReport:
    """Measures a model; raises RankError if a process fails.

    Args:
        options: What is measured.
        progress: Called with what is being done.
        on_report: Called with the report of the rows so far whenever there is a new row.
    """
    return run_case(options.case, options, progress, on_report)


def run_case(
    case: StepCase, options: ParallelOptions, progress: Progress, on_report: OnReport = lambda report: None
) -> ParallelReport:
    """Measures a case of the caller's; see `run`."""
    start = time.perf_counter()
    rows: list[ParallelRow] = []
    about: dict[str, Any] = {
        **environment(),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "case": str(case),
        "family": case.family,
        "geometry": case.geometry.to_dict(),
        "weights": f"random, {options.dtype}",
        "passes_per_step": case.passes,
        "options": {**asdict(options), "variant": options.variant._asdict()},
    }

    def heard(rank: int, said: object) -> None:
        if isinstance(said, ParallelRow):
            rows.append(said)
            on_report(ParallelReport({**about, "seconds": round(time.perf_counter() - start, 1)}, tuple(rows)))
        else:
            progress(str(said))

    sizes = launch(measure, (case, options), gpus=max(options.gpus), kind=options.kind, on_message=heard)[0]
    return ParallelReport({**about, **sizes, "seconds": round(time.perf_counter() - start, 1)}, tuple(rows))
