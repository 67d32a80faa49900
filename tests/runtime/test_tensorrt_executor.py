# SPDX-License-Identifier: Apache-2.0
"""The TensorRT executor against a TensorRT that is made of Python: what it is told, and what happens when it refuses.

The bundle, its checks and the plugin library are real; the module, the GPU and its memory are not.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vorta_trt.engines import Bundle, BundleError, flavours, gpu
from vorta_trt.engines import bundle as bundle_module
from vorta_trt.plugins.errors import VortaError
from vorta_trt.runtime import Engine, tensorrt_executor
from vorta_trt.runtime.tensorrt_executor import TensorRTExecutor, device_index
from vorta_trt.runtime.tensors import Array, ArrayKind, numpy_dtype, to_numpy

STREAM = 0xC0DE
ADA = gpu.Device("NVIDIA RTX 4090", gpu.ComputeCapability(8, 9), 24 << 30)
HOPPER = gpu.Device("NVIDIA H200", gpu.ComputeCapability(9, 0), 141 << 30)


class HostMemory:
    """Device memory of a machine without a device."""

    array_kind: ArrayKind = "numpy"

    def __init__(self) -> None:
        self.closed = 0
        self.in_stream = False

    @contextmanager
    def stream(self) -> Iterator[int]:
        self.in_stream = True
        yield STREAM
        self.in_stream = False

    def upload(self, array: Array) -> Any:
        assert self.in_stream
        return np.ascontiguousarray(to_numpy(array)).copy()

    def empty(self, shape: Sequence[int], dtype: str) -> Any:
        poisoned = np.full(tuple(shape), 77, numpy_dtype(dtype))
        return poisoned

    def pointer(self, buffer: Any) -> int:
        return int(buffer.ctypes.data)

    def download(self, buffer: Any) -> Array:
        assert self.in_stream
        return np.array(buffer)

    def close(self) -> None:
        self.closed += 1


class FakeTensorRT:
    """As much of the `tensorrt` module as an executor uses. It computes sample = 2 * hidden_states and routes = 1."""

    class ILogger:
        pass

    def __init__(self, bundle: Bundle) -> None:
        manifest = bundle.manifest
        self.shapes = {spec.name: spec.shape for spec in (*manifest.inputs, *manifest.outputs)}
        self.freed: list[str] = []
        self.plan: bytes | None = None
        self.refuses: str | None = None

    def Runtime(self, logger: Any) -> Any:
        self.logger = logger
        return FakeRuntime(self)


class FakeRuntime:
    def __init__(self, trt: FakeTensorRT) -> None:
        self.trt = trt

    def deserialize_cuda_engine(self, plan: Any) -> Any:
        self.trt.plan = bytes(plan)
        if self.trt.refuses == "plan":
            flavours.FLAVOURS["rtx"].hub.emit("ERROR", "the plan was made for another planet")
            return None
        return FakeEngine(self.trt)


class FakeEngine:
    def __init__(self, trt: FakeTensorRT) -> None:
        self.trt = trt
        self.num_io_tensors = len(trt.shapes)

    def get_tensor_name(self, index: int) -> str:
        return list(self.trt.shapes)[index]

    def create_execution_context(self) -> Any:
        return None if self.trt.refuses == "context" else FakeContext(self.trt)

    def __del__(self) -> None:
        self.trt.freed.append("engine")


class FakeContext:
    def __init__(self, trt: FakeTensorRT) -> None:
        self.trt = trt
        self.given: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.given[name] = shape
        return self.trt.refuses != "shape"

    def infer_shapes(self) -> list[str]:
        return []

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        batch = self.given["hidden_states"][0]
        return tuple(batch if size == -1 else size for size in self.trt.shapes[name])

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return True

    def execute_async_v3(self, stream: int) -> bool:
        assert stream == STREAM
        assert set(self.addresses) == set(self.trt.shapes)
        if self.trt.refuses == "run":
            flavours.FLAVOURS["rtx"].hub.emit("ERROR", "illegal memory access")
            return False
        latents = self._array("hidden_states", np.float16)
        self._array("sample", np.float16)[:] = latents * 2
        self._array("routes", np.int32)[:] = 1
        return True

    def _array(self, name: str, dtype: Any) -> Any:
        shape = self.get_tensor_shape(name)
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        memory = (ctypes.c_byte * size).from_address(self.addresses[name])
        return np.frombuffer(memory, dtype).reshape(shape)

    def __del__(self) -> None:
        self.trt.freed.append("context")


def put_gpu(monkeypatch: pytest.MonkeyPatch, *devices: gpu.Device) -> None:
    report = gpu.DriverReport(devices, "13.0", None if devices else "no GPU in this test")
    for module in (flavours, bundle_module, tensorrt_executor):
        monkeypatch.setattr(module, "driver_report", lambda: report)


@pytest.fixture
def trt(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> FakeTensorRT:
    """TensorRT-RTX replaced by the fake one, on a machine with an RTX 4090."""
    fake = FakeTensorRT(Bundle.open(bundle, runtime=False))
    flavour = flavours.TensorRTRTX()
    flavour.__dict__["module"] = fake
    flavour.__dict__["targets"] = (gpu.ComputeCapability(8, 9),)
    flavour.__dict__["logger"] = object()
    monkeypatch.setitem(flavours.FLAVOURS, "rtx", flavour)
    monkeypatch.setattr(tensorrt_executor, "load_plugin", lambda flavour, path: path)
    put_gpu(monkeypatch, ADA)
    return fake


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> HostMemory:
    made = HostMemory()
    monkeypatch.setattr(tensorrt_executor, "device_memory", lambda index: made)
    return made


def inputs(batch: int, seed: int) -> dict[str, Any]:
    generator = np.random.default_rng(seed)
    return {
        "hidden_states": generator.standard_normal((batch, 16, 12, 12, 12)).astype(np.float16),
        "timestep": np.full(batch, 500),
        "encoder_hidden_states": generator.standard_normal((batch, 512, 48)).astype(np.float16),
    }


@pytest.mark.parametrize("batch", [1, 2])
def test_a_run(trt: FakeTensorRT, memory: HostMemory, bundle: Path, batch: int, seed: int) -> None:
    feeds = inputs(batch, seed)
    with Engine(bundle) as engine:
        assert engine.executor == "tensorrt"
        outputs = engine(**feeds)
        again = engine(**feeds)
    assert trt.plan == (bundle / "transformer.plan").read_bytes()
    np.testing.assert_array_equal(outputs["sample"], feeds["hidden_states"] * 2)
    np.testing.assert_array_equal(outputs["sample"], again["sample"])
    assert outputs["routes"].shape == (2, batch, 3)
    assert (outputs["routes"] == 1).all()


def test_the_profile_is_checked_before_tensorrt_is_asked(
    trt: FakeTensorRT, memory: HostMemory, bundle: Path, seed: int
) -> None:
    with Engine(bundle) as engine, pytest.raises(ValueError, match=r"axis 0 \(batch\) must lie in 1..2"):
        engine(**inputs(3, seed))


def test_everything_is_freed_from_the_inside_out(trt: FakeTensorRT, memory: HostMemory, bundle: Path) -> None:
    engine = Engine(bundle)
    engine.close()
    engine.close()
    assert trt.freed == ["context", "engine"]
    assert memory.closed == 1


@pytest.mark.parametrize(
    ("refuses", "message"),
    [
        ("plan", "loading .*transformer.plan failed in TensorRT-RTX .*: the plan was made for another planet"),
        ("context", "creating the execution context failed in TensorRT-RTX .*: it logged no reason"),
    ],
)
def test_refusals_while_loading(
    trt: FakeTensorRT, memory: HostMemory, bundle: Path, refuses: str, message: str
) -> None:
    trt.refuses = refuses
    with pytest.raises(VortaError, match=message):
        Engine(bundle)
    assert memory.closed == 1


@pytest.mark.parametrize(
    ("refuses", "message"),
    [
        ("shape", "hidden_states of shape .*TensorRT refuses it for hidden_states float16"),
        ("run", "running the engine failed in TensorRT-RTX .*: illegal memory access"),
    ],
)
def test_refusals_while_running(
    trt: FakeTensorRT, memory: HostMemory, bundle: Path, refuses: str, message: str, seed: int
) -> None:
    with Engine(bundle) as engine:
        trt.refuses = refuses
        with pytest.raises(VortaError, match=message):
            engine(**inputs(1, seed))


def test_a_gpu_that_the_engine_was_not_built_for(
    trt: FakeTensorRT, memory: HostMemory, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_gpu(monkeypatch, HOPPER)
    with pytest.raises(BundleError, match="built for compute capability .*, but this GPU is NVIDIA H200"):
        Engine(bundle)
    assert trt.plan is None


def test_no_gpu(trt: FakeTensorRT, memory: HostMemory, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_gpu(monkeypatch)
    with pytest.raises(VortaError, match="TensorRT-RTX cannot run here: no GPU in this test"):
        Engine(bundle)
    assert trt.plan is None


def test_tensors_that_the_manifest_does_not_know(trt: FakeTensorRT, memory: HostMemory, bundle: Path) -> None:
    trt.shapes["guidance"] = [1]
    with pytest.raises(VortaError, match="the plan has tensors .*guidance.*; build it again"):
        Engine(bundle)


def test_devices(trt: FakeTensorRT, memory: HostMemory, bundle: Path) -> None:
    with pytest.raises(VortaError, match=r"device cuda:1: this machine has 1 GPU\(s\)"):
        TensorRTExecutor(Bundle.open(bundle), "cuda:1")
    assert [device_index(device) for device in (None, "cuda", "cuda:1", 2, "3")] == [0, 0, 1, 2, 3]
    for wrong in ("cpu", "cuda:", "cuda:x", "", "mps", -1):
        with pytest.raises(ValueError, match='must be "cuda", "cuda:N" or a number'):
            device_index(wrong)
