# SPDX-License-Identifier: Apache-2.0
"""The part of TensorRT 8.6, 10 and RTX that an executor uses, simulated in Python on a `HostCuda`.

It has the names of the real one, no others, and refuses what the real one refuses. Where the real one's behaviour is
undefined, it fails the test. It follows the bindings (python/src/infer/pyCore.cpp) and NvInferRuntime.h of each
version.

It computes sample = 2 * hidden_states + timestep / 1000 and routes = route_override, or 1 where that is -1.
"""

from __future__ import annotations

import json
import time
import weakref
from enum import Enum
from types import SimpleNamespace
from typing import Any

import numpy as np

from vorta_trt.engines.bundle import Bundle
from vorta_trt.engines.flavours import Flavour
from vorta_trt.model.precision import numpy_dtype

from ..device.host_cuda import ALIGNMENT, HostCuda

SCRATCH = 4096  # bytes of activations per sample
STREAMING_SCRATCH = 512
WEIGHTS = 10_000
LAYERS = {"blocks.0.attn1/RoutedAttention": 4.0, "blocks.1.attn1/RoutedAttention": 4.0, "proj_out/MatMul": 2.0}


class ProfilingVerbosity(Enum):
    LAYER_NAMES_ONLY, NONE, DETAILED = range(3)


class TensorLocation(Enum):
    DEVICE, HOST = range(2)


class Strategy(Enum):
    STATIC, ON_PROFILE_CHANGE, USER_MANAGED = range(3)


class Specialization(Enum):
    LAZY, EAGER, NONE = range(3)


class FakeTensorRT:
    """The module. `api` is "8.6", "10" or "rtx"; `refuses` names what the next call fails at."""

    class ILogger:
        pass

    class IProfiler:
        pass

    class EngineInspector:
        pass

    ProfilingVerbosity = ProfilingVerbosity
    TensorLocation = TensorLocation
    LayerInformationFormat = SimpleNamespace(JSON=1)

    def __init__(self, bundle: Bundle, cuda: HostCuda, flavour: Flavour, api: str) -> None:
        self.cuda, self.flavour, self.api = cuda, flavour, api
        self.specs = {spec.name: spec for spec in (*bundle.manifest.inputs, *bundle.manifest.outputs)}
        self.outputs = [spec.name for spec in bundle.manifest.outputs]
        self.batches = [(1, 1, 2)]  # least, usual and largest batch of each profile
        self.freed: list[str] = []
        self.alive: list[Any] = []  # contexts
        self.plan: bytes | None = None
        self.refuses: str | None = None
        self.streamable = 0
        self.shares_profiles = True
        self.capturable = True
        self.runs = 0
        self.newest: Any = None  # a weak reference
        if api != "8.6":
            self.ExecutionContextAllocationStrategy = Strategy
        if api == "rtx":
            self.DynamicShapesKernelSpecializationStrategy = Specialization

    def Runtime(self, logger: Any) -> Any:
        assert logger is not None
        return Runtime(self)

    def error(self, message: str) -> None:
        self.flavour.hub.emit("ERROR", message)


class Runtime:
    def __init__(self, trt: FakeTensorRT) -> None:
        self.trt = trt

    def deserialize_cuda_engine(self, plan: Any) -> Any:
        trt = self.trt
        trt.cuda.check_device()
        trt.plan = bytes(plan)
        if trt.refuses == "plan":
            trt.error("the plan was made for another planet")
            return None
        weights = trt.cuda.allocate(WEIGHTS - trt.streamable)
        if weights is None:
            trt.error("[defaultAllocator.cpp::allocate] Error Code 1: Cuda Runtime (out of memory)")
            return None
        return {"8.6": Engine86, "10": Engine10, "rtx": EngineRTX}[trt.api](trt, weights)


class BaseEngine:
    def __init__(self, trt: FakeTensorRT, weights: Any) -> None:
        self.trt, self.weights = trt, weights
        self.num_io_tensors = len(trt.specs)
        self.num_optimization_profiles = len(trt.batches)

    def get_tensor_name(self, index: int) -> str:
        return list(self.trt.specs)[index]

    def get_tensor_location(self, name: str) -> TensorLocation:
        return TensorLocation.HOST if self.trt.refuses == "location" else TensorLocation.DEVICE

    def get_tensor_shape(self, name: str) -> list[int]:
        return list(self.trt.specs[name].shape)

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[list[int]]:
        shape = self.get_tensor_shape(name)
        return [[batch if size == -1 else size for size in shape] for batch in self.trt.batches[profile]]

    def create_engine_inspector(self) -> Any:
        layers = [{"Name": f"layer {index}", "Metadata": f"[ONNX Layer: {name}]"} for index, name in enumerate(LAYERS)]
        return SimpleNamespace(get_engine_information=lambda kind: json.dumps({"Layers": layers}))

    def _make(self, kind: type[Context]) -> Any:
        self.trt.cuda.check_device()
        if self.trt.refuses == "context":
            return None
        return kind(self)

    def __del__(self) -> None:
        self.trt.freed.append("engine")
        self.trt.cuda.free_at_once(self.weights)


class Engine86(BaseEngine):
    @property
    def device_memory_size(self) -> int:
        return SCRATCH * max(largest for _, _, largest in self.trt.batches)

    def create_execution_context(self) -> Any:
        raise AssertionError("this context would take its memory itself")

    def create_execution_context_without_device_memory(self) -> Any:
        return self._make(Context86)


class Engine10(BaseEngine):
    def __init__(self, trt: FakeTensorRT, weights: Any) -> None:
        super().__init__(trt, weights)
        self.streamable_weights_size = trt.streamable
        self._budget = trt.streamable
        self._resident: int | None = None

    @property
    def device_memory_size_v2(self) -> int:
        streaming = self._budget < self.streamable_weights_size
        return SCRATCH * max(largest for _, _, largest in self.trt.batches) + STREAMING_SCRATCH * streaming

    def get_device_memory_size_for_profile_v2(self, profile: int) -> int:
        return SCRATCH * self.trt.batches[profile][2]  # the bindings of 10.1 to 10.8 call the old function here

    @property
    def weight_streaming_budget_v2(self) -> int:
        return self._budget

    @weight_streaming_budget_v2.setter
    def weight_streaming_budget_v2(self, budget: int) -> None:
        trt = self.trt
        if trt.alive or trt.refuses == "budget":
            trt.error("the budget cannot be modified while there are active contexts")
            return
        if self._resident is not None:
            trt.cuda.free_at_once(self._resident)
        self._resident = trt.cuda.allocate(min(budget, self.streamable_weights_size))
        if self._resident is None:
            trt.error("Cuda Runtime (out of memory)")
            return
        self._budget = budget

    def create_execution_context(self, strategy: Strategy = Strategy.STATIC) -> Any:
        assert strategy is Strategy.USER_MANAGED, "this context would take its memory itself"
        return self._make(Context10)

    def __del__(self) -> None:
        super().__del__()
        if self._resident is not None:
            self.trt.cuda.free_at_once(self._resident)


class RuntimeConfig:
    def __init__(self) -> None:
        self.strategy = Strategy.STATIC
        self.dynamic_shapes_kernel_specialization_strategy = Specialization.LAZY
        self.cache: Any = None

    def set_execution_context_allocation_strategy(self, strategy: Strategy) -> None:
        self.strategy = strategy

    def create_runtime_cache(self) -> Any:
        return object()

    def set_runtime_cache(self, cache: Any) -> bool:
        self.cache = cache
        return True


class EngineRTX(Engine10):
    def create_runtime_config(self) -> RuntimeConfig:
        return RuntimeConfig()

    def create_execution_context(self, config: Any = None) -> Any:
        assert isinstance(config, RuntimeConfig) and config.strategy is Strategy.USER_MANAGED
        context = self._make(ContextRTX)
        if context is not None:
            context.lazy = config.dynamic_shapes_kernel_specialization_strategy is Specialization.LAZY
        return context


class Context:
    """`version` counts changes that make earlier graphs undefined; `settled`: a run has applied the last change."""

    def __init__(self, engine: Any) -> None:
        self.engine, self.trt = engine, engine.trt
        self.profile = -1
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.scratch: tuple[int, int] | None = None
        self.version, self.settled, self.busy = 0, False, False
        self.profiler: Any = None
        self.nvtx_verbosity = ProfilingVerbosity.DETAILED
        self.trt.alive.append(id(self))
        self.trt.newest = weakref.ref(self)

    def _changed(self) -> None:
        self.version, self.settled = self.version + 1, False

    def set_optimization_profile_async(self, profile: int, stream: int) -> bool:
        self.trt.cuda.check_device()
        if not 0 <= profile < len(self.trt.batches):
            return False
        self.profile, self.shapes = profile, {}
        self._changed()
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        low, _, high = self.engine.get_tensor_profile_shape(name, self.profile)
        fits = len(shape) == len(low) and all(a <= b <= c for a, b, c in zip(low, shape, high, strict=True))
        if not fits or self.trt.refuses == "shape":
            self.trt.error(f"{name}: static dimension mismatch")
            return False
        if self.shapes.get(name) != shape:
            self.shapes[name] = tuple(shape)
            self._changed()
        return True

    def infer_shapes(self) -> list[str]:
        if self.trt.refuses == "infer":
            raise RuntimeError("infer_shapes error code: -1")
        return [name for name in self.trt.specs if name not in self.trt.outputs and name not in self.shapes]

    def get_tensor_shape(self, name: str) -> list[int]:
        batch = self.shapes["hidden_states"][0]
        unknown = self.trt.refuses == "output shape" and name in self.trt.outputs
        return [-1 if unknown else batch if size == -1 else size for size in self.trt.specs[name].shape]

    def set_tensor_address(self, name: str, address: int) -> bool:
        assert address % ALIGNMENT == 0, f"{name} is not aligned"
        if name not in self.trt.specs:
            return False
        if self.addresses.get(name) != address:
            self.addresses[name] = address
            self._changed()
        return True

    def _set_scratch(self, address: int, size: int) -> None:
        assert address % ALIGNMENT == 0, "scratch memory is not aligned"
        if self.scratch != (address, size):
            self.scratch = (address, size)
            self._changed()

    def scratch_needed(self) -> int:
        raise NotImplementedError

    @property
    def streaming(self) -> bool:
        return False

    def execute_async_v3(self, stream: int) -> bool:
        trt, cuda = self.trt, self.trt.cuda
        cuda.check_device()
        assert stream != 0, "the default stream makes TensorRT wait"
        assert not self.busy, "two threads in one execution context"
        self.busy = True
        try:
            time.sleep(0.001)  # the real one also lets other threads run
            if trt.refuses == "interrupt" or (trt.refuses == "interrupt capture" and cuda.is_capturing(stream)):
                raise KeyboardInterrupt
            if trt.refuses == "run":
                trt.error("illegal memory access")
                return False
            if missing := [name for name in trt.specs if name not in self.addresses]:
                trt.error(f"Neither address or allocator is set for {missing}")
                return False
            address, size = self.scratch or (0, 0)
            if size < self.scratch_needed():
                assert trt.api != "8.6", "8.6 does not check: it would write beyond the scratch memory"
                trt.error("the device memory is too small")
                return False
            if cuda.is_capturing(stream) and (not self.settled or self.streaming or trt.refuses == "capture"):
                cuda.spoil(stream)
                trt.error("operation not permitted when stream is capturing")
                return False
            self._launch(stream, address)
            self.settled = True
            trt.runs += 1
            if self.profiler is not None:
                cuda.drain(stream)
                for index, milliseconds in enumerate(LAYERS.values()):
                    self.profiler.report_layer_time(f"layer {index}", milliseconds)
            elif self.streaming:
                cuda.drain(stream)
            return True
        finally:
            self.busy = False

    def _launch(self, stream: int, scratch: int) -> None:
        cuda, version = self.trt.cuda, self.version
        in_graph = cuda.is_capturing(stream)  # a plain run has its addresses with it
        places = {name: (self.addresses[name], tuple(self.get_tensor_shape(name))) for name in self.trt.specs}
        mark = np.random.default_rng().integers(1, 255)

        def first_layer() -> None:
            assert not in_graph or self.version == version, "the graph's context was changed: replaying it is undefined"
            cuda.bytes_at(scratch, SCRATCH)[:] = bytes([mark]) * SCRATCH

        def last_layer() -> None:
            assert cuda.bytes_at(scratch, SCRATCH)[0] == bytes([mark]), "somebody else has used the scratch memory"
            read = {name: self._array(name, *place) for name, place in places.items()}
            times = read["timestep"].reshape(-1, 1, 1, 1, 1).astype(np.float16) / np.float16(1000)
            read["sample"][:] = read["hidden_states"] * np.float16(2) + times
            override = read["route_override"][:, None]  # [L, 1, N]
            read["routes"][:] = np.where(override < 0, 1, override)

        cuda.put(stream, first_layer)
        cuda.put(stream, last_layer)

    def _array(self, name: str, address: int, shape: tuple[int, ...]) -> Any:
        dtype = numpy_dtype(self.trt.specs[name].dtype)
        memory = self.trt.cuda.bytes_at(address, int(np.prod(shape)) * dtype.itemsize)
        return np.frombuffer(memory, dtype).reshape(shape)

    def __del__(self) -> None:
        self.trt.alive.remove(id(self))
        self.trt.freed.append("context")


class Context86(Context):
    def _write_only(self, address: int) -> None:
        self._set_scratch(address, self.engine.device_memory_size)  # the caller does not say how much there is

    device_memory = property(None, _write_only)

    def set_optimization_profile_async(self, profile: int, stream: int) -> bool:
        trt = self.trt
        if not trt.shares_profiles and len(trt.alive) > 1:
            trt.error(f"Profile {profile} has been chosen by another IExecutionContext")
            raise RuntimeError("Internal error")
        return super().set_optimization_profile_async(profile, stream)

    def scratch_needed(self) -> int:
        return int(self.engine.device_memory_size)


class Context10(Context):
    @property
    def streaming(self) -> bool:
        return bool(self.engine.weight_streaming_budget_v2 < self.engine.streamable_weights_size)

    def update_device_memory_size_for_shapes(self) -> int:
        assert set(self.infer_shapes()) == set(), "not all input shapes are set"
        return SCRATCH * self.shapes["hidden_states"][0]

    def set_device_memory(self, address: int, size: int) -> None:
        self._set_scratch(address, size)

    def scratch_needed(self) -> int:
        return self.update_device_memory_size_for_shapes() + STREAMING_SCRATCH * self.streaming


class ContextRTX(Context10):
    lazy = False

    def is_stream_capturable(self, stream: int) -> bool:
        return bool(self.trt.capturable)

    def execute_async_v3(self, stream: int) -> bool:
        assert not (self.lazy and self.trt.cuda.is_capturing(stream)), "later calls would swap the kernels of the graph"
        return super().execute_async_v3(stream)
