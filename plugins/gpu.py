# SPDX-License-Identifier: Apache-2.0
"""Compute capabilities, and the GPUs of this machine as the CUDA driver lists them (no context is created).

The build runs this file by its path to find out what to compile for, so it imports nothing of this package.
"""

from __future__ import annotations

import ctypes
import re
import subprocess
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from functools import cache
from pathlib import Path

LOADED_MODULE = Path("/sys/module/nvidia/version")  # version of the kernel module
# CUdevice_attribute values of the CUDA driver API.
_CAPABILITY_MAJOR = 75
_CAPABILITY_MINOR = 76


@dataclass(frozen=True, order=True)
class ComputeCapability:
    """A GPU architecture, e.g. 8.9 (Ada) or 9.0 (Hopper).

    Attributes:
        major: The digits before the point.
        minor: The digit behind it.
    """

    major: int
    minor: int

    @classmethod
    def parse(cls, text: str) -> ComputeCapability:
        """Reads "8.9", "89", "sm_89", "SM89", "12.0" or "120".

        Args:
            text: One of these forms.

        Raises:
            ValueError: It is none of them.
        """
        match = re.fullmatch(r"(?:sm_?)?(\d+)\.?(\d)", text.strip(), flags=re.IGNORECASE)
        if match is None:
            raise ValueError(f'compute capability {text!r}: not of the form "8.9", "89" or "sm_89"')
        return cls(int(match[1]), int(match[2]))

    @property
    def sm(self) -> str:
        """The name TensorRT-RTX uses, e.g. "SM89"."""
        return f"SM{self.major}{self.minor}"

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}"


OLDEST = ComputeCapability(8, 0)  # the oldest GPUs that the kernels run on
ADA = ComputeCapability(8, 9)
HOPPER = ComputeCapability(9, 0)


@dataclass(frozen=True)
class Device:
    """One GPU.

    Attributes:
        name: Its name, such as "NVIDIA H100 80GB HBM3".
        capability: Its compute capability.
        memory_bytes: All of its memory.
    """

    name: str
    capability: ComputeCapability
    memory_bytes: int

    def __str__(self) -> str:
        return f"{self.name} (compute capability {self.capability}, {self.memory_bytes / 2**30:.0f} GiB)"


@dataclass(frozen=True)
class DriverReport:
    """Report of the CUDA driver: its GPUs, or the reason why there are none.

    Attributes:
        devices: The GPUs.
        cuda_version: The newest CUDA version that the driver supports, e.g. "13.0"; None without a driver.
        reason: Why there are no GPUs; None if there are some.
    """

    devices: tuple[Device, ...]
    cuda_version: str | None
    reason: str | None


@cache
def driver_report() -> DriverReport:
    """Asks libcuda for the GPUs of this machine; CUDA_VISIBLE_DEVICES applies. Cached for the process."""
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return DriverReport((), None, "no NVIDIA driver: libcuda.so.1 is not on this machine")
    if status := cuda.cuInit(0):
        return DriverReport((), None, f"no usable GPU: the CUDA driver's cuInit returned error {status}")
    version = ctypes.c_int()
    _call(cuda, "cuDriverGetVersion", ctypes.byref(version))
    cuda_version = f"{version.value // 1000}.{version.value % 1000 // 10}"
    count = ctypes.c_int()
    _call(cuda, "cuDeviceGetCount", ctypes.byref(count))
    devices = tuple(_device(cuda, index) for index in range(count.value))
    return DriverReport(devices, cuda_version, None if devices else "the CUDA driver lists no GPU")


def _call(cuda: ctypes.CDLL, function: str, *arguments: object) -> None:
    if status := getattr(cuda, function)(*arguments):
        raise RuntimeError(f"the CUDA driver's {function} returned error {status}; is the driver installation whole?")


def _device(cuda: ctypes.CDLL, index: int) -> Device:
    handle, major, minor, memory = ctypes.c_int(), ctypes.c_int(), ctypes.c_int(), ctypes.c_size_t()
    name = ctypes.create_string_buffer(256)
    _call(cuda, "cuDeviceGet", ctypes.byref(handle), index)
    _call(cuda, "cuDeviceGetName", name, len(name), handle)
    _call(cuda, "cuDeviceGetAttribute", ctypes.byref(major), _CAPABILITY_MAJOR, handle)
    _call(cuda, "cuDeviceGetAttribute", ctypes.byref(minor), _CAPABILITY_MINOR, handle)
    _call(cuda, "cuDeviceTotalMem_v2", ctypes.byref(memory), handle)
    return Device(name.value.decode(), ComputeCapability(major.value, minor.value), memory.value)


class Code(Enum):
    """Kind of code that a library holds for a GPU; NONE counts as false."""

    NONE = 0
    PTX = 1  # the driver compiles it at the first launch
    MACHINE = 2

    def __bool__(self) -> bool:
        return self is not Code.NONE


def split_architecture(architecture: str) -> tuple[str, str, str]:
    """The parts of an architecture as CMake spells it: "90a-real" is ("90", "a", "-real").

    Raises:
        ValueError: It is not of that form.
    """
    match = re.fullmatch(r"(\d+\d)([af]?)(-real|-virtual)?", architecture.strip())
    if match is None:
        raise ValueError(f'architecture {architecture!r}: not of the form "80", "90a-real" or "120-virtual"')
    return match[1], match[2], match[3] or ""


def code_for(architectures: Iterable[str], capability: ComputeCapability) -> Code:
    """The best code that a GPU finds among what was compiled for CMake-style `architectures`.

    Machine code (`-real`) runs on the same major version from its minor version up; an architecture-specific one
    ("90a") on exactly that GPU; PTX (`-virtual`) on anything newer. No suffix means both.

    Args:
        architectures: Architectures that the code was compiled for.
        capability: Compute capability of the GPU.

    Returns:
        Machine code, PTX or nothing.
    """
    best = Code.NONE
    for architecture in architectures:
        number, specific, kind = split_architecture(architecture)
        built = ComputeCapability.parse(number)
        if specific == "a":
            fits = capability == built
        else:
            fits = capability.major == built.major and capability.minor >= built.minor
        if kind != "-virtual" and fits:
            return Code.MACHINE
        if kind != "-real" and (fits if specific else capability >= built):
            best = Code.PTX
    return best


def architectures_cover(architectures: Iterable[str], capability: ComputeCapability) -> bool:
    """Says whether code compiled for `architectures` runs on a GPU at all; see `code_for`."""
    return bool(code_for(architectures, capability))


def native_architecture(capability: ComputeCapability) -> str:
    """The architecture to compile for a GPU; "90a" for Hopper, whose tensor cores need the architecture's own code."""
    return f"{capability.major}{capability.minor}" + ("a" if capability == HOPPER else "")


def driver_version() -> str | None:
    """The driver's version, such as "580.95", from the kernel or nvidia-smi; None where neither says it."""
    with suppress(OSError):
        return LOADED_MODULE.read_text(encoding="ascii").strip()
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.splitlines()[0].strip() if result.stdout.strip() else None
