# SPDX-License-Identifier: Apache-2.0
"""Tensors and streams of an engine: on a GPU made of host memory, and on a real one."""

from __future__ import annotations

import gc
import inspect
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from vorta_trt.model.precision import numpy_dtype, torch_dtype
from vorta_trt.plugins.errors import VortaError
from vorta_trt.runtime.device import cuda_graph, device_memory
from vorta_trt.runtime.device.cuda_graph import CaptureStream, CudaGraphError
from vorta_trt.runtime.device.device_memory import ALIGNMENT, DeviceMemory, DeviceOutOfMemory
from vorta_trt.runtime.tensors import to_numpy

from .host_cuda import DEFAULT_STREAM, HostCuda, HostTorch, install


@pytest.mark.parametrize("dtype", ["float32", "float16", "int32", "bfloat16"])
@pytest.mark.parametrize("shape", [(3, 5), (1,), (0, 4)])
def test_a_round_trip(monkeypatch: pytest.MonkeyPatch, dtype: str, shape: tuple[int, ...], seed: int) -> None:
    cuda = install(monkeypatch, HostCuda())
    memory = DeviceMemory(0)
    array = (
        np.random.default_rng(seed).integers(-9, 9, (*shape, 2)).astype(numpy_dtype(dtype))[..., 0]
    )  # not contiguous
    with memory.stream() as stream:
        assert stream.cuda_stream in cuda.streams
        returned = memory.deliver(memory.place("latents", array), on_gpu=False)
    assert not cuda.blocks  # freed with the run
    assert returned.dtype == torch_dtype(dtype)
    np.testing.assert_array_equal(to_numpy(returned), array)
    with memory.stream():
        kept = memory.keep("latents", array.shape, dtype)
        memory.fill(kept, array)
        copied = memory.copy("latents", kept)
        memory.fill(kept, np.zeros_like(array))
        np.testing.assert_array_equal(to_numpy(memory.deliver(copied, on_gpu=False)), array)
    assert len(cuda.blocks) == (2 if array.size else 0)  # until the tensors go
    del kept, copied
    assert not cuda.blocks
    memory.close()
    memory.close()
    with pytest.raises(RuntimeError, match="closed"), memory.stream():
        pass
    del stream
    gc.collect()
    assert not cuda.streams


def test_what_is_delivered_on_the_gpu_is_not_overwritten_while_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """The caller drops an output after having put work on its own stream that reads it."""
    cuda = install(monkeypatch, HostCuda())
    memory = DeviceMemory(0)
    read: list[bytes] = []
    for number in range(20):
        with memory.stream():
            made = memory.empty("sample", (8,), "uint8")
            memory.fill(made, np.full(8, number, np.uint8))
            delivered = memory.deliver(made, on_gpu=True)
        address = delivered.data_ptr()
        cuda.put(DEFAULT_STREAM, lambda: None)
        cuda.put(DEFAULT_STREAM, lambda address=address: read.append(bytes(cuda.bytes_at(address, 8))))  # type: ignore[misc]
        del made, delivered
    cuda.drain()
    assert read == [bytes([number]) * 8 for number in range(20)]


def test_memory_that_there_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = install(monkeypatch, HostCuda(device=3))
    memory = DeviceMemory(3)
    with pytest.raises(DeviceOutOfMemory, match=r"tau on cuda:3 needs 0.00 GiB \(8 bytes\)") as caught:
        with memory.stream():
            memory.place("latents", np.ones(4, np.float32))
            cuda.total = cuda.used
            memory.empty("tau", (2,), "float32")
    assert (caught.value.needed, caught.value.free) == (8, 0)
    assert not cuda.blocks


def test_a_torch_that_cannot_run_engines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_memory.torch.version, "cuda", None)
    release = torch.__version__.partition("+")[0]
    with pytest.raises(
        VortaError, match=rf"device 1: .*torch {release}.* without CUDA.*pip install .*torch=={release}$"
    ):
        DeviceMemory(1)
    monkeypatch.setattr(device_memory.torch.version, "cuda", "13.0")
    with pytest.raises(VortaError, match=r"device 1: torch .* CUDA 13.0 finds 0 GPU\(s\)"):
        DeviceMemory(1)
    install(monkeypatch, HostCuda(device=0))
    with pytest.raises(VortaError, match=r"device 1: torch .* CUDA 13.0 finds 1 GPU\(s\)"):
        DeviceMemory(1)


def test_buffers_outlive_the_mode_that_they_were_made_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine that is warmed up under `torch.inference_mode` is called outside of it, too."""
    install(monkeypatch, HostCuda())
    with torch.inference_mode():
        kept = DeviceMemory(0).keep("latents", (3,), "float32")
        torch.Tensor.copy_(kept, torch.ones(3))
    assert not kept.is_inference()
    torch.Tensor.copy_(kept, torch.arange(3.0))
    assert torch.Tensor.tolist(kept) == [0, 1, 2]


# --- CUDA graphs -------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "status", "message"),
    [
        ("cudaStreamBeginCapture", 700, "cudaStreamBeginCapture failed: 700$"),
        ("cudaGraphInstantiate", 2, "cudaGraphInstantiate failed: 2$"),
        ("cudaStreamEndCapture", 35, "failed: 35; cuda-bindings is of a newer CUDA than the driver: pip install"),
    ],
)
def test_a_failed_capture_names_the_call(monkeypatch: pytest.MonkeyPatch, call: str, status: int, message: str) -> None:
    cuda = install(monkeypatch, HostCuda())
    stream = CaptureStream()
    cuda.fail[call] = status
    with pytest.raises(CudaGraphError, match=message):
        stream.capture(lambda handle: None)
    del cuda.fail[call]
    assert not cuda.graphs and not cuda.executables


def test_work_that_fails_ends_the_capture(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = install(monkeypatch, HostCuda())
    stream = CaptureStream()

    def interrupted(handle: int) -> None:
        assert cuda.is_capturing(handle)
        raise KeyboardInterrupt

    def refused(handle: int) -> None:
        raise VortaError("no")

    with pytest.raises(KeyboardInterrupt):
        stream.capture(interrupted)
    with pytest.raises(CudaGraphError, match="^no$"):
        stream.capture(refused)
    graph = stream.capture(lambda handle: cuda.put(handle, lambda: None))
    graph.close()
    graph.close()
    stream.close()
    stream.close()
    assert not cuda.graphs and not cuda.executables and not cuda.streams


def test_without_cuda_python_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", None)
    with pytest.raises(CudaGraphError, match=r"need cuda-python \(.*pip install cuda-bindings"):
        CaptureStream()


def test_the_real_libraries_have_every_call_that_is_made() -> None:
    """cuda-python with as many arguments, and with the values of constants that are written as numbers here."""
    module = pytest.importorskip("cuda.bindings.runtime")
    for name in dir(HostCuda):
        if name.startswith("cuda") and callable(getattr(HostCuda, name)):
            wanted = len(inspect.signature(getattr(HostCuda, name)).parameters) - 1
            assert len(inspect.signature(getattr(module, name)).parameters) == wanted, name
    assert int(module.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal) == 1
    assert int(module.cudaError_t.cudaErrorInsufficientDriver) == cuda_graph._INSUFFICIENT_DRIVER
    assert module.cudaStreamNonBlocking == cuda_graph._NON_BLOCKING
    for name in vars(HostTorch(HostCuda()).cuda):
        assert hasattr(torch.cuda, name), name
    for name in ("record_event", "synchronize", "wait_event", "wait_stream"):
        assert hasattr(torch.cuda.Stream, name), name


# --- On a GPU ----------------------------------------------------------------


@pytest.fixture
def memory() -> Iterator[DeviceMemory]:
    made = DeviceMemory(0)
    yield made
    made.close()
    made.close()


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "int32"])
def test_a_round_trip_on_the_gpu(memory: DeviceMemory, dtype: str, seed: int) -> None:
    host = torch.randint(-9, 9, (4, 6), generator=torch.Generator().manual_seed(seed)).to(getattr(torch, dtype))
    for array in (host, to_numpy(host), host.pin_memory(), host.cuda()):
        with memory.stream() as stream:
            assert stream.cuda_stream != 0
            placed = memory.place("latents", array)
            assert placed.data_ptr() % ALIGNMENT == 0
            kept = memory.keep("latents", (4, 6), dtype)
            memory.fill(kept, array)
            out = [memory.deliver(each, on_gpu=False) for each in (placed, memory.copy("latents", kept))]
            assert not any(each.is_cuda for each in out)
        for each in out:
            np.testing.assert_array_equal(to_numpy(each), to_numpy(host))


@pytest.mark.gpu
def test_torch_tensors_are_read_in_place_where_they_can_be(memory: DeviceMemory, seed: int) -> None:
    tensor = torch.randn(3, 100, device="cuda", generator=torch.Generator("cuda").manual_seed(seed))
    with memory.stream():
        assert memory.place("latents", tensor).data_ptr() == tensor.data_ptr()
        for other in (tensor[1:], tensor.T, tensor.cpu()):  # not aligned, not contiguous, not there
            placed = memory.place("latents", other)
            assert placed.data_ptr() != other.data_ptr() and placed.data_ptr() % ALIGNMENT == 0
            assert torch.equal(placed.cpu(), other.cpu())


@pytest.mark.gpu
def test_too_much_is_refused_with_figures_and_the_gpu_goes_on(memory: DeviceMemory) -> None:
    with pytest.raises(DeviceOutOfMemory, match="scratch on cuda:0 needs .* are free") as caught:
        memory.allocate("scratch", 1 << 50)
    assert caught.value.needed == 1 << 50
    free, total = memory.free_bytes()
    assert 0 < free <= total and abs(caught.value.free - free) < 1 << 30
    block = memory.allocate("scratch", 1 << 20)
    assert block.numel() == 1 << 20
    del block
    memory.release_unused()


@pytest.mark.gpu
def test_a_refused_capture_leaves_torch_as_it_was(memory: DeviceMemory) -> None:
    """Its allocator goes on to free what has crossed streams, and a later capture works."""
    stream = CaptureStream()

    def refused(handle: int) -> None:
        torch.cuda.ExternalStream(handle).synchronize()  # what no capture allows

    with memory.current(), pytest.raises(Exception, match="captur"):
        stream.capture(refused)
    torch.cuda.empty_cache()
    before = torch.cuda.memory_reserved()
    for _ in range(3):
        with memory.stream():
            block = memory.allocate("block", 1 << 28)
            memory.deliver(block, on_gpu=True)
        del block
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
    assert torch.cuda.memory_reserved() <= before
    counted = torch.zeros(1, device="cuda")
    address = counted.data_ptr()
    runtime: Any = cuda_graph._cudart()
    with memory.current():
        graph = stream.capture(lambda handle: runtime.cudaMemsetAsync(address, 0x3F, 4, handle))
        graph.launch(torch.cuda.current_stream().cuda_stream)
        torch.cuda.synchronize()
        graph.close()
    assert counted.item() != 0
    stream.close()
