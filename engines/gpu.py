# SPDX-License-Identifier: Apache-2.0
"""Compute capabilities, and the GPUs of this machine as the CUDA driver lists them (no context is created)."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

# CUdevice_attribute values of the CUDA driver API.
_CAPABILITY_MAJOR = 75
_CAPABILITY_MINOR = 76


@dataclass(frozen=True, order=True)
class ComputeCapability:
    """A GPU architecture, e.g. 8.9 (Ada) or 9.0 (Hopper)."""

    major: int
    minor: int

    @classmethod
    def parse(cls, text: str) -> ComputeCapability:
        """Reads "8.9", "89", "sm_89", "SM89", "12.0" or "120"."""
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


@dataclass(frozen=True)
class Target:
    """The GPUs that an engine runs on."""

    capabilities: tuple[ComputeCapability, ...]
    and_newer: bool  # GPUs newer than the newest of `capabilities` may run it too

    def covers(self, capability: ComputeCapability) -> bool:
        """Says whether the engine runs on GPUs of this compute capability."""
        newer = self.and_newer and bool(self.capabilities) and capability > max(self.capabilities)
        return newer or capability in self.capabilities


@dataclass(frozen=True)
class Device:
    """One GPU."""

    name: str
    capability: ComputeCapability
    memory_bytes: int

    def __str__(self) -> str:
        return f"{self.name} (compute capability {self.capability}, {self.memory_bytes / 2**30:.0f} GiB)"


@dataclass(frozen=True)
class DriverReport:
    """What the CUDA driver says: its GPUs, or the reason why there are none."""

    devices: tuple[Device, ...]
    cuda_version: str | None  # the newest CUDA version that the driver supports, e.g. "13.0"
    reason: str | None  # why `devices` is empty


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


def architectures_cover(architectures: Sequence[str], capability: ComputeCapability) -> bool:
    """Whether code compiled for CMake-style `architectures` ("80", "80-real", "90a-real", "120-virtual") runs on a GPU.

    Machine code (`-real`) runs on the same major version from its minor version up; an architecture-specific one
    ("90a") on exactly that GPU; PTX (`-virtual`) on anything newer. No suffix means both.
    """
    for architecture in architectures:
        match = re.fullmatch(r"(\d+)(\d)([af]?)(-real|-virtual)?", architecture.strip())
        if match is None:
            raise ValueError(f'architecture {architecture!r}: not of the form "80", "90a-real" or "120-virtual"')
        built = ComputeCapability(int(match[1]), int(match[2]))
        if match[3] == "a":
            if capability == built:
                return True
            continue
        if match[4] != "-virtual" and capability.major == built.major and capability.minor >= built.minor:
            return True
        if match[4] != "-real" and not match[3] and capability >= built:
            return True
    return False
