# SPDX-License-Identifier: Apache-2.0
"""Where attention in fp8 has kernels, asked before a build and before a run.

The library's table of kernel families says it. The kernels themselves refuse when it is too late to choose otherwise.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path

from vorta_trt.engines.errors import BuildError
from vorta_trt.engines.gpu import Target
from vorta_trt.plugins.gpu import Device
from vorta_trt.plugins.library import KernelFamily, load_library

logger = logging.getLogger(__name__)

_REMEDY = "use --attention-precision same"


def _families() -> list[KernelFamily]:
    return [family for family in load_library().kernel_families if family.attention_precision == "fp8"]


def _capabilities(families: Iterable[KernelFamily]) -> str:
    """The GPUs that the families serve, such as "9.0"."""
    texts = []
    for family in families:
        oldest, newest = family.oldest_gpu, family.newest_gpu
        texts.append(f"{oldest}" if oldest == newest else f"{oldest} or newer" if newest.major > 99 else
                     f"{oldest} to {newest}")  # fmt: skip
    return " or ".join(dict.fromkeys(texts))


def _is_served(target: Target, family: KernelFamily) -> bool:
    """Says whether the family serves some GPU that an engine is built for."""
    newer = target.and_newer and family.newest_gpu > max(target.capabilities)
    return newer or any(map(family.serves, target.capabilities))


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
    families = _families()
    serving = [family for family in families if _is_served(target, family)]
    if not serving:
        built_for = ", ".join(map(str, target.capabilities)) + (" and newer" if target.and_newer else "")
        missing.append(
            f"needs a GPU of compute capability {_capabilities(families)}, and this engine is built for {built_for}; "
            f"build with --tensorrt tensorrt on such a GPU, or {_REMEDY}"
        )
    known_dims = {head_dim for family in serving or families for head_dim in family.head_dims}
    if unknown := sorted(set(head_dims) - known_dims):
        known = " or ".join(map(str, sorted(known_dims)))
        missing.append(f"needs head_dim {known}, and this model has {', '.join(map(str, unknown))}; {_REMEDY}")
    for reason in missing:
        message = f"{source}: attention_precision fp8 {reason}"
        if strict:
            raise BuildError(f"{message}; or pass strict=False (--no-strict) to build it as it is")
        logger.warning("%s", message)


def run_problems(attention_precision: str, device: Device) -> list[str]:
    """Why an engine with this attention precision does not run on `device`."""
    if attention_precision != "fp8":
        return []
    families = _families()
    if any(family.serves(device.capability) for family in families):
        return []
    return [
        f"attention_precision fp8 needs a GPU of compute capability {_capabilities(families)}, but this GPU is "
        f"{device}; build for it with --attention-precision same"
    ]
