# SPDX-License-Identifier: Apache-2.0
"""Versions that must be the same on all ranks: driver, libraries, kind of GPU.

If they differ between ranks, results may differ without any error.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version

import torch

from vorta_trt.plugins.gpu import driver_version
from vorta_trt.runtime.parallel.errors import ParallelError


def versions_here(device: torch.device) -> dict[str, str]:
    """Names and versions of the libraries, the driver and the GPU that this process uses."""
    found = {"torch": torch.__version__, "Python": platform.python_version(), "diffusers": _package("diffusers")}
    found["vorta-trt"] = _package("vorta-trt")
    if device.type == "cuda":
        found |= {
            "driver": driver_version() or "unknown",
            "CUDA of torch": str(torch.version.cuda),
            "NCCL": ".".join(map(str, torch.cuda.nccl.version())),
            "compute capability": ".".join(map(str, torch.cuda.get_device_capability(device))),
        }
    return found


def check_alike(versions: Sequence[Mapping[str, str]]) -> None:
    """Raises ParallelError, which names the ranks and their versions, unless all ranks have the same versions.

    Args:
        versions: The versions of each rank, in rank order.
    """
    for name in dict.fromkeys(name for one in versions for name in one):
        ranks: dict[str, list[int]] = {}
        for rank, one in enumerate(versions):
            ranks.setdefault(one.get(name, "none"), []).append(rank)
        if len(ranks) > 1:
            found = ", ".join(f"{value} on rank {', '.join(map(str, who))}" for value, who in ranks.items())
            raise ParallelError(f"{name}: is {found}; all ranks must have the same, or their results differ; update")


def _package(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
