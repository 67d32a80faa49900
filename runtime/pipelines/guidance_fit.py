# SPDX-License-Identifier: Apache-2.0
"""Whether both samples of guidance go through one launch: the optimization profile and the memory decide."""

from __future__ import annotations

from vorta_trt.runtime.fallbacks import Fallbacks
from vorta_trt.runtime.memory_plan import batched_guidance_fits
from vorta_trt.runtime.pipelines.denoiser import Denoiser, EngineDenoiser
from vorta_trt.runtime.pipelines.guidance import KIND
from vorta_trt.runtime.sampling.params import GuidanceMode


def use_batched_guidance(denoiser: Denoiser, mode: GuidanceMode, fallbacks: Fallbacks) -> bool:
    """The decision for one sample per context.

    AUTO batches only engines on a GPU: on the CPU nothing is gained, and of torch it is not known what fits.

    Raises: FallbackError, in strict mode, if `mode` is BATCHED and it is not possible.
    """
    if mode is GuidanceMode.SEQUENTIAL:
        return False
    if mode is GuidanceMode.AUTO and (denoiser.on_cpu or not isinstance(denoiser, EngineDenoiser)):
        return False
    problem = _problem(denoiser)
    if problem is not None and mode is GuidanceMode.BATCHED:
        fallbacks.record(KIND, problem)
    return problem is None


def _problem(denoiser: Denoiser) -> str | None:
    if isinstance(denoiser, EngineDenoiser):
        fit = batched_guidance_fits(denoiser.engine)
        return None if fit else fit.reason
    return None
