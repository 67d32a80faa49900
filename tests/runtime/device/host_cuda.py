# SPDX-License-Identifier: Apache-2.0
"""A CUDA runtime made of Python and host memory, under the names of `cuda.bindings.runtime`.

What is put on a stream runs later, when somebody waits for it, and what lies on different streams runs in a random
order unless events say otherwise: a missing wait shows. Freed memory is poisoned, and may not be touched any more.
"""

from __future__ import annotations

import ctypes
import random
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

ALIGNMENT = 256
DEFAULT_STREAM = 1  # cudaStreamLegacy
OUT_OF_MEMORY, CAPTURE_UNSUPPORTED, CAPTURE_INVALIDATED = 2, 900, 901


@dataclass
class Stream:
    pending: deque[tuple[Callable[[], bool], Callable[[], None]]] = field(default_factory=deque)  # (is ready, run)
    issued: int = 0
    done: int = 0
    capture: list[Callable[[], None]] | None = None
    capturing_thread: int | None = None
    spoilt: bool = False


@dataclass
class Block:
    memory: Any
    size: int


class HostCuda:
    """Device 0 (or `device`) with `total` bytes of memory."""

    cudaMemcpyKind = SimpleNamespace(cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2, cudaMemcpyDeviceToDevice=3)
    cudaStreamCaptureMode = SimpleNamespace(
        cudaStreamCaptureModeGlobal=0, cudaStreamCaptureModeThreadLocal=1, cudaStreamCaptureModeRelaxed=2
    )

    def __init__(self, total: int = 1 << 30, device: int = 0) -> None:
        self.total, self.device = total, device
        self.blocks: dict[int, Block] = {}
        self.all_streams: dict[int, Stream] = {DEFAULT_STREAM: Stream()}
        self.events: dict[int, tuple[int, int] | None] = {}
        self.graphs: dict[int, list[Callable[[], None]]] = {}
        self.executables: dict[int, list[Callable[[], None]]] = {}
        self.running: dict[int, int] = {}  # launches of an executable graph that have not ended
        self.fail: dict[str, int] = {}  # name of a call -> the status it returns
        self.launches = 0
        self.captures = 0
        self.peak = 0
        self._current = threading.local()
        self._handles = iter(range(0x1000, 1 << 30))
        self._lock = threading.RLock()
        self._random = random.Random(0)

    # --- For the tests -----------------------------------------------------------------------------------------------

    @property
    def streams(self) -> dict[int, Stream]:
        """Those that somebody has made."""
        return {handle: stream for handle, stream in self.all_streams.items() if handle != DEFAULT_STREAM}

    @property
    def used(self) -> int:
        return sum(block.size for block in self.blocks.values())

    def bytes_at(self, address: int, size: int) -> Any:
        """The memory there, which must be allocated."""
        for start, block in self.blocks.items():
            if start <= address and address + size <= start + block.size:
                return (ctypes.c_char * size).from_address(address)
        raise AssertionError(f"{size} bytes at {address:#x} are not allocated")

    def put(self, stream: int, run: Callable[[], None], ready: Callable[[], bool] = lambda: True) -> None:
        """What a kernel launch does: puts work on a stream, or into the graph that the stream is captured into."""
        with self._lock:
            into = self.all_streams[stream]
            if into.capture is not None:
                into.capture.append(run)
                return
            into.issued += 1
            into.pending.append((ready, run))

    def is_capturing(self, stream: int) -> bool:
        return self.all_streams[stream].capture is not None

    def spoil(self, stream: int) -> None:
        self.all_streams[stream].spoilt = True

    def check_device(self) -> None:
        assert getattr(self._current, "device", 0) == self.device, "another device is current on this thread"

    def drain(self, stream: int | None = None) -> None:
        """Runs what is pending, streams interleaved at random, until `stream` (None: every stream) is done."""
        with self._lock:
            while any(each.pending for handle, each in self.all_streams.items() if stream in (None, handle)):
                able = [each for each in self.all_streams.values() if each.pending and each.pending[0][0]()]
                assert able, "every stream waits for another one"
                chosen = self._random.choice(able)
                _, run = chosen.pending.popleft()
                run()
                chosen.done += 1

    def _unsafe(self) -> int:
        """The status of a call that a thread must not make while it captures."""
        for stream in self.all_streams.values():
            if stream.capturing_thread == threading.get_ident():
                stream.spoilt = True
                return CAPTURE_UNSUPPORTED
        return 0

    # --- The runtime -------------------------------------------------------------------------------------------------

    def __getattribute__(self, name: str) -> Any:
        found = object.__getattribute__(self, name)
        if name.startswith("cuda") and callable(found) and (status := self.fail.get(name)):
            return lambda *arguments: (status, None)
        return found

    def cudaGetLastError(self) -> tuple[int]:
        return (0,)

    def cudaSetDevice(self, device: int) -> tuple[int]:
        self._current.device = device
        return (0 if device == self.device else 101,)

    def cudaMemGetInfo(self) -> tuple[int, int, int]:
        self.check_device()
        return 0, self.total - self.used, self.total

    def cudaMalloc(self, size: int) -> tuple[int, int | None]:
        self.check_device()
        if status := self._unsafe():
            return status, None
        return self.allocate(size)

    def allocate(self, size: int) -> tuple[int, int | None]:
        with self._lock:
            if self.used + size > self.total:
                return OUT_OF_MEMORY, None
            memory = (ctypes.c_char * (size + ALIGNMENT))()
            address = -(-ctypes.addressof(memory) // ALIGNMENT) * ALIGNMENT
            ctypes.memset(address, 77, size)
            self.blocks[address] = Block(memory, size)
            self.peak = max(self.peak, self.used)
            return 0, address

    def cudaFree(self, address: int) -> tuple[int]:
        if status := self._unsafe():
            return (status,)
        with self._lock:
            self.drain()
            block = self.blocks.pop(address)
            ctypes.memset(address, 0xAB, block.size)
        return (0,)

    def cudaMemcpyAsync(self, target: int, source: int, size: int, kind: int, stream: int) -> tuple[int]:
        def run() -> None:
            if size and kind != 2:
                self.bytes_at(target, size)
            if size and kind != 1:
                self.bytes_at(source, size)
            ctypes.memmove(target, source, size)

        self.put(stream, run)
        return (0,)

    def cudaStreamCreateWithFlags(self, flags: int) -> tuple[int, int]:
        self.check_device()
        assert flags == 1, "a stream that is ordered with the default stream"
        handle = next(self._handles)
        self.all_streams[handle] = Stream()
        return 0, handle

    def cudaStreamDestroy(self, stream: int) -> tuple[int]:
        self.drain(stream)
        del self.all_streams[stream]
        return (0,)

    def cudaStreamSynchronize(self, stream: int) -> tuple[int]:
        if self.is_capturing(stream):
            self.spoil(stream)
            return (CAPTURE_UNSUPPORTED,)
        self.drain(stream)
        return (0,)

    def cudaEventCreateWithFlags(self, flags: int) -> tuple[int, int]:
        self.check_device()
        handle = next(self._handles)
        self.events[handle] = None
        return 0, handle

    def cudaEventDestroy(self, event: int) -> tuple[int]:
        del self.events[event]
        return (0,)

    def cudaEventRecord(self, event: int, stream: int) -> tuple[int]:
        with self._lock:
            assert not self.is_capturing(stream)
            self.events[event] = (stream, self.all_streams[stream].issued)
        return (0,)

    def cudaStreamWaitEvent(self, stream: int, event: int, flags: int) -> tuple[int]:
        with self._lock:
            if (recorded := self.events[event]) is not None:
                source, count = recorded
                self.put(
                    stream,
                    lambda: None,
                    lambda: source not in self.all_streams or self.all_streams[source].done >= count,
                )
        return (0,)

    def cudaEventSynchronize(self, event: int) -> tuple[int]:
        if (recorded := self.events[event]) is not None and recorded[0] in self.all_streams:
            self.drain(recorded[0])
        return (0,)

    def cudaStreamBeginCapture(self, stream: int, mode: int) -> tuple[int]:
        assert mode == 1, "other threads' calls would spoil the capture"
        into = self.all_streams[stream]
        into.capture, into.capturing_thread, into.spoilt = [], threading.get_ident(), False
        return (0,)

    def cudaStreamEndCapture(self, stream: int) -> tuple[int, int | None]:
        into = self.all_streams[stream]
        assert into.capture is not None and into.capturing_thread == threading.get_ident()
        work, into.capture, into.capturing_thread = into.capture, None, None
        if into.spoilt:
            return CAPTURE_INVALIDATED, None
        handle = next(self._handles)
        self.graphs[handle] = work
        self.captures += 1
        return 0, handle

    def cudaGraphInstantiate(self, graph: int, flags: int) -> tuple[int, int]:
        handle = next(self._handles)
        self.executables[handle] = self.graphs[graph]
        return 0, handle

    def cudaGraphDestroy(self, graph: int) -> tuple[int]:
        del self.graphs[graph]
        return (0,)

    def cudaGraphLaunch(self, executable: int, stream: int) -> tuple[int]:
        with self._lock:
            self.launches += 1
            self.running[executable] = self.running.get(executable, 0) + 1
            for run in self.executables[executable]:
                self.put(stream, run)
            self.put(stream, lambda: self.running.update({executable: self.running[executable] - 1}))
        return (0,)

    def cudaGraphExecDestroy(self, executable: int) -> tuple[int]:
        assert not self.running.pop(executable, 0), "a graph is destroyed while it may be running"
        del self.executables[executable]
        return (0,)
