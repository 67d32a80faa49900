# SPDX-License-Identifier: Apache-2.0
"""`DeviceScratch`: the memory that engines keep their activations in while they run, one block for any number of them.

An engine needs this memory only during a call. Engines that never run at the same time can therefore share it: the
block is as large as the largest need, not as the sum.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

from vorta_trt.runtime.device.cuda_runtime import CudaEvent, DeviceOutOfMemory
from vorta_trt.runtime.device.device_memory import Block, DeviceMemory


class DeviceScratch:
    """A block of device memory that grows to the largest need of the engines that share it.

        with DeviceScratch() as scratch:
            low, high = Engine("480p.bundle", scratch=scratch), Engine("720p.bundle", scratch=scratch)

    Engines that share it may be called from several threads: on the GPU each call waits until the one before has left
    the block. For calls that are to overlap, give each its own scratch (the default of `Engine`). The memory is taken
    at the first call, on the GPU of that engine; a growing block is never held beside the old one.

    Attributes:
        size: bytes held now.
    """

    def __init__(self) -> None:
        self.closed = False
        self._lock = threading.Lock()  # held while work is launched, not while it runs
        self._block: Block | None = None
        self._device: int | None = None
        self._left: CudaEvent | None = None  # when the last call has left the block

    @property
    def size(self) -> int:
        return 0 if self._block is None else self._block.size

    @contextmanager
    def lend(self, memory: DeviceMemory, stream: int, needed: int) -> Iterator[int]:
        """Gives the address of at least `needed` bytes to what is launched on `stream` inside the context.

        Raises: DeviceOutOfMemory; the block then has its old size. ValueError for an engine on another GPU.
        """
        with self._lock:
            if self.closed:
                raise RuntimeError("this DeviceScratch is closed; keep it open as long as its engines run")
            if self._device not in (None, memory.device):
                raise ValueError(
                    f"scratch: holds memory of cuda:{self._device}, and the engine runs on cuda:{memory.device}; make "
                    "a DeviceScratch per GPU"
                )
            self._device = memory.device
            if self._left is None:
                self._left = CudaEvent(memory.cuda)
            elif needed > self.size:
                self._left.synchronize()
            if needed > self.size:
                self._grow(memory, needed)
            self._left.hold_back(stream)
            try:
                yield 0 if self._block is None else self._block.pointer
            finally:
                self._left.record(stream)

    def close(self) -> None:
        """Waits for what runs in the block and frees it. May be called twice, and before its engines are closed."""
        with self._lock:
            self.closed = True
            if self._left is not None:
                self._left.synchronize()
                self._left.close()
                self._left = None
            self._free()

    def __enter__(self) -> DeviceScratch:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _grow(self, memory: DeviceMemory, needed: int) -> None:
        before = self.size
        self._free()
        try:
            self._block = memory.allocate("memory for activations (scratch)", needed)
        except DeviceOutOfMemory:
            if before:
                self._block = memory.allocate("memory for activations (scratch)", before)
            raise

    def _free(self) -> None:
        if self._block is not None:
            self._block.free()
            self._block = None
