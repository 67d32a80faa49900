# SPDX-License-Identifier: Apache-2.0
"""Device buffers and a stream for one execution context: torch's where it has CUDA, cuda-python's otherwise."""

from __future__ import annotations

import importlib
import weakref
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from vorta_trt.model.precision import numpy_dtype, torch_dtype
from vorta_trt.runtime.device.cuda_runtime import CudaEvent, CudaRuntime, DeviceOutOfMemory
from vorta_trt.runtime.device.device_array import CUDA, LEGACY_STREAM, DeviceArray
from vorta_trt.runtime.tensors import AnyArray, ArrayKind, byte_size, to_numpy, to_torch

if TYPE_CHECKING:
    import torch

CLOSED = "the memory of this executor is closed; make a new Engine"
ALIGNMENT = 256  # bytes: what TensorRT asks of every tensor's address


class Block(Protocol):
    """A piece of device memory that stays until it is freed."""

    pointer: int
    size: int

    def free(self) -> None:
        """Gives the memory back. The caller has waited for what uses it. May be called twice."""
        ...


class DeviceMemory(Protocol):
    """Where the tensors of one execution context live, and the stream that it runs on.

    A run happens inside `stream()`, on the thread that entered it; what it returns is valid after it.
    """

    array_kind: ArrayKind
    device: int
    cuda: CudaRuntime

    def current(self) -> AbstractContextManager[None]:
        """Makes the GPU the current device of this thread, as TensorRT and the CUDA runtime want it."""
        ...

    def stream(self) -> AbstractContextManager[int]:
        """Gives the handle of the stream, ordered with the caller's."""
        ...

    def place(self, name: str, array: AnyArray) -> Any:
        """`array` on the device, contiguous and aligned; the very same memory where it already is that."""
        ...

    def empty(self, name: str, shape: Sequence[int], dtype: str) -> Any:
        """A fresh, uninitialised buffer for the caller of the engine."""
        ...

    def keep(self, name: str, shape: Sequence[int], dtype: str) -> Any:
        """An uninitialised buffer that this context keeps between runs."""
        ...

    def fill(self, buffer: Any, array: AnyArray) -> None:
        """Copies `array` into a kept buffer of its shape and type."""
        ...

    def copy(self, name: str, buffer: Any) -> Any:
        """A fresh buffer for the caller with the values of a kept one."""
        ...

    def pointer(self, buffer: Any) -> int:
        """The device address of a buffer."""
        ...

    def deliver(self, buffer: Any, on_gpu: bool) -> Any:
        """A buffer as the caller gets it: a tensor or array on the GPU, or an array of `array_kind` on the host."""
        ...

    def allocate(self, what: str, size: int) -> Block:
        """`size` bytes. DeviceOutOfMemory says what they were for."""
        ...

    def free_bytes(self) -> tuple[int, int]:
        """Free and total bytes of the GPU; what this library keeps without using it counts as free."""
        ...

    def release_unused(self) -> None:
        """Gives memory that this library keeps for later back to the driver, where TensorRT can have it."""
        ...

    def synchronize(self) -> None:
        """Waits for what runs on the stream."""
        ...

    def close(self) -> None:
        """Waits for what is running and gives the stream back. May be called twice."""
        ...


def device_memory(device: int) -> DeviceMemory:
    """The memory of GPU number `device`. VortaError with the remedy where cuda-python is not installed."""
    cuda = CudaRuntime.load(device)
    torch = importlib.import_module("torch")
    if torch.version.cuda is not None and torch.cuda.is_available():
        return TorchMemory(cuda)
    return CudaPythonMemory(cuda)


# --- torch -----------------------------------------------------------------------------------------------------------


class TorchMemory:
    """torch CUDA tensors from torch's own allocator, on a stream of torch's."""

    array_kind: ArrayKind = "torch"

    def __init__(self, cuda: CudaRuntime) -> None:
        import torch

        self.cuda = cuda
        self.device = cuda.device
        self._device = torch.device("cuda", cuda.device)
        self._stream: torch.cuda.Stream | None = torch.cuda.Stream(self._device)
        self._caller = torch.cuda.current_stream(self._device)

    @contextmanager
    def current(self) -> Iterator[None]:
        import torch

        with torch.cuda.device(self._device):
            yield

    @contextmanager
    def stream(self) -> Iterator[int]:
        import torch

        stream = self._stream
        if stream is None:
            raise RuntimeError(CLOSED)
        # TensorRT synchronises needlessly on the default stream, so it gets its own, ordered with the caller's.
        self._caller = torch.cuda.current_stream(self._device)
        stream.wait_stream(self._caller)
        try:
            with torch.cuda.stream(stream):
                yield stream.cuda_stream
        finally:
            self._caller.wait_stream(stream)

    def place(self, name: str, array: AnyArray) -> torch.Tensor:
        tensor = self._tensor(array)
        with self._memory_for(name, tensor.numel() * tensor.element_size()):
            tensor = tensor.to(self._device, non_blocking=_may_overlap(tensor)).contiguous()
            if tensor.data_ptr() % ALIGNMENT:  # a part of a larger tensor
                tensor = tensor.clone()
        if self._stream is not None:
            tensor.record_stream(self._stream)  # its memory is not reused before the run is over
        return tensor

    def empty(self, name: str, shape: Sequence[int], dtype: str) -> torch.Tensor:
        import torch

        with self._memory_for(name, byte_size(shape, dtype)):
            return torch.empty(tuple(shape), dtype=torch_dtype(dtype), device=self._device)

    def keep(self, name: str, shape: Sequence[int], dtype: str) -> torch.Tensor:
        import torch

        with torch.inference_mode(False):  # a tensor of inference mode can be filled in that mode alone
            return self.empty(name, shape, dtype)

    def fill(self, buffer: torch.Tensor, array: AnyArray) -> None:
        tensor = self._tensor(array)
        buffer.copy_(tensor, non_blocking=_may_overlap(tensor))
        if tensor.is_cuda and self._stream is not None:
            tensor.record_stream(self._stream)

    def copy(self, name: str, buffer: torch.Tensor) -> torch.Tensor:
        with self._memory_for(name, buffer.numel() * buffer.element_size()):
            return buffer.clone()

    def pointer(self, buffer: torch.Tensor) -> int:
        return buffer.data_ptr()

    def deliver(self, buffer: torch.Tensor, on_gpu: bool) -> torch.Tensor:
        if not on_gpu:
            return buffer.cpu()  # here, where no other call can overwrite it meanwhile
        buffer.record_stream(self._caller)  # who will read it
        return buffer

    def allocate(self, what: str, size: int) -> _TorchBlock:
        import torch

        with self.current(), self._memory_for(what, size):
            return _TorchBlock(torch.empty(size, dtype=torch.uint8, device=self._device))

    def free_bytes(self) -> tuple[int, int]:
        import torch

        with self.current():
            free, total = self.cuda.free_bytes()
        unused = torch.cuda.memory_reserved(self._device) - torch.cuda.memory_allocated(self._device)
        return free + unused, total

    def release_unused(self) -> None:
        import torch

        with self.current():
            torch.cuda.empty_cache()

    def synchronize(self) -> None:
        if self._stream is not None:
            self._stream.synchronize()

    def close(self) -> None:
        self.synchronize()
        self._stream = None

    def _tensor(self, array: AnyArray) -> torch.Tensor:
        import torch

        return torch.utils.dlpack.from_dlpack(array) if isinstance(array, DeviceArray) else to_torch(array)

    @contextmanager
    def _memory_for(self, what: str, size: int) -> Iterator[None]:
        import torch

        try:
            yield
        except torch.cuda.OutOfMemoryError as error:
            raise DeviceOutOfMemory(what, self.device, size, *self.free_bytes()) from error


def _may_overlap(tensor: torch.Tensor) -> bool:
    """Whether the host need not wait for a copy. It has to for pinned memory, which the caller may then write to;
    other host memory is copied aside before the call returns."""
    return tensor.is_cuda or not tensor.is_pinned()


class _TorchBlock:
    def __init__(self, tensor: torch.Tensor) -> None:
        self._tensor: torch.Tensor | None = tensor
        self.pointer, self.size = tensor.data_ptr(), tensor.numel()

    def free(self) -> None:
        if self._tensor is not None:
            import torch

            device, self._tensor = self._tensor.device, None
            with torch.cuda.device(device):
                torch.cuda.empty_cache()  # it is large, and TensorRT cannot use what torch keeps for later


# --- cuda-python -----------------------------------------------------------------------------------------------------


class CudaPythonMemory:
    """Plain CUDA buffers through cuda-python; NumPy arrays, and GPU arrays with `__dlpack__`, in and out."""

    array_kind: ArrayKind = "numpy"

    def __init__(self, cuda: CudaRuntime) -> None:
        self.cuda = cuda
        self.device = cuda.device
        self._temporary: list[_CudaBlock] = []  # freed with the run
        self._handle: int | None = None
        with self.current():
            self._handle = cuda.make_stream()

    @contextmanager
    def current(self) -> Iterator[None]:
        # Not set back: where the device before had no context yet, that would make one.
        self.cuda.call("cudaSetDevice", self.device)
        yield

    @contextmanager
    def stream(self) -> Iterator[int]:
        if self._handle is None:
            raise RuntimeError(CLOSED)
        with self.current():
            try:
                yield self._handle
            finally:
                self.synchronize()
                while self._temporary:
                    self._temporary.pop().free()

    def place(self, name: str, array: AnyArray) -> DeviceArray:
        if isinstance(array, DeviceArray):
            if array.device == (CUDA, self.device) and array.pointer % ALIGNMENT == 0:
                self._wait_for_default_stream()
                return array
            raise ValueError(
                f"{name}: lies at address {array.pointer:#x} of device {array.device}, and the engine reads aligned "
                f"({ALIGNMENT} bytes) memory of cuda:{self.device}; copy it there, or give a NumPy array"
            )
        host = to_numpy(array)
        buffer = self._array(name, host.shape, host.dtype.name, self._temporary)
        self.fill(buffer, host)
        return buffer

    def empty(self, name: str, shape: Sequence[int], dtype: str) -> DeviceArray:
        return self._array(name, shape, dtype)

    keep = empty

    def fill(self, buffer: DeviceArray, array: AnyArray) -> None:
        if isinstance(array, DeviceArray):
            self._wait_for_default_stream()
            self._copy_on_device(buffer, array)
            return
        host = np.ascontiguousarray(to_numpy(array))
        kind = self.cuda.module.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._copy(buffer.pointer, host.ctypes.data, host.nbytes, kind)
        self.synchronize()  # `host` may be a temporary

    def copy(self, name: str, buffer: DeviceArray) -> DeviceArray:
        made = self.empty(name, buffer.shape, buffer.dtype)
        self._copy_on_device(made, buffer)
        return made

    def pointer(self, buffer: DeviceArray) -> int:
        return buffer.pointer

    def deliver(self, buffer: DeviceArray, on_gpu: bool) -> Any:
        if on_gpu:
            return buffer
        host = np.empty(buffer.shape, numpy_dtype(buffer.dtype))
        kinds = self.cuda.module.cudaMemcpyKind
        self._copy(host.ctypes.data, buffer.pointer, host.nbytes, kinds.cudaMemcpyDeviceToHost)
        self.synchronize()
        return host

    def allocate(self, what: str, size: int) -> _CudaBlock:
        with self.current():
            try:
                return _CudaBlock(self.cuda, int(self.cuda.call("cudaMalloc", max(size, 1))), size)
            except DeviceOutOfMemory as error:
                raise DeviceOutOfMemory(what, self.device, size, *self.cuda.free_bytes()) from error

    def free_bytes(self) -> tuple[int, int]:
        with self.current():
            return self.cuda.free_bytes()

    def release_unused(self) -> None:
        pass  # it keeps nothing

    def synchronize(self) -> None:
        if self._handle is not None:
            self.cuda.call("cudaStreamSynchronize", self._handle)

    def close(self) -> None:
        if self._handle is not None:
            with self.current():
                self.synchronize()
                handle, self._handle = self._handle, None
                self.cuda.call("cudaStreamDestroy", handle)

    def _array(
        self, name: str, shape: Sequence[int], dtype: str, owners: list[_CudaBlock] | None = None
    ) -> DeviceArray:
        block = self.allocate(f"{name} of shape {tuple(shape)}", byte_size(shape, dtype))
        if owners is not None:
            owners.append(block)
        return DeviceArray(block.pointer, shape, dtype, (CUDA, self.device), block)

    def _wait_for_default_stream(self) -> None:
        """Behind which the libraries of given arrays have put their work (`DeviceArray.from_dlpack`)."""
        assert self._handle is not None
        given = CudaEvent(self.cuda)
        given.record(LEGACY_STREAM)
        given.hold_back(self._handle)
        given.close()

    def _copy_on_device(self, target: DeviceArray, source: DeviceArray) -> None:
        kind = self.cuda.module.cudaMemcpyKind.cudaMemcpyDeviceToDevice
        self._copy(target.pointer, source.pointer, byte_size(source.shape, source.dtype), kind)

    def _copy(self, target: int, source: int, size: int, kind: Any) -> None:
        self.cuda.call("cudaMemcpyAsync", target, source, size, kind, self._handle)


class _CudaBlock:
    """Memory of cudaMalloc; freed with the last array that lies in it. cudaFree waits for whatever uses it."""

    def __init__(self, cuda: CudaRuntime, pointer: int, size: int) -> None:
        self.pointer, self.size = pointer, size
        self._free = weakref.finalize(self, cuda.call, "cudaFree", pointer)
        self._free.atexit = False  # the driver frees everything then

    def free(self) -> None:
        self._free()
