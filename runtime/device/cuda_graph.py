# SPDX-License-Identifier: Apache-2.0
"""CUDA graphs of what TensorRT launches, through cuda-python, on streams that torch made.

`torch.cuda.CUDAGraph` is not used: a capture that TensorRT or CUDA refuses, after which an engine here runs without a
graph, leaves torch's allocator believing that it still goes on, and it frees nothing any more that crossed streams. And
a stream of `torch.cuda.Stream` is one of 32 that everybody in the process shares: what another thread puts there during
a capture would become a part of the graph.
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
    """A CUDA graph could not be made or launched; of a failed capture nothing has run, and the stream is usable."""


class CudaGraph:
    """An executable graph. Close it only when none of its launches is running any more."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle

    def launch(self, stream: int) -> None:
        """Puts the graph's work on the stream of that handle."""
        _call("cudaGraphLaunch", self._handle, stream)

    def close(self) -> None:
        """Frees the graph. May be called twice."""
        if self._handle is not None:
            handle, self._handle = self._handle, None
            _call("cudaGraphExecDestroy", handle)


class CaptureStream:
    """A stream of the current device for captures alone: nobody else's work can become a part of a graph."""

    def __init__(self) -> None:
        self._handle: int | None = int(_call("cudaStreamCreateWithFlags", _NON_BLOCKING))

    def capture(self, enqueue: Callable[[int], object]) -> CudaGraph:
        """Makes a graph of the work that `enqueue` would put on the stream whose handle it is given; nothing runs.

        Only this thread's calls can spoil the capture (capture mode "thread local").

        Raises:
            CudaGraphError: It failed, and has been ended.
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
        """The stream, as TensorRT takes it."""
        assert self._handle is not None, "closed"
        return self._handle

    def close(self) -> None:
        """Gives the stream back. May be called twice."""
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
    """The result of a function of the CUDA runtime; CudaGraphError names the call."""
    cudart = _cudart()
    status, *result = getattr(cudart, name)(*arguments)
    if int(status) != _SUCCESS:
        cudart.cudaGetLastError()  # or the next call that checks for errors reports this one again
        reason = f"{name} failed: {getattr(status, 'name', status)}"
        raise CudaGraphError(reason + (_OLD_DRIVER if int(status) == _INSUFFICIENT_DRIVER else ""))
    return result[0] if result else None
