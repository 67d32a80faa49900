# SPDX-License-Identifier: Apache-2.0
"""The GPUs that an engine runs on."""

from __future__ import annotations

from dataclasses import dataclass

from vorta_trt.plugins.gpu import ComputeCapability


@dataclass(frozen=True)
class Target:
    """The GPUs that an engine runs on.

    Attributes:
        capabilities: Their compute capabilities.
        and_newer: GPUs newer than the newest of `capabilities` may run it too.
    """

    capabilities: tuple[ComputeCapability, ...]
    and_newer: bool

    def covers(self, capability: ComputeCapability) -> bool:
        """Says whether the engine runs on GPUs of this compute capability."""
        newer = self.and_newer and bool(self.capabilities) and capability > max(self.capabilities)
        return newer or capability in self.capabilities
