# SPDX-License-Identifier: Apache-2.0
"""Device buffers: cuda-python against a CUDA runtime on the host, and both kinds of memory on a GPU."""

from __future__ import annotations

import inspect
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from vorta_trt.model.precision import numpy_dtype
from vorta_trt.plugins.errors import VortaError
from vorta_trt.runtime.device import cuda_runtime, device_array, device_memory
from vorta_trt.runtime.device.cuda_runtime import CudaError, CudaRuntime, DeviceOutOfMemory
from vorta_trt.runtime.device.device_array import DeviceArray
from vorta_trt.runtime.device.device_memory import ALIGNMENT, CudaPythonMemory, TorchMemory
from vorta_trt.runtime.tensors import to_numpy

from .host_cuda import HostCuda


@pytest.mark.parametrize("dtype", ["float32", "float16", "int32", "bfloat16"])
@pytest.mark.parametrize("shape", [(3, 5), (1,), (0, 4)])
def test_a_round_trip_through_cuda_python(dtype: str, shape: tuple[int, ...], seed: int) -> None:
    cuda = HostCuda()
    memory = CudaPythonMemory(CudaRuntime(0, cuda))
    array = (
        np.random.default_rng(seed).integers(-9, 9, (*shape, 2)).astype(numpy_dtype(dtype))[..., 0]
    )  # not contiguous
    with memory.stream() as stream:
        assert stream in cuda.streams
        returned = memory.deliver(memory.place("latents", array), on_gpu=False)
        assert len(cuda.blocks) == 1
    assert not cuda.blocks  # freed with the run
    assert returned.dtype == array.dtype
    np.testing.assert_array_equal(to_numpy(returned), array)
    with memory.stream():
        kept = memory.keep("latents", array.shape, dtype)
        memory.fill(kept, array)
        copied = memory.copy("latents", kept)
        memory.fill(kept, np.zeros_like(array))
        np.testing.assert_array_equal(to_numpy(memory.deliver(copied, on_gpu=False)), array)
    assert len(cuda.blocks) == 2  # until the arrays go
    del kept, copied
    assert not cuda.blocks
    memory.close()
    memory.close()
    assert not cuda.streams
    with pytest.raises(RuntimeError, match="closed"), memory.stream():
        pass


def test_failures_name_the_call_and_free_what_was_allocated() -> None:
    cuda = HostCuda(device=3)
    memory = CudaPythonMemory(CudaRuntime(3, cuda))
    with pytest.raises(DeviceOutOfMemory, match=r"tau of shape \(2,\) on cuda:3 needs 0.00 GiB \(8 bytes\)"):
        with memory.stream():
            memory.place("latents", np.ones(4, np.float32))
            cuda.total = cuda.used
            memory.empty("tau", (2,), "float32")
    assert not cuda.blocks
    cuda.fail["cudaStreamSynchronize"] = 700
    with pytest.raises(CudaError, match="cudaStreamSynchronize on device 3 failed: 700$"):
        memory.synchronize()
    cuda.fail["cudaStreamSynchronize"] = 35
    with pytest.raises(CudaError, match="failed: 35; cuda-bindings is of a newer CUDA than the driver: pip install"):
        memory.synchronize()


def test_without_cuda_python_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def without(name: str) -> Any:
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(cuda_runtime.importlib, "import_module", without)
    with pytest.raises(VortaError, match=r"device 0: .* needs cuda-python \(No module .*pip install cuda-bindings"):
        device_memory.device_memory(0)


@pytest.mark.parametrize(
    ("version", "available", "kind"), [(None, False, CudaPythonMemory), ("13.0", True, TorchMemory)]
)
def test_torch_is_used_where_it_has_cuda(
    monkeypatch: pytest.MonkeyPatch, version: str | None, available: bool, kind: type
) -> None:
    torch_like = SimpleNamespace(
        version=SimpleNamespace(cuda=version), cuda=SimpleNamespace(is_available=lambda: available)
    )
    monkeypatch.setattr(device_memory.importlib, "import_module", lambda name: torch_like)
    monkeypatch.setattr(CudaRuntime, "load", classmethod(lambda cls, device: CudaRuntime(device, HostCuda())))
    monkeypatch.setattr(TorchMemory, "__init__", lambda self, cuda: None)
    assert type(device_memory.device_memory(0)) is kind


def test_the_real_cuda_python_has_every_call_that_is_made() -> None:
    """With as many arguments, and with the values of constants that are written as numbers here."""
    module = pytest.importorskip("cuda.bindings.runtime")
    for name in dir(HostCuda):
        if name.startswith("cuda") and callable(getattr(HostCuda, name)):
            wanted = len(inspect.signature(getattr(HostCuda, name)).parameters) - 1
            assert len(inspect.signature(getattr(module, name)).parameters) == wanted, name
    assert int(module.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal) == 1
    assert int(module.cudaError_t.cudaErrorMemoryAllocation) == cuda_runtime._OUT_OF_MEMORY
    assert int(module.cudaError_t.cudaErrorInsufficientDriver) == cuda_runtime._INSUFFICIENT_DRIVER
    assert module.cudaStreamNonBlocking == cuda_runtime._NON_BLOCKING
    assert int(module.cudaStreamLegacy) == device_array.LEGACY_STREAM
    assert module.cudaEventDisableTiming == cuda_runtime._DISABLE_TIMING


def test_buffers_of_torch_outlive_the_mode_that_they_were_made_in() -> None:
    """An engine that is warmed up under `torch.inference_mode` is called outside of it, too."""
    memory = TorchMemory.__new__(TorchMemory)  # without a GPU: on the CPU, and without a stream
    memory.device, memory._device, memory._stream = 0, torch.device("cpu"), None
    with torch.inference_mode():
        kept = memory.keep("latents", (3,), "float32")
        memory.fill(kept, torch.ones(3))
    memory.fill(kept, torch.arange(3.0))
    assert kept.tolist() == [0, 1, 2] and not kept.is_inference()


# --- On a GPU ----------------------------------------------------------------


@pytest.fixture(params=["torch", "cuda-python"])
def memory(request: pytest.FixtureRequest) -> Any:
    cuda = CudaRuntime.load(0)
    made = TorchMemory(cuda) if request.param == "torch" else CudaPythonMemory(cuda)
    yield made
    made.close()
    made.close()


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "int32"])
def test_a_round_trip_on_the_gpu(memory: Any, dtype: str, seed: int) -> None:
    host = torch.randint(-9, 9, (4, 6), generator=torch.Generator().manual_seed(seed)).to(getattr(torch, dtype))
    for array in (host, to_numpy(host)):
        with memory.stream() as stream:
            assert stream != 0
            placed = memory.place("latents", array)
            assert memory.pointer(placed) % ALIGNMENT == 0
            kept = memory.keep("latents", (4, 6), dtype)
            memory.fill(kept, array)
            out = [memory.deliver(each, on_gpu=False) for each in (placed, memory.copy("latents", kept))]
            assert not any(isinstance(each, torch.Tensor) and each.is_cuda for each in out)
        for each in out:
            np.testing.assert_array_equal(to_numpy(each), to_numpy(host))


@pytest.mark.gpu
def test_torch_tensors_are_read_in_place_where_they_can_be(seed: int) -> None:
    memory = TorchMemory(CudaRuntime.load(0))
    tensor = torch.randn(3, 100, device="cuda", generator=torch.Generator("cuda").manual_seed(seed))
    with memory.stream():
        assert memory.pointer(memory.place("latents", tensor)) == tensor.data_ptr()
        for other in (tensor[1:], tensor.T, tensor.cpu()):  # not aligned, not contiguous, not there
            placed = memory.place("latents", other)
            assert memory.pointer(placed) != other.data_ptr() and memory.pointer(placed) % ALIGNMENT == 0
            assert torch.equal(placed.cpu(), other.cpu())
    memory.close()


@pytest.mark.gpu
def test_gpu_arrays_of_cuda_python_are_torch_tensors_through_dlpack(seed: int) -> None:
    memory = CudaPythonMemory(CudaRuntime.load(0))
    host = torch.randn(4, 6, generator=torch.Generator().manual_seed(seed)).bfloat16()
    with memory.stream():
        kept = memory.keep("sample", (4, 6), "bfloat16")
        memory.fill(kept, host)
    tensor = torch.from_dlpack(kept)
    assert tensor.is_cuda and tensor.data_ptr() == kept.pointer
    del kept
    assert torch.equal(tensor.cpu(), host)
    view = DeviceArray.from_dlpack("sample", tensor)
    assert view.pointer == tensor.data_ptr() and view.dtype == "bfloat16"
    memory.close()


@pytest.mark.gpu
def test_too_much_is_refused_with_figures_and_the_gpu_goes_on(memory: Any) -> None:
    with memory.current(), pytest.raises(DeviceOutOfMemory, match="scratch on cuda:0 needs .* are free") as caught:
        memory.allocate("scratch", 1 << 50)
    assert caught.value.needed == 1 << 50
    free, total = memory.free_bytes()
    assert 0 < free <= total and abs(caught.value.free - free) < 1 << 30
    with memory.current():
        block = memory.allocate("scratch", 1 << 20)
        block.free()
        block.free()
