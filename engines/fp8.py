# SPDX-License-Identifier: Apache-2.0
"""Where attention in fp8 has kernels, asked before a build and before a run.

The kernels themselves refuse when it is too late to choose otherwise.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path

from vorta_trt.engines.errors import BuildError
from vorta_trt.engines.gpu import ComputeCapability, Device, Target

logger = logging.getLogger(__name__)

# As the launch of the kernels has them (plugins/kernels/launch.cu).
CAPABILITY = ComputeCapability(9, 0)
HEAD_DIMS = (64, 128)
_REMEDY = "use --attention-precision same"


def check_build(source: Path, attention_precision: str, target: Target, head_dims: Iterable[int], strict: bool) -> None:
    """Refuses an engine with fp8 attention that nothing could run.

    Args:
        source: What it is built from.
        attention_precision: Of its RoutedAttention nodes.
        target: The GPUs that it is built for.
        head_dims: Of the RoutedAttention layers.
        strict: Raise; otherwise warn.

    Raises:
        BuildError: There are no such kernels.
    """
    if attention_precision != "fp8":
        return
    missing = []
    if not target.covers(CAPABILITY):
        built_for = ", ".join(map(str, target.capabilities)) + (" and newer" if target.and_newer else "")
        missing.append(
            f"needs a GPU of compute capability {CAPABILITY}, and this engine is built for {built_for}; build with "
            f"--tensorrt tensorrt on such a GPU, or {_REMEDY}"
        )
    if unknown := sorted(set(head_dims) - set(HEAD_DIMS)):
        known = " or ".join(map(str, HEAD_DIMS))
        missing.append(f"needs head_dim {known}, and this model has {', '.join(map(str, unknown))}; {_REMEDY}")
    for reason in missing:
        message = f"{source}: attention_precision fp8 {reason}"
        if strict:
            raise BuildError(f"{message}; or pass strict=False (--no-strict) to build it as it is")
        logger.warning("%s", message)


def run_problems(attention_precision: str, device: Device) -> list[str]:
    """Why an engine with this attention precision does not run on `device`."""
    if attention_precision != "fp8" or device.capability == CAPABILITY:
        return []
    return [
        f"attention_precision fp8 needs a GPU of compute capability {CAPABILITY}, but this GPU is {device}; build for "
        "it with --attention-precision same"
    ]
