# SPDX-License-Identifier: Apache-2.0
"""Finds out which code libvorta_trt.so holds for a GPU: none that runs, slower code than there could be, or the best.

`prepare_gpu` is asked before the first launch on a GPU, by the torch operator and by engines; `vorta-trt doctor` and
the checks of a bundle ask for the same facts one by one.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

from vorta_trt.plugins.errors import VortaError
from vorta_trt.plugins.gpu import (
    OLDEST,
    Code,
    ComputeCapability,
    Device,
    DriverReport,
    architectures_cover,
    code_for,
    driver_report,
    driver_version,
    native_architecture,
)
from vorta_trt.plugins.library import KernelFamily, PluginLibrary, load_library

logger = logging.getLogger(__name__)

# Major version of CUDA -> the oldest driver that runs all of its minor versions.
OLDEST_DRIVERS = {12: "R525", 13: "R580"}


class GpuSupportError(VortaError):
    """The library does not run on this GPU or with this driver."""


def driver_problem(library: PluginLibrary, report: DriverReport) -> str | None:
    """Says why the driver is too old for the library.

    Args:
        library: The library, which contains a CUDA runtime.
        report: Report of the driver.

    Returns:
        Found version, rule and remedy; None if there is no such problem, or no driver.
    """
    if report.cuda_version is None:
        return None
    needed, found = (int(version.split(".")[0]) for version in (library.cuda_version, report.cuda_version))
    if found >= needed:
        return None
    oldest = OLDEST_DRIVERS.get(needed)
    rule = f"driver {oldest} or newer" if oldest else f"a driver of CUDA {needed} or newer"
    return (
        f"NVIDIA driver {driver_version() or 'of this machine'} (CUDA {report.cuda_version}): {library.path} contains "
        f"the runtime of CUDA {library.cuda_version}, which needs {rule}; update the driver (on data-centre GPUs the "
        f"package cuda-compat-{library.cuda_version.replace('.', '-')} does as well)"
    )


def code_problem(library: PluginLibrary, device: Device) -> str | None:
    """Says why no kernel of the library runs on the GPU; None if some do.

    Args:
        library: The library.
        device: The GPU.
    """
    if architectures_cover(library.cuda_architectures, device.capability):
        return None
    built = ", ".join(library.cuda_architectures)
    if device.capability < OLDEST:
        return (
            f"{library.path} has kernels for {built}, none for this GPU ({device}), and there are none for compute "
            f"capabilities below {OLDEST}; use a newer GPU"
        )
    remedy = architectures_remedy(device.capability)
    return f"{library.path} has kernels for {built}, none for this GPU ({device}); {remedy}"


def best_family(library: PluginLibrary, precision: str, capability: ComputeCapability) -> KernelFamily | None:
    """The fastest family of the sources for a precision and a GPU, compiled in or not; None if there is none."""
    serving = (family for family in library.kernel_families if family.serves(capability))
    return next((family for family in serving if family.attention_precision == precision), None)


def slower_than_possible(library: PluginLibrary, device: Device) -> str | None:
    """Says what the sources have for a GPU, but the library lacks: faster kernels, 8-bit kernels, machine code.

    Args:
        library: The library.
        device: The GPU, on which the library runs.

    Returns:
        What is missing and the remedy; None if nothing is.
    """
    misses = []
    for precision in dict.fromkeys(family.attention_precision for family in library.kernel_families):
        best = best_family(library, precision, device.capability)
        if best is None or architectures_cover(best.architectures, device.capability):
            continue
        others = (family for family in library.kernel_families if family.attention_precision == precision)
        instead = next((f for f in others if architectures_cover(f.architectures, device.capability)), None)
        which = f"attention_precision {precision} " + (f"takes kernels {instead.name}" if instead else "has no kernels")
        misses.append(f"{which} (the sources have {best.name})")
    if code_for(library.cuda_architectures, device.capability) is Code.PTX:
        misses.append("the driver compiles PTX at the first launch of every kernel")
    if not misses:
        return None
    return (
        f"{device}: slower than possible, because {library.path} was compiled for "
        f"{', '.join(library.cuda_architectures)}: {'; '.join(misses)}. To get the faster ones, "
        f"{architectures_remedy(device.capability)}"
    )


def architectures_remedy(*capabilities: ComputeCapability) -> str:
    """Says how to get a library with the code of these GPUs."""
    wanted = ";".join(f"{native_architecture(capability)}-real" for capability in capabilities)
    return (
        f'install vorta-trt from a release wheel, or from the sources with VORTA_CUDA_ARCHITECTURES="80;{wanted}"'
        " in the environment (a build on a machine with such a GPU does so by itself)"
    )


@cache
def prepare_gpu(library: PluginLibrary, index: int) -> None:
    """Checks a GPU before the library is used on it, and warns once per process where it could be faster.

    Args:
        library: The library.
        index: Number of the GPU among those that CUDA_VISIBLE_DEVICES shows.

    Raises:
        GpuSupportError: The driver is too old, or the library has no code for the GPU.
    """
    report = driver_report()
    if problem := driver_problem(library, report):
        raise GpuSupportError(problem)
    if index >= len(report.devices):
        return  # the caller's error to report, or a GPU that another process manages for us
    device = report.devices[index]
    if problem := code_problem(library, device):
        raise GpuSupportError(problem)
    if slower := slower_than_possible(library, device):
        logger.warning("%s", slower)


@contextmanager
def held_to(kernels: str) -> Iterator[None]:
    """Context in which the library takes the kernels of one family only.

    Args:
        kernels: What `PluginLibrary.force_kernels` takes; "" changes nothing.

    Raises:
        LibraryError: There is no such family.
    """
    if not kernels:
        yield
        return
    library = load_library()
    before = library.forced_kernels
    library.force_kernels(kernels)
    try:
        yield
    finally:
        library.force_kernels(before)
