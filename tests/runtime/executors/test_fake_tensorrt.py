# SPDX-License-Identifier: Apache-2.0
"""The fake TensorRT offers nothing that the real one lacks: against the bindings that are installed."""

from __future__ import annotations

import importlib
from typing import Any

import pytest

from ...tensorrt_interface import read_bindings, same_or_fewer, tensorrt_10_13
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


NO_USE_IN_LEAN = {"create_engine_inspector"}  # `engine_information` does not call it there
SET = {"IExecutionContext": {"nvtx_verbosity", "profiler"}, "ICudaEngine": {"weight_streaming_budget_v2"}}
FAKES = {"ICudaEngine": Engine10, "IExecutionContext": Context10}
FAKES_RTX = {"ICudaEngine": EngineRTX, "IExecutionContext": ContextRTX, "IRuntimeConfig": RuntimeConfig}


@pytest.mark.parametrize(
    ("version", "fakes"), [("10.13", FAKES), ("tensorrt_lean_bindings", FAKES), ("tensorrt_rtx", FAKES_RTX)]
)
def test_calls_that_the_fake_takes_are_calls_that_tensorrt_takes(version: str, fakes: dict[str, type]) -> None:
    """The executor's tests make every call of the executor on the fakes: names and numbers of arguments are these."""
    real = tensorrt_10_13() if version == "10.13" else read_bindings(importlib.import_module(version))
    compared = 0
    for kind, fake in fakes.items():
        for name in sorted(
            offered(fake, {"ICudaEngine": "engine", "IExecutionContext": "context"}.get(kind, "config"))
        ):
            assert name in real.attributes(kind), f"{real.name}: {kind} has no {name}"
            made = vars(fake).get(name) or getattr(fake, name, None)
            if callable(made):
                signatures = real.method(kind, name)
                assert same_or_fewer(made, signatures), f"{real.name}: {kind}.{name} takes {signatures}"
                returned = {signature.return_annotation for signature in signatures}
                usable = all(each.removeprefix("nvinfer1.") in real.classes for each in returned if "nvinfer1." in each)
                assert usable or name in NO_USE_IN_LEAN, f"{real.name}: {kind}.{name} returns a type without bindings"
                compared += 1
    assert compared > 10
    for kind, names in SET.items():
        assert names <= {name for each in real.lineage(kind) for name in each.writable}
    runtime = real.method("Runtime", "deserialize_cuda_engine")
    assert same_or_fewer(fake_tensorrt.Runtime.deserialize_cuda_engine, runtime)


def test_8_6_lacks_what_came_later() -> None:
    """From the source of its bindings (release/8.6); the tests have no machine with it."""
    for later in ("device_memory_size_v2", "weight_streaming_budget_v2", "create_runtime_config"):
        assert not hasattr(Engine86, later)
    for later in ("set_device_memory", "update_device_memory_size_for_shapes", "is_stream_capturable"):
        assert not hasattr(Context86, later)
