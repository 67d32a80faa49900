# SPDX-License-Identifier: Apache-2.0
"""Device buffers: cuda-python against a CUDA runtime on the host, and both kinds of memory on a GPU."""

from __future__ import annotations

import ctypes
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from vorta_trt.plugins.errors import VortaError
from vorta_trt.runtime import device_memory
from vorta_trt.runtime.device_memory import CudaPythonMemory, TorchMemory
from vorta_trt.runtime.tensors import numpy_dtype, to_numpy


class HostCuda:
    """The calls of cuda.bindings.runtime that the memory makes, on host memory."""

    cudaMemcpyKind = SimpleNamespace(cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2)

    def __init__(self) -> None:
        self.blocks: dict[int, Any] = {}
        self.streams: set[int] = set()
        self.fail: str | None = None

    def _status(self, name: str) -> Any:
        return 2 if self.fail == name else 0

    def cudaSetDevice(self, device: int) -> tuple[Any, ...]:
        return (self._status("cudaSetDevice"),)

    def cudaStreamCreate(self) -> tuple[Any, ...]:
        self.streams.add(7)
        return 0, 7

    def cudaStreamDestroy(self, stream: int) -> tuple[Any, ...]:
        self.streams.remove(stream)
        return (0,)

    def cudaStreamSynchronize(self, stream: int) -> tuple[Any, ...]:
        assert stream in self.streams
        return (0,)

    def cudaMallocAsync(self, size: int, stream: int) -> tuple[Any, ...]:
        if self.fail == "cudaMallocAsync":
            return 2, 0
        block = (ctypes.c_byte * size)()
        self.blocks[ctypes.addressof(block)] = block
        return 0, ctypes.addressof(block)

    def cudaFreeAsync(self, pointer: int, stream: int) -> tuple[Any, ...]:
        del self.blocks[pointer]
        return (0,)

    def cudaMemcpyAsync(self, target: int, source: int, size: int, kind: int, stream: int) -> tuple[Any, ...]:
        ctypes.memmove(target, source, size)
        return (0,)


@pytest.mark.parametrize("dtype", ["float32", "float16", "int32", "bfloat16"])
@pytest.mark.parametrize("shape", [(3, 5), (1,), (0, 4)])
def test_a_round_trip_through_cuda_python(dtype: str, shape: tuple[int, ...], seed: int) -> None:
    cuda = HostCuda()
    memory = CudaPythonMemory(0, cuda)
    array = (
        np.random.default_rng(seed).integers(-9, 9, (*shape, 2)).astype(numpy_dtype(dtype))[..., 0]
    )  # not contiguous
    with memory.stream() as stream:
        assert stream == 7
        returned = memory.download(memory.upload(array))
        assert len(cuda.blocks) == 1
    assert not cuda.blocks  # freed with the run
    assert returned.dtype == array.dtype
    np.testing.assert_array_equal(to_numpy(returned), array)
    memory.close()
    memory.close()
    assert not cuda.streams
    with pytest.raises(RuntimeError, match="closed"), memory.stream():
        pass


def test_failures_name_the_call_and_free_what_was_allocated() -> None:
    cuda = HostCuda()
    memory = CudaPythonMemory(3, cuda)
    with pytest.raises(VortaError, match="cudaMallocAsync on device 3 failed"), memory.stream():
        memory.upload(np.ones(4, np.float32))
        cuda.fail = "cudaMallocAsync"
        memory.empty((2,), "float32")
    assert not cuda.blocks


def test_no_way_to_a_gpu_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def without_cuda(name: str) -> Any:
        if name == "torch":
            return SimpleNamespace(version=SimpleNamespace(cuda=None), __version__="2.13.0+cpu")
        raise ImportError(name)

    monkeypatch.setattr(device_memory.importlib, "import_module", without_cuda)
    with pytest.raises(VortaError, match=r"torch 2.13.0\+cpu has no usable CUDA, and cuda-python is not installed"):
        device_memory.device_memory(0)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "int32"])
def test_a_round_trip_through_torch_on_the_gpu(dtype: str, seed: int) -> None:
    memory = TorchMemory(0)
    host = torch.randint(-9, 9, (4, 6), generator=torch.Generator().manual_seed(seed)).to(getattr(torch, dtype))
    with memory.stream() as stream:
        assert stream != 0
        device = memory.upload(host)
        result = memory.empty((4, 6), dtype)
        result.copy_(device)
        assert memory.pointer(result) == result.data_ptr()
        out = memory.download(result)
    assert isinstance(out, torch.Tensor)
    assert torch.equal(out.cpu(), host)
    memory.close()
    memory.close()


@pytest.mark.gpu
def test_a_round_trip_through_cuda_python_on_the_gpu(seed: int) -> None:
    runtime = pytest.importorskip("cuda.bindings.runtime")
    memory = CudaPythonMemory(0, runtime)
    array = np.random.default_rng(seed).standard_normal((3, 5)).astype(np.float32)
    with memory.stream():
        returned = memory.download(memory.upload(array))
    np.testing.assert_array_equal(to_numpy(returned), array)
    memory.close()
