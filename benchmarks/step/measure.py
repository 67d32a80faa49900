# SPDX-License-Identifier: Apache-2.0
"""Times one way to run a step: cold, then warm, with its memory and where its time goes.

A step takes seconds, so each is timed from one synchronisation of the GPU to the next; the host's part is in it.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vorta_trt.benchmarks.harness import gib

# Parts of a kernel's name, in this order; what has none of them is elementwise work, norms, copies.
ATTENTION, PRODUCTS, REST = "attention", "matrix products", "other"
KERNELS = {
    ATTENTION: ("vorta", "attention", "fmha", "flash", "sdpa", "coreset"),
    PRODUCTS: ("gemm", "nvjet", "cutlass", "cublas", "_mm_", "matmul", "conv"),
}
# Our own kernels that are no attention, of these namespaces; the products come first.
OTHER_OWN = {"own_product_kernel": PRODUCTS, "vorta::linear": REST, "vorta::norms": REST, "vorta::exchange": REST}


@dataclass(frozen=True)
class StepTiming:
    """How long a pass took, and what it used.

    Attributes:
        cold: Seconds of the first pass, compilation included.
        median: Median seconds of the later passes.
        minimum: Seconds of the fastest later pass.
        runs: Number of later passes.
        peak_memory_gib: Peak of torch's allocated memory, weights included.
        kernel_shares: Shares of a pass's GPU time by what the kernels do; empty without a GPU.
    """

    cold: float
    median: float
    minimum: float
    runs: int
    peak_memory_gib: float
    kernel_shares: dict[str, float]


def time_step(run: Callable[[float], Tensor], timesteps: Sequence[float], device: torch.device) -> StepTiming:
    """A cold pass, a pass that is profiled, and one timed pass per entry of `timesteps`."""
    _synchronize(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    cold = _seconds(run, timesteps[0], device)
    shares = _kernel_shares(run, timesteps[0]) if device.type == "cuda" else {}
    seconds = [_seconds(run, timestep, device) for timestep in timesteps]
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0
    return StepTiming(cold, statistics.median(seconds), min(seconds), len(seconds), gib(peak), shares)


def difference(sample: Tensor, reference: Tensor) -> float:
    """|sample - reference| / |reference|; infinite where the sample is not finite."""
    sample, reference = sample.float(), reference.float()
    if not bool(torch.isfinite(sample).all()):
        return float("inf")
    return float((sample - reference).norm() / reference.norm())


def _seconds(run: Callable[[float], Any], timestep: float, device: torch.device) -> float:
    start = time.perf_counter()
    run(timestep)
    _synchronize(device)
    return time.perf_counter() - start


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _kernel_shares(run: Callable[[float], Any], timestep: float) -> dict[str, float]:
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        run(timestep)
        torch.cuda.synchronize()
    times = dict.fromkeys((*KERNELS, REST), 0.0)
    for event in profiler.key_averages():
        if event.self_device_time_total > 0:
            times[kind_of_kernel(event.key)] += event.self_device_time_total
    total = sum(times.values())
    return {kind: round(value / total, 4) for kind, value in times.items()} if total else {}


def kind_of_kernel(name: str) -> str:
    """What a kernel does, from its name. torch.compile names its Triton kernels after all that they are fused from."""
    lowered = name.lower()
    if lowered.startswith("triton"):
        return REST
    own = next((kind for part, kind in OTHER_OWN.items() if part in lowered), None)
    if own is not None:
        return own
    return next((kind for kind, parts in KERNELS.items() if any(part in lowered for part in parts)), REST)
