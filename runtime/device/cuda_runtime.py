# SPDX-License-Identifier: Apache-2.0
"""The CUDA runtime through cuda-python: checked calls, events, graphs. Works with cuda-bindings 12.9 and 13.

Streams and memory that torch made are used here by their handles and addresses: both libraries share the GPU's
primary context.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from vorta_trt.plugins.errors import VortaError

# Values of the CUDA runtime API that have been the same in every version.
_SUCCESS = 0
_OUT_OF_MEMORY = 2  # cudaErrorMemoryAllocation
_INSUFFICIENT_DRIVER = 35  # cudaErrorInsufficientDriver
_NON_BLOCKING = 1  # cudaStreamNonBlocking: no hidden order with the default stream
_DISABLE_TIMING = 2  # cudaEventDisableTiming
OLD_DRIVER = "; cuda-bindings is of a newer CUDA than the driver: pip install 'cuda-bindings==12.9.*', or update that"


class CudaError(VortaError):
    """A call of the CUDA runtime failed."""


class DeviceOutOfMemory(VortaError):
    """The GPU has too little free memory.

    Attributes:
        needed: bytes, None where only TensorRT knows. free: bytes at that moment.
    """

    def __init__(self, what: str, device: int, needed: int | None, free: int, total: int) -> None:
        self.needed, self.free = needed, free
        amount = "more memory than there is" if needed is None else f"{needed / 2**30:.2f} GiB ({needed} bytes)"
        super().__init__(
            f"{what} on cuda:{device} needs {amount}, and {free / 2**30:.2f} GiB ({free} bytes) of "
            f"{total / 2**30:.1f} GiB are free; close other engines or let them share a DeviceScratch, move other "
            "models off the GPU, run a smaller batch, or stream weights (vorta-trt inspect BUNDLE --memory GIB shows "
            "what fits)"
        )


class CaptureError(VortaError):
    """Work could not be captured as a CUDA graph; nothing of it ran, and the stream is usable."""


class CudaRuntime:
    """Calls on one GPU, which must be the thread's current device (`DeviceMemory.current`).

    Args:
        device: number of the GPU. module: `cuda.bindings.runtime`.
    """

    def __init__(self, device: int, module: Any) -> None:
        self.device = device
        self.module = module

    @classmethod
    def load(cls, device: int) -> CudaRuntime:
        """Imports cuda-python. VortaError with the remedy where it is not installed."""
        try:
            module = importlib.import_module("cuda.bindings.runtime")
        except ImportError as error:
            raise VortaError(
                f"device {device}: running engines needs cuda-python ({error}); install 12.9 or newer: pip install "
                "cuda-bindings"
            ) from error
        return cls(device, module)

    def call(self, name: str, *arguments: Any) -> Any:
        """The result of a function of the runtime. CudaError, or DeviceOutOfMemory, names the call."""
        function: Callable[..., tuple[Any, ...]] = getattr(self.module, name)
        status, *result = function(*arguments)
        if int(status) != _SUCCESS:
            self.module.cudaGetLastError()  # or the next call that checks for errors reports this one again
            if int(status) == _OUT_OF_MEMORY:
                raise DeviceOutOfMemory(name, self.device, None, *self.free_bytes())
            what = f"{name} on device {self.device} failed: {getattr(status, 'name', status)}"
            raise CudaError(what + (OLD_DRIVER if int(status) == _INSUFFICIENT_DRIVER else ""))
        return result[0] if len(result) == 1 else tuple(result)

    def free_bytes(self) -> tuple[int, int]:
        """Free and total bytes of the GPU, as the driver counts them."""
        free, total = self.call("cudaMemGetInfo")
        return int(free), int(total)

    def make_stream(self) -> int:
        """The handle of a new stream; `cudaStreamDestroy` frees it."""
        return int(self.call("cudaStreamCreateWithFlags", _NON_BLOCKING))

    def capture(self, stream: int, enqueue: Callable[[int], object]) -> CudaGraph:
        """The work that `enqueue(stream)` would do, as a graph; nothing runs.

        Only this thread's calls can spoil the capture (capture mode "thread local").
        Raises: CaptureError, after the capture has been ended in any case.
        """
        mode = self.module.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self.call("cudaStreamBeginCapture", stream, mode)
        try:
            enqueue(stream)
        except BaseException as error:
            self._discard_capture(stream)
            if isinstance(error, VortaError):
                raise CaptureError(str(error)) from error
            raise
        try:
            graph = self.call("cudaStreamEndCapture", stream)
        except VortaError as error:
            raise CaptureError(str(error)) from error
        try:
            return CudaGraph(self, self.call("cudaGraphInstantiate", graph, 0))
        except VortaError as error:
            raise CaptureError(str(error)) from error
        finally:
            self.call("cudaGraphDestroy", graph)

    def _discard_capture(self, stream: int) -> None:
        status, graph = self.module.cudaStreamEndCapture(stream)
        if int(status) == _SUCCESS:
            self.call("cudaGraphDestroy", graph)
        else:
            self.module.cudaGetLastError()


class CudaGraph:
    """An executable graph. Close it only when none of its launches is running any more."""

    def __init__(self, cuda: CudaRuntime, handle: Any) -> None:
        self._cuda = cuda
        self._handle = handle

    def launch(self, stream: int) -> None:
        self._cuda.call("cudaGraphLaunch", self._handle, stream)

    def close(self) -> None:
        if self._handle is not None:
            handle, self._handle = self._handle, None
            self._cuda.call("cudaGraphExecDestroy", handle)


class CudaEvent:
    """A point in the work of a stream that other streams and the host can wait for."""

    def __init__(self, cuda: CudaRuntime) -> None:
        self._cuda = cuda
        self._handle = cuda.call("cudaEventCreateWithFlags", _DISABLE_TIMING)

    def record(self, stream: int) -> None:
        self._cuda.call("cudaEventRecord", self._handle, stream)

    def hold_back(self, stream: int) -> None:
        """What comes next on `stream` waits for the event; the host does not."""
        self._cuda.call("cudaStreamWaitEvent", stream, self._handle, 0)

    def synchronize(self) -> None:
        """The host waits for the event."""
        self._cuda.call("cudaEventSynchronize", self._handle)

    def close(self) -> None:
        if self._handle is not None:
            handle, self._handle = self._handle, None
            self._cuda.call("cudaEventDestroy", handle)
