# SPDX-License-Identifier: Apache-2.0
"""Device buffers and a stream for the TensorRT executor: torch where it has CUDA, cuda-python otherwise."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from vorta_trt.plugins.errors import VortaError
from vorta_trt.runtime.tensors import Array, ArrayKind, numpy_dtype, to_numpy, to_torch

if TYPE_CHECKING:
    import torch


class DeviceMemory(Protocol):
    """Where an engine's tensors live. A run happens inside `stream()`, and its results are valid after it."""

    array_kind: ArrayKind

    def stream(self) -> Any:
        """A context manager that gives the handle of a CUDA stream (an int)."""
        ...

    def upload(self, array: Array) -> Any:
        """`array` on the device, contiguous."""
        ...

    def empty(self, shape: Sequence[int], dtype: str) -> Any:
        """An uninitialised buffer on the device."""
        ...

    def pointer(self, buffer: Any) -> int:
        """The device address of a buffer."""
        ...

    def download(self, buffer: Any) -> Array:
        """The buffer as an array of `array_kind`."""
        ...

    def close(self) -> None:
        """Waits for what is running and gives the stream back. May be called twice."""
        ...


def device_memory(device: int) -> DeviceMemory:
    """The memory of GPU number `device`. VortaError with the remedy if neither torch nor cuda-python can reach it."""
    torch = importlib.import_module("torch")
    if torch.version.cuda is not None and torch.cuda.is_available():
        return TorchMemory(device)
    try:
        runtime = importlib.import_module("cuda.bindings.runtime")
    except ImportError as error:
        raise VortaError(
            f"device {device}: no way to its memory: torch {torch.__version__} has no usable CUDA, and cuda-python is "
            "not installed; install a CUDA build of torch, or: pip install cuda-python"
        ) from error
    return CudaPythonMemory(device, runtime)


class TorchMemory:
    """torch CUDA tensors: inputs on the GPU are used in place, outputs are tensors on the GPU."""

    array_kind: ArrayKind = "torch"

    def __init__(self, device: int) -> None:
        import torch

        self._device = torch.device("cuda", device)
        self._stream: torch.cuda.Stream | None = torch.cuda.Stream(self._device)
        self._caller = torch.cuda.current_stream(self._device)

    @contextmanager
    def stream(self) -> Iterator[int]:
        import torch

        stream = self._stream
        if stream is None:
            raise RuntimeError("the executor is closed; make a new Engine")
        # TensorRT synchronises needlessly on the default stream, so it gets its own, ordered with the caller's.
        self._caller = torch.cuda.current_stream(self._device)
        stream.wait_stream(self._caller)
        with torch.cuda.stream(stream):
            yield stream.cuda_stream
        self._caller.wait_stream(stream)

    def upload(self, array: Array) -> torch.Tensor:
        tensor = to_torch(array, self._device).contiguous()
        if self._stream is not None:
            tensor.record_stream(self._stream)  # its memory is not reused before the run is over
        return tensor

    def empty(self, shape: Sequence[int], dtype: str) -> torch.Tensor:
        import torch

        tensor = torch.empty(tuple(shape), dtype=getattr(torch, dtype), device=self._device)
        tensor.record_stream(self._caller)  # who will read it
        return tensor

    def pointer(self, buffer: torch.Tensor) -> int:
        return buffer.data_ptr()

    def download(self, buffer: torch.Tensor) -> Array:
        return buffer

    def close(self) -> None:
        if self._stream is not None:
            self._stream.synchronize()
            self._stream = None


@dataclass
class _Buffer:
    pointer: int
    shape: tuple[int, ...]
    dtype: str


@dataclass
class CudaPythonMemory:
    """Plain CUDA buffers through cuda-python; NumPy arrays in and out."""

    device: int
    cuda: Any  # cuda.bindings.runtime
    array_kind: ArrayKind = "numpy"
    _handle: Any = None
    _buffers: list[_Buffer] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._call("cudaSetDevice", self.device)
        self._handle = self._call("cudaStreamCreate")

    @contextmanager
    def stream(self) -> Iterator[int]:
        if self._handle is None:
            raise RuntimeError("the executor is closed; make a new Engine")
        self._call("cudaSetDevice", self.device)
        try:
            yield int(self._handle)
            self._call("cudaStreamSynchronize", self._handle)
        finally:
            while self._buffers:
                self._call("cudaFreeAsync", self._buffers.pop().pointer, self._handle)

    def upload(self, array: Array) -> _Buffer:
        host = np.ascontiguousarray(to_numpy(array))
        buffer = self.empty(host.shape, host.dtype.name)
        kind = self.cuda.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._call("cudaMemcpyAsync", buffer.pointer, host.ctypes.data, host.nbytes, kind, self._handle)
        self._call("cudaStreamSynchronize", self._handle)  # `host` may be a temporary
        return buffer

    def empty(self, shape: Sequence[int], dtype: str) -> _Buffer:
        size = int(np.prod(shape, dtype=np.int64)) * numpy_dtype(dtype).itemsize
        buffer = _Buffer(int(self._call("cudaMallocAsync", max(size, 1), self._handle)), tuple(shape), dtype)
        self._buffers.append(buffer)
        return buffer

    def pointer(self, buffer: _Buffer) -> int:
        return buffer.pointer

    def download(self, buffer: _Buffer) -> Array:
        host = np.empty(buffer.shape, numpy_dtype(buffer.dtype))
        kind = self.cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._call("cudaMemcpyAsync", host.ctypes.data, buffer.pointer, host.nbytes, kind, self._handle)
        self._call("cudaStreamSynchronize", self._handle)
        return host

    def close(self) -> None:
        if self._handle is not None:
            handle, self._handle = self._handle, None
            self._call("cudaStreamSynchronize", handle)
            self._call("cudaStreamDestroy", handle)

    def _call(self, name: str, *arguments: Any) -> Any:
        function: Callable[..., tuple[Any, ...]] = getattr(self.cuda, name)
        status, *result = function(*arguments)
        if int(status) != 0:
            raise VortaError(f"{name} on device {self.device} failed: {getattr(status, 'name', status)}")
        return result[0] if result else None
