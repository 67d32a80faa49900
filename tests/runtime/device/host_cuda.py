# SPDX-License-Identifier: Apache-2.0
"""A GPU simulated in Python and host memory: streams, memory, graphs, and the part of `torch.cuda` that engines use.

Work on a stream runs later, when something waits for it, and work on different streams runs in a random order unless
events order it: so a missing wait is found. Freed memory is poisoned as soon as torch's allocator might reuse it, and
must not be touched any more.

`HostCuda` is the GPU, with the functions of `cuda.bindings.runtime` that are called. `install` puts it in place of both
libraries: `HostTorch` is torch, except for streams, events and tensors on a GPU.
"""

from __future__ import annotations

import ctypes
import random
import sys
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from vorta_trt.runtime.device import device_memory
from vorta_trt.runtime.tensors import to_numpy

ALIGNMENT = 256
DEFAULT_STREAM = 1  # cudaStreamLegacy
CAPTURE_UNSUPPORTED, CAPTURE_INVALIDATED = 900, 901


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
    stream: int  # on which it was allocated, and can be reused once it is freed
    users: set[int] = field(default_factory=set)  # other streams that use it, named by `record_stream`


class HostCuda:
    """Device 0 (or `device`) with `total` bytes of memory."""

    cudaStreamCaptureMode = SimpleNamespace(
        cudaStreamCaptureModeGlobal=0, cudaStreamCaptureModeThreadLocal=1, cudaStreamCaptureModeRelaxed=2
    )

    def __init__(self, total: int = 1 << 30, device: int = 0) -> None:
        self.total, self.device = total, device
        self.blocks: dict[int, Block] = {}
        self.freed: dict[int, Block] = {}  # blocks that other streams may still use
        self.all_streams: dict[int, Stream] = {DEFAULT_STREAM: Stream()}
        self.events: set[int] = set()
        self.graphs: dict[int, list[Callable[[], None]]] = {}
        self.executables: dict[int, list[Callable[[], None]]] = {}
        self.running: dict[int, int] = {}  # number of unfinished launches, by executable graph
        self.fail: dict[str, int] = {}  # name of a call -> the status it returns
        self.launches = 0
        self.captures = 0
        self.peak = 0
        self.thread = threading.local()  # device: the current one; stream: the handle of the current one
        self._handles = iter(range(0x1000, 1 << 30))
        self._lock = threading.RLock()
        self._random = random.Random(0)

    # --- For the tests -----------------------------------------------------------------------------------------------

    @property
    def streams(self) -> dict[int, Stream]:
        """The streams that were created, without the default one."""
        return {handle: stream for handle, stream in self.all_streams.items() if handle != DEFAULT_STREAM}

    @property
    def used(self) -> int:
        return sum(block.size for block in self.blocks.values())

    def bytes_at(self, address: int, size: int) -> Any:
        """The memory at an address, which must be allocated, or freed but not reused yet."""
        with self._lock:
            for start, block in (*self.blocks.items(), *self.freed.items()):
                if start <= address and address + size <= start + block.size:
                    return (ctypes.c_char * size).from_address(address)
        raise AssertionError(f"{size} bytes at {address:#x} are not allocated")

    def put(self, stream: int, run: Callable[[], None], ready: Callable[[], bool] = lambda: True) -> None:
        """Puts work on a stream, or into the graph into which the stream is captured, as a kernel launch does."""
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

    def current_device(self) -> int:
        device: int = getattr(self.thread, "device", 0)
        return device

    def current_stream(self) -> int:
        stream: int = getattr(self.thread, "stream", DEFAULT_STREAM)
        return stream

    def check_device(self) -> None:
        assert self.current_device() == self.device, "another device is current on this thread"

    def drain(self, stream: int | None = None) -> None:
        """Runs pending work, with streams interleaved at random, until `stream` (None: every stream) is done."""
        with self._lock:
            while any(each.pending for handle, each in self.all_streams.items() if stream in (None, handle)):
                able = [each for each in self.all_streams.values() if each.pending and each.pending[0][0]()]
                assert able, "every stream waits for another one"
                chosen = self._random.choice(able)
                _, run = chosen.pending.popleft()
                run()
                chosen.done += 1

    def until(self, stream: int) -> Callable[[], bool]:
        """A function that tells whether the work that is on a stream now has run."""
        assert not self.is_capturing(stream)
        issued = self.all_streams[stream].issued
        return lambda: stream not in self.all_streams or self.all_streams[stream].done >= issued

    def new_stream(self) -> int:
        handle = next(self._handles)
        self.all_streams[handle] = Stream()
        return handle

    def drop_stream(self, handle: int) -> None:
        with self._lock:
            self.drain(handle)
            del self.all_streams[handle]

    def new_event(self) -> int:
        handle = next(self._handles)
        self.events.add(handle)
        return handle

    # --- Memory ------------------------------------------------------------------------------------------------------

    def allocate(self, size: int) -> int | None:
        """Allocates poisoned memory; returns its address, or None if there is too little or a capture forbids it."""
        with self._lock:
            for stream in self.all_streams.values():
                if stream.capturing_thread == threading.get_ident():
                    stream.spoilt = True
                    return None
            if self.used + size > self.total:
                return None
            memory = (ctypes.c_char * (size + ALIGNMENT))()
            address = -(-ctypes.addressof(memory) // ALIGNMENT) * ALIGNMENT
            ctypes.memset(address, 77, size)
            self.blocks[address] = Block(memory, size, self.current_stream())
            self.peak = max(self.peak, self.used)
            return address

    def release(self, address: int) -> None:
        """Frees memory as torch does: it is reused in the order of its stream, after the other streams that use it."""
        with self._lock:
            block = self.blocks.pop(address)
            self.freed[address] = block
            users = [self.until(stream) for stream in block.users if stream in self.all_streams]

            def use_again() -> None:
                del self.freed[address]
                ctypes.memset(address, 0xAB, block.size)

            if block.stream in self.all_streams:
                self.put(block.stream, use_again, lambda: all(done() for done in users))
            else:
                use_again()

    def free_at_once(self, address: int) -> None:
        """Frees memory as cudaFree does, which waits for all running work."""
        with self._lock:
            self.drain()
            self.release(address)
            self.drain()

    # --- The runtime -------------------------------------------------------------------------------------------------

    def __getattribute__(self, name: str) -> Any:
        found = object.__getattribute__(self, name)
        if name.startswith("cuda") and callable(found) and (status := self.fail.get(name)):
            return lambda *arguments: (status, None)
        return found

    def cudaGetLastError(self) -> tuple[int]:
        return (0,)

    def cudaStreamCreateWithFlags(self, flags: int) -> tuple[int, int]:
        self.check_device()
        assert flags == 1, "a stream that is ordered with the default stream"
        return 0, self.new_stream()

    def cudaStreamDestroy(self, stream: int) -> tuple[int]:
        self.drop_stream(stream)
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


# --- torch -----------------------------------------------------------------------------------------------------------


class HostTensor(torch.Tensor):
    """A tensor in the memory of a `HostCuda`: copies go to its current stream, and copies to the host wait."""

    on: HostCuda
    __torch_function__ = torch._C._disabled_torch_function_impl  # results of operations are plain tensors

    @staticmethod
    def make(cuda: HostCuda, shape: tuple[int, ...], dtype: torch.dtype) -> HostTensor:
        size = int(np.prod(shape)) * dtype.itemsize
        if size == 0:
            tensor = torch.empty(shape, dtype=dtype).as_subclass(HostTensor)
        elif (address := cuda.allocate(size)) is None:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        else:
            memory = np.frombuffer(cuda.bytes_at(address, size), np.uint8)  # lives as long as torch's storage
            weakref.finalize(memory, cuda.release, address).atexit = False
            tensor = torch.from_numpy(memory).view(dtype).reshape(shape).as_subclass(HostTensor)
        tensor.on = cuda
        return tensor

    @property
    def is_cuda(self) -> bool:  # type: ignore[override]
        return True

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return torch.device("cuda", self.on.device)

    def copy_(self, source: torch.Tensor, non_blocking: bool = False) -> HostTensor:  # type: ignore[override]
        assert (source.shape, source.dtype) == (self.shape, self.dtype)
        target, size, stream = self.data_ptr(), self.numel() * self.element_size(), self.on.current_stream()
        cuda, start = self.on, source.data_ptr()
        if isinstance(source, HostTensor):
            assert source.is_contiguous()
            if size:
                cuda.put(stream, lambda: _move(cuda.bytes_at(target, size), cuda.bytes_at(start, size), size))
        elif size:
            aside = to_numpy(source).tobytes()
            cuda.put(stream, lambda: _move(cuda.bytes_at(target, size), aside, size))
        if not non_blocking:
            cuda.drain(stream)
        return self

    def cpu(self) -> torch.Tensor:  # type: ignore[override]
        self.on.drain(self.on.current_stream())
        return torch.Tensor.clone(self)

    def to(self, device: Any) -> HostTensor:  # type: ignore[override]
        assert torch.device(device) == self.device
        return self

    def record_stream(self, stream: HostStream) -> None:  # type: ignore[override]
        for start, block in self.on.blocks.items():
            if start <= self.data_ptr() < start + block.size:
                block.users.add(stream.cuda_stream)


def _move(target: Any, source: Any, size: int) -> None:
    ctypes.memmove(target, source, size)


class HostEvent:
    def __init__(self, cuda: HostCuda) -> None:
        self.on = cuda
        self.reached: Callable[[], bool] = lambda: True
        self.stream: int | None = None
        weakref.finalize(self, cuda.events.discard, cuda.new_event()).atexit = False

    def synchronize(self) -> None:
        if self.stream in self.on.all_streams:
            self.on.drain(self.stream)


class HostStream:
    """A new stream, or the one with a handle."""

    def __init__(self, cuda: HostCuda, handle: int | None = None) -> None:
        self.on = cuda
        self.cuda_stream = cuda.new_stream() if handle is None else handle
        if handle is None:
            weakref.finalize(self, cuda.drop_stream, self.cuda_stream).atexit = False

    def wait_stream(self, other: HostStream) -> None:
        self.on.put(self.cuda_stream, lambda: None, self.on.until(other.cuda_stream))

    def wait_event(self, event: HostEvent) -> None:
        self.on.put(self.cuda_stream, lambda: None, event.reached)

    def record_event(self, event: HostEvent | None = None) -> HostEvent:
        event = HostEvent(self.on) if event is None else event
        event.stream, event.reached = self.cuda_stream, self.on.until(self.cuda_stream)
        return event

    def synchronize(self) -> None:
        assert not self.on.is_capturing(self.cuda_stream)
        self.on.drain(self.cuda_stream)


class HostTorch:
    """A stand-in for torch with a `HostCuda` as its only GPU."""

    def __init__(self, cuda: HostCuda) -> None:
        self.version = SimpleNamespace(cuda="13.0")
        self.on = cuda
        self.cuda = SimpleNamespace(
            OutOfMemoryError=torch.OutOfMemoryError,
            Stream=lambda device: HostStream(cuda),
            current_stream=lambda device: HostStream(cuda, cuda.current_stream()),
            device=lambda device: self._with(device=device.index),
            device_count=lambda: cuda.device + 1,
            empty_cache=cuda.check_device,
            is_available=lambda: True,
            mem_get_info=lambda device: (cuda.total - cuda.used, cuda.total),
            memory_allocated=lambda device: cuda.used,
            memory_reserved=lambda device: cuda.used,
            stream=lambda stream: self._with(device=cuda.device, stream=stream.cuda_stream),
        )

    def empty(self, shape: tuple[int, ...], *, dtype: torch.dtype, device: torch.device) -> HostTensor:
        assert device == torch.device("cuda", self.on.device)
        return HostTensor.make(self.on, shape, dtype)

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)

    @contextmanager
    def _with(self, **current: int) -> Iterator[None]:
        before = {"device": self.on.current_device(), "stream": self.on.current_stream()}
        vars(self.on.thread).update(current)
        try:
            yield
        finally:
            vars(self.on.thread).update(before)


def install(monkeypatch: pytest.MonkeyPatch, cuda: HostCuda) -> HostCuda:
    """Puts `cuda` in the place of torch's CUDA and of cuda-python, for this package alone."""
    monkeypatch.setattr(device_memory, "torch", HostTorch(cuda))
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", cuda)  # type: ignore[arg-type]
    return cuda


def on_gpu(cuda: HostCuda, array: Any) -> HostTensor:
    """A tensor on the GPU, into which the default stream copies the values of a NumPy array."""
    source = torch.from_numpy(np.ascontiguousarray(array))
    return HostTensor.make(cuda, tuple(source.shape), source.dtype).copy_(source, non_blocking=True)
