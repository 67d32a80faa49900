# SPDX-License-Identifier: Apache-2.0
"""What every executor offers: specs, run, close. `Engine` does the checking; an executor only runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

from vorta_trt.runtime.fallbacks import Fallbacks
from vorta_trt.runtime.tensors import Array, ArrayKind, TensorSpec

if TYPE_CHECKING:
    from vorta_trt.runtime.device.device_scratch import DeviceScratch
    from vorta_trt.runtime.executors.layer_times import LayerTimes

Outputs = Literal["copy", "reuse"]
CLOSED = "the executor is closed; make a new Engine"


@dataclass(frozen=True)
class ContextOptions:
    """How an execution context runs; `Engine` documents the options. Only "tensorrt" has any of them."""

    cuda_graph: bool = True
    outputs: Outputs = "copy"
    scratch: DeviceScratch | None = None
    nvtx: bool = False
    fallbacks: Fallbacks = field(default_factory=Fallbacks)

    def __post_init__(self) -> None:
        if self.outputs not in ("copy", "reuse"):
            raise ValueError(
                f'outputs {self.outputs!r}: must be "copy" (each call gives tensors of its own) or "reuse" (they are '
                "valid until the next call)"
            )


@dataclass(frozen=True)
class DeviceUse:
    """Bytes that an execution context holds on the GPU.

    Attributes:
        weights: Shared by all contexts of an engine.
        scratch: Shared by the engines of a `DeviceScratch`.
        buffers: Inputs and outputs that are kept between calls.
    """

    weights: int = 0
    scratch: int = 0
    buffers: int = 0


class Executor(Protocol):
    """One way to run a transformer. It owns its session, engine or buffers until `close`; threads may share it.

    Attributes:
        name: As `Engine` takes it.
        device: "cpu" or "cuda:N".
        array_kind: Of what `run` takes and gives.
        inputs: What it takes.
        outputs: What it gives.
    """

    name: str
    device: str
    array_kind: ArrayKind
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def run(self, feeds: Mapping[str, Array], on_gpu: bool) -> dict[str, Any]:
        """Runs once.

        Args:
            feeds: Every input, already of the spec's type and shape and of `array_kind`.
            on_gpu: The caller wants the outputs on the GPU, if that is where they are made.
        """
        ...

    def context(self, options: ContextOptions) -> Executor:
        """Another executor on the same weights, which may run at the same time as this one."""
        ...

    def layer_times(self, feeds: Mapping[str, Array], repeats: int) -> LayerTimes:
        """Measures every layer over `repeats` runs; raises VortaError where the executor cannot."""
        ...

    def device_use(self) -> DeviceUse:
        """What lies on the GPU now; nothing for executors on the CPU."""
        ...

    def room_for(self, batch: int) -> tuple[int, int]:
        """Bytes on the GPU that a call with `batch` samples takes besides what is held now, and bytes that are free."""
        ...

    def close(self) -> None:
        """Frees what the executor holds. May be called twice, and before or after its contexts."""
        ...
