# SPDX-License-Identifier: Apache-2.0
"""The interface of all executors: specs, run, close. `Engine` checks the inputs; an executor only runs."""

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
    """Options of an execution context; `Engine` documents them. Only the executor "tensorrt" uses them."""

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
        weights: Bytes of weights, which all contexts of an engine share.
        scratch: Bytes of activation memory, which the engines of a `DeviceScratch` share.
        buffers: Bytes of inputs and outputs that are kept between calls.
    """

    weights: int = 0
    scratch: int = 0
    buffers: int = 0


class Executor(Protocol):
    """One way to run a transformer. It owns its session, engine or buffers until `close`; threads may share it.

    Attributes:
        name: Name of the executor, as `Engine` takes it.
        device: "cpu" or "cuda:N".
        array_kind: Kind of arrays that `run` takes and returns.
        inputs: Specs of the inputs.
        outputs: Specs of the outputs.
    """

    name: str
    device: str
    array_kind: ArrayKind
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def run(self, feeds: Mapping[str, Array], on_gpu: bool) -> dict[str, Any]:
        """Runs once.

        Args:
            feeds: All inputs by name, already in the spec's type and shape, and of `array_kind`.
            on_gpu: Whether the caller wants the outputs on the GPU, if the executor makes them there.
        """
        ...

    def context(self, options: ContextOptions) -> Executor:
        """Another executor on the same weights, which may run at the same time as this one."""
        ...

    def layer_times(self, feeds: Mapping[str, Array], repeats: int) -> LayerTimes:
        """Measures every layer over `repeats` runs; raises VortaError where the executor cannot."""
        ...

    def device_use(self) -> DeviceUse:
        """Bytes that the executor holds on the GPU now; zeros for executors on the CPU."""
        ...

    def room_for(self, batch: int) -> tuple[int, int]:
        """Bytes that a call with `batch` samples takes on the GPU beyond those held now, and bytes that are free."""
        ...

    def close(self) -> None:
        """Frees what the executor holds. May be called twice, and before or after its contexts are closed."""
        ...
