# SPDX-License-Identifier: Apache-2.0
"""`DeviceScratch`: one block of GPU memory for the activations of any number of engines.

An engine needs this memory only during a call. So engines that never run at the same time can share it: the block is as
large as the largest need, not as the sum of all needs.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING

from vorta_trt.plugins.errors import VortaError

if TYPE_CHECKING:
    import torch

    from vorta_trt.runtime.device.device_memory import DeviceMemory

WHAT = "memory for activations (scratch)"


class DeviceScratch:
    """A block of device memory that grows to the largest need of the engines that share it.

        with DeviceScratch() as scratch:
            low, high = Engine("480p.bundle", scratch=scratch), Engine("720p.bundle", scratch=scratch)

    Engines that share it may be called from several threads; on the GPU each call waits until the previous call is done
    with the block. For calls that are to overlap, give each engine its own scratch (the default of `Engine`). The
    memory is allocated at the first call, on the GPU of that engine. To grow, the old block is freed before the new one
    is allocated.
    """

    def __init__(self) -> None:
        self.closed = False
        self._lock = threading.Lock()  # held while work is launched, not while it runs
        self._block: torch.Tensor | None = None
        self._memory: DeviceMemory | None = None  # that of the last engine, for its GPU
        self._left: torch.cuda.Event | None = None  # recorded after the last call that used the block

    @property
    def size(self) -> int:
        """Bytes of the block now."""
        return 0 if self._block is None else self._block.numel()

    @contextmanager
    def lend(self, memory: DeviceMemory, stream: torch.cuda.Stream, needed: int) -> Iterator[int]:
        """Yields the address of at least `needed` bytes, for work that is launched on `stream` inside the block.

        Raises:
            DeviceOutOfMemory: The block cannot grow; it then has its old size.
            RuntimeError: The scratch is closed.
            ValueError: The engine is on another GPU.
        """
        with self._lock:
            if self.closed:
                raise RuntimeError("this DeviceScratch is closed; keep it open as long as its engines run")
            if self._memory is not None and self._memory.device != memory.device:
                raise ValueError(
                    f"scratch: holds memory of cuda:{self._memory.device}, and the engine runs on "
                    f"cuda:{memory.device}; make a DeviceScratch per GPU"
                )
            self._memory = memory
            if needed > self.size:
                self._grow(memory, needed)
            if self._left is not None:
                stream.wait_event(self._left)
            try:
                yield 0 if self._block is None else self._block.data_ptr()
            finally:
                self._left = stream.record_event(self._left)

    def close(self) -> None:
        """Waits for work that uses the block, and frees it. May be called twice, and before its engines are closed."""
        with self._lock:
            self.closed = True
            self._free()
            self._left = None

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
            self._block = memory.allocate(WHAT, needed)
        except VortaError:
            if before:
                self._block = memory.allocate(WHAT, before)
            raise

    def _free(self) -> None:
        if self._left is not None:
            self._left.synchronize()
        if self._block is not None and self._memory is not None:
            self._block = None
            self._memory.release_unused()  # the block is large, and TensorRT cannot use torch's cached memory
