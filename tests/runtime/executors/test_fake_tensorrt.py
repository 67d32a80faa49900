# SPDX-License-Identifier: Apache-2.0
"""The fake TensorRT offers nothing that the real one lacks: against the bindings that are installed."""

from __future__ import annotations

import importlib
from typing import Any

import pytest

from . import fake_tensorrt
from .fake_tensorrt import Context10, Context86, ContextRTX, Engine10, Engine86, EngineRTX, FakeTensorRT, RuntimeConfig

NO_PART_OF_TENSORRT = {"scratch_needed", "streaming", "lazy"}
SET_BY_CONSTRUCTORS = {
    "engine": {"num_io_tensors", "num_optimization_profiles", "streamable_weights_size"},
    "context": {"profiler", "nvtx_verbosity"},
    "config": {"dynamic_shapes_kernel_specialization_strategy"},
}


def offered(fake: type, kind: str) -> set[str]:
    names = {name for name in dir(fake) if not name.startswith("_")}
    return (names | SET_BY_CONSTRUCTORS[kind]) - NO_PART_OF_TENSORRT


@pytest.mark.parametrize(
    ("package", "engine", "context"),
    [("tensorrt_lean_bindings", Engine10, Context10), ("tensorrt_rtx", EngineRTX, ContextRTX)],
)
def test_the_real_bindings_have_every_name(package: str, engine: type, context: type) -> None:
    trt: Any = importlib.import_module(package)
    assert not {name for name in offered(engine, "engine") if not hasattr(trt.ICudaEngine, name)}
    assert not {name for name in offered(context, "context") if not hasattr(trt.IExecutionContext, name)}
    for name in ("Runtime", "ILogger", "IProfiler", "ProfilingVerbosity", "TensorLocation", "LayerInformationFormat"):
        assert hasattr(trt, name) and hasattr(FakeTensorRT, name)
    assert {member.name for member in fake_tensorrt.ProfilingVerbosity} == set(trt.ProfilingVerbosity.__members__)
    assert {member.name for member in fake_tensorrt.Strategy} == set(trt.ExecutionContextAllocationStrategy.__members__)
    if package == "tensorrt_rtx":
        assert not {name for name in offered(RuntimeConfig, "config") if not hasattr(trt.IRuntimeConfig, name)}
        specialization = trt.DynamicShapesKernelSpecializationStrategy
        assert {member.name for member in fake_tensorrt.Specialization} == set(specialization.__members__)
    else:
        assert not hasattr(trt, "DynamicShapesKernelSpecializationStrategy")


def test_8_6_lacks_what_came_later() -> None:
    """From the source of its bindings (release/8.6); the tests have no machine with it."""
    for later in ("device_memory_size_v2", "weight_streaming_budget_v2", "create_runtime_config"):
        assert not hasattr(Engine86, later)
    for later in ("set_device_memory", "update_device_memory_size_for_shapes", "is_stream_capturable"):
        assert not hasattr(Context86, later)
