# SPDX-License-Identifier: Apache-2.0
"""CUDA graphs of TensorRT's launches, made with cuda-python and launched on torch's streams.

`torch.cuda.CUDAGraph` is not used, for two reasons. If TensorRT or CUDA refuses a capture, an engine here runs on
without a graph; but torch's allocator would believe that the capture still goes on, and would not free memory that was
used on several streams any more. And a stream of `torch.cuda.Stream` is one of 32 that the whole process shares: work
that another thread launches there during a capture would become a part of the graph.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from vorta_trt.plugins.errors import VortaError

# Values of the CUDA runtime API that have been the same in every version.
_SUCCESS = 0
_INSUFFICIENT_DRIVER = 35  # cudaErrorInsufficientDriver
_NON_BLOCKING = 1  # cudaStreamNonBlocking: no hidden order with the default stream
_OLD_DRIVER = "; cuda-bindings is of a newer CUDA than the driver: pip install 'cuda-bindings==12.9.*', or update that"


class CudaGraphError(VortaError):
    """A CUDA graph could not be made or launched. After a failed capture nothing has run, and the stream is usable."""


class CudaGraph:
    """An executable graph. Close it only when none of its launches is running any more."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle

    def launch(self, stream: int) -> None:
        """Launches the graph on the stream with this handle."""
        _call("cudaGraphLaunch", self._handle, stream)

    def close(self) -> None:
        """Frees the graph. May be called twice."""
        if self._handle is not None:
            handle, self._handle = self._handle, None
            _call("cudaGraphExecDestroy", handle)


class CaptureStream:
    """A stream of the current device that is used for captures alone, so that no other work is captured."""

    def __init__(self) -> None:
        self._handle: int | None = int(_call("cudaStreamCreateWithFlags", _NON_BLOCKING))

    def capture(self, enqueue: Callable[[int], object]) -> CudaGraph:
        """Captures the work that `enqueue` launches on the stream whose handle it gets; nothing runs.

        Only calls of this thread can invalidate the capture (capture mode "thread local").

        Raises:
            CudaGraphError: The capture failed, and has been ended.
        """
        cudart = _cudart()
        _call("cudaStreamBeginCapture", self._handle, cudart.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal)
        try:
            enqueue(self.handle)
        except BaseException as error:
            self._discard()
            if isinstance(error, VortaError):
                raise CudaGraphError(str(error)) from error
            raise
        graph = _call("cudaStreamEndCapture", self._handle)
        try:
            return CudaGraph(_call("cudaGraphInstantiate", graph, 0))
        finally:
            _call("cudaGraphDestroy", graph)

    @property
    def handle(self) -> int:
        """The handle of the stream, as TensorRT takes it."""
        assert self._handle is not None, "closed"
        return self._handle

    def close(self) -> None:
        """Destroys the stream. May be called twice."""
        if self._handle is not None:
            handle, self._handle = self._handle, None
            _call("cudaStreamDestroy", handle)

    def _discard(self) -> None:
        status, graph = _cudart().cudaStreamEndCapture(self._handle)
        if int(status) == _SUCCESS:
            _call("cudaGraphDestroy", graph)
        else:
            _cudart().cudaGetLastError()


def _cudart() -> Any:
    try:
        return importlib.import_module("cuda.bindings.runtime")
    except ImportError as error:
        raise CudaGraphError(
            f"CUDA graphs need cuda-python ({error}); install 12.9 or newer: pip install cuda-bindings"
        ) from error


def _call(name: str, *arguments: Any) -> Any:
    """Calls a function of the CUDA runtime and returns its result; raises CudaGraphError that names the call."""
    cudart = _cudart()
    status, *result = getattr(cudart, name)(*arguments)
    if int(status) != _SUCCESS:
        cudart.cudaGetLastError()  # clears the error, which the next check would report again
        reason = f"{name} failed: {getattr(status, 'name', status)}"
        raise CudaGraphError(reason + (_OLD_DRIVER if int(status) == _INSUFFICIENT_DRIVER else ""))
    return result[0] if result else None
