# SPDX-License-Identifier: Apache-2.0
"""The GPU tensors and the stream of one execution context: torch's allocator, streams and events."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager

import torch

from vorta_trt.model.precision import torch_dtype
from vorta_trt.plugins.errors import VortaError
from vorta_trt.runtime.tensors import Array, byte_size, to_torch

CLOSED = "the memory of this executor is closed; make a new Engine"
ALIGNMENT = 256  # bytes; TensorRT requires it of every tensor's address


class DeviceOutOfMemory(VortaError):
    """The GPU has too little free memory.

    Attributes:
        needed: Bytes that were asked for, or None where only TensorRT knows.
        free: Bytes that were free at that moment.
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


class DeviceMemory:
    """Allocates tensors on one GPU, and owns a stream.

    A run happens inside `stream()`, on the thread that entered it. Its outputs stay valid after the block.

    Args:
        device: Number of the GPU.

    Raises:
        VortaError: This torch has no CUDA, or finds no GPU of that number.
    """

    def __init__(self, device: int) -> None:
        check_torch(device)
        self.device = device
        self._device = torch.device("cuda", device)
        # TensorRT synchronises needlessly on the default stream, so it gets a separate one, ordered with the caller's.
        self._stream: torch.cuda.Stream | None = torch.cuda.Stream(self._device)
        self._caller = torch.cuda.current_stream(self._device)

    def current(self) -> AbstractContextManager[None]:
        """Makes the GPU the current device of this thread, as TensorRT and the CUDA runtime require."""
        return torch.cuda.device(self._device)

    @contextmanager
    def stream(self) -> Iterator[torch.cuda.Stream]:
        """Makes the stream current. It waits for the caller's stream, which waits for it after the block."""
        stream = self._stream
        if stream is None:
            raise RuntimeError(CLOSED)
        self._caller = torch.cuda.current_stream(self._device)
        stream.wait_stream(self._caller)
        try:
            with torch.cuda.stream(stream):
                yield stream
        finally:
            self._caller.wait_stream(stream)

    def place(self, name: str, array: Array) -> torch.Tensor:
        """Returns `array` on the device, contiguous and aligned; without a copy where it already is."""
        tensor = to_torch(array)
        here = tensor.device == self._device
        if here and tensor.is_contiguous() and tensor.data_ptr() % ALIGNMENT == 0:
            self._reads(tensor)
            return tensor
        placed = self._empty(name, tensor.shape, tensor.dtype)
        self.fill(placed, tensor)
        return placed

    def empty(self, name: str, shape: Sequence[int], dtype: str) -> torch.Tensor:
        """Makes an uninitialised tensor for the caller of the engine."""
        return self._empty(name, shape, torch_dtype(dtype))

    def keep(self, name: str, shape: Sequence[int], dtype: str) -> torch.Tensor:
        """Makes an uninitialised tensor that this context keeps between runs."""
        with torch.inference_mode(False):  # a tensor made in inference mode can only be written in that mode
            return self.empty(name, shape, dtype)

    def fill(self, buffer: torch.Tensor, array: Array) -> None:
        """Copies `array` into a buffer of the same shape and type."""
        tensor = to_torch(array)
        # Copies from pinned memory block the host, since the caller may write to that memory afterwards. Other host
        # memory is staged first.
        buffer.copy_(tensor, non_blocking=tensor.is_cuda or not tensor.is_pinned())
        self._reads(tensor)

    def copy(self, name: str, buffer: torch.Tensor) -> torch.Tensor:
        """Makes a tensor for the caller that has the values of a kept buffer."""
        made = self._empty(name, buffer.shape, buffer.dtype)
        made.copy_(buffer, non_blocking=True)
        return made

    def deliver(self, buffer: torch.Tensor, on_gpu: bool) -> torch.Tensor:
        """Hands an output to the caller, on the GPU or on the host."""
        if not on_gpu:
            return buffer.cpu()  # copied under the executor's lock, so that no other call overwrites it
        buffer.record_stream(self._caller)  # the caller's stream will read it
        return buffer

    def allocate(self, what: str, size: int) -> torch.Tensor:
        """Makes a block of `size` bytes.

        Raises:
            DeviceOutOfMemory: The GPU has too little free memory; the message names `what`.
        """
        with self.current():
            return self._empty(what, (size,), torch.uint8)

    def free_bytes(self) -> tuple[int, int]:
        """Free and total bytes of the GPU; memory that torch's allocator caches counts as free."""
        free, total = torch.cuda.mem_get_info(self._device)
        unused = torch.cuda.memory_reserved(self._device) - torch.cuda.memory_allocated(self._device)
        return free + unused, total

    def release_unused(self) -> None:
        """Returns memory that torch's allocator caches to the driver, so that TensorRT can use it."""
        with self.current():
            torch.cuda.empty_cache()

    def synchronize(self) -> None:
        """Waits until all work on the stream is done."""
        if self._stream is not None:
            self._stream.synchronize()

    def close(self) -> None:
        """Waits until all work on the stream is done, and releases the stream. May be called twice."""
        self.synchronize()
        self._stream = None

    def _reads(self, tensor: torch.Tensor) -> None:
        """Keeps torch from reusing the memory of a caller's tensor before the stream is done with it."""
        if tensor.device == self._device and self._stream is not None:
            tensor.record_stream(self._stream)

    def _empty(self, what: str, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        try:
            return torch.empty(tuple(shape), dtype=dtype, device=self._device)
        except torch.cuda.OutOfMemoryError as error:
            size = byte_size(shape, str(dtype).removeprefix("torch."))
            raise DeviceOutOfMemory(what, self.device, size, *self.free_bytes()) from error


def check_torch(device: int) -> None:
    """Raises VortaError unless this torch can put tensors on GPU number `device`; it says what to install."""
    version = torch.__version__
    if torch.version.cuda is None:
        raise VortaError(
            f"device {device}: engines on a GPU run in torch's memory and streams, and torch {version} is a build "
            "without CUDA; install one with CUDA, as PyPI has for Linux: pip install --force-reinstall "
            f"torch=={version.partition('+')[0]}"
        )
    if (count := torch.cuda.device_count() if torch.cuda.is_available() else 0) <= device:
        raise VortaError(
            f"device {device}: torch {version} of CUDA {torch.version.cuda} finds {count} GPU(s); compare that version "
            "with the driver's in nvidia-smi, and look at CUDA_VISIBLE_DEVICES"
        )
