# SPDX-License-Identifier: Apache-2.0
"""Calls into TensorRT, checked, and the few that differ between 8.6, 10, 11 and RTX.

| | 8.6 | 10, 11 | RTX |
| --- | --- | --- | --- |
| context without own memory | `..._without_device_memory()` | strategy USER_MANAGED | the same, in a runtime config |
| memory that a context needs | of the whole engine | of the profile, or of the shapes (10.10) | of the shapes |
| giving it the memory | `device_memory = address` | `set_device_memory(address, size)` | the same |
| weight streaming | no | yes | yes |
| kernels for the shapes of a call | tuned when built | tuned when built | compiled in the first call |
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from vorta_trt.engines.flavours import Flavour
from vorta_trt.plugins.errors import VortaError

if TYPE_CHECKING:
    from vorta_trt.runtime.device.device_memory import DeviceMemory

_MEMORY = re.compile(r"out ?of ?memory|memory allocation|insufficient (gpu |device )?memory", re.IGNORECASE)


def checked(
    flavour: Flavour,
    what: str,
    function: Callable[..., Any],
    *arguments: Any,
    memory: DeviceMemory | None = None,
    needed: int | None = None,
) -> Any:
    """Calls TensorRT; what it logged becomes the error where the result is None or False or RuntimeError is raised.

    Args:
        flavour: Whose log is collected.
        what: What the call does, for the error.
        function: What is called.
        *arguments: For the call.
        memory: For calls that allocate: where.
        needed: For calls that allocate: about how many bytes.

    Returns:
        The function's result.

    Raises:
        DeviceOutOfMemory: TensorRT says that memory was the reason.
        VortaError: It failed for another reason.
    """
    said: list[str] = []
    result = None
    with flavour.hub.collect() as collected:
        try:
            result = function(*arguments)
        except (
            RuntimeError
        ) as error:  # how the bindings report some failures, set_optimization_profile_async of 8.6 one
            said = [str(error)]
    if result is not None and result is not False:
        return result
    said += collected.errors or collected.warnings
    if memory is not None and any(_MEMORY.search(line) for line in said):
        from vorta_trt.runtime.device.device_memory import DeviceOutOfMemory

        raise DeviceOutOfMemory(f"{what} ({flavour.title})", memory.device, needed, *memory.free_bytes())
    raise VortaError(f"{what} failed in {flavour.title_and_version}: {'; '.join(said) or 'it logged no reason'}")


def runtime_config(trt: Any, engine: Any) -> Any:
    """How TensorRT-RTX makes the contexts of an engine; None for the others, which have nothing to choose."""
    if not hasattr(trt, "DynamicShapesKernelSpecializationStrategy"):
        return None
    config = engine.create_runtime_config()
    config.set_execution_context_allocation_strategy(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
    # LAZY, the default, swaps kernels in later calls, which a captured CUDA graph would not notice.
    config.dynamic_shapes_kernel_specialization_strategy = trt.DynamicShapesKernelSpecializationStrategy.EAGER
    config.set_runtime_cache(config.create_runtime_cache())  # what one context has compiled, the others need not
    return config


def make_context(trt: Any, engine: Any, config: Any, layer_ranges: bool) -> Any:
    """Makes an execution context without memory of its own for activations.

    Args:
        trt: TensorRT's module.
        engine: A deserialised engine.
        config: What `runtime_config` gave.
        layer_ranges: NVTX ranges for every layer, which make launching slower.

    Returns:
        The context, or None where TensorRT refuses.
    """
    if config is not None:
        context = engine.create_execution_context(config)
    elif hasattr(trt, "ExecutionContextAllocationStrategy"):
        context = engine.create_execution_context(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
    else:
        context = engine.create_execution_context_without_device_memory()
    if context is not None and not layer_ranges:
        context.nvtx_verbosity = trt.ProfilingVerbosity.NONE
    return context


def most_scratch(engine: Any) -> int:
    """Bytes that a context needs at most, over all profiles and shapes, with what streaming needs at its budget."""
    return int(engine.device_memory_size_v2 if hasattr(engine, "device_memory_size_v2") else engine.device_memory_size)


def scratch_for(engine: Any, context: Any, profile: int) -> int:
    """Bytes that a context needs for the profile and the input shapes that are set in it."""
    if not hasattr(engine, "get_device_memory_size_for_profile_v2"):
        return most_scratch(engine)
    if is_streaming(engine):  # the sizes below leave out what streaming needs
        return most_scratch(engine)
    # 0 is an error. Engines built without RUNTIME_ACTIVATION_RESIZE need as much as their profile in any case.
    for_shapes = int(context.update_device_memory_size_for_shapes())
    return for_shapes or int(engine.get_device_memory_size_for_profile_v2(profile))


def set_scratch(context: Any, address: int, size: int) -> None:
    """Gives a context its memory for activations."""
    if hasattr(context, "set_device_memory"):
        context.set_device_memory(address, size)
    else:
        context.device_memory = address


def is_streaming(engine: Any) -> bool:
    """Whether a part of the weights stays in host memory and is copied in every call."""
    streamable = int(getattr(engine, "streamable_weights_size", 0))
    return streamable > 0 and int(engine.weight_streaming_budget_v2) < streamable


def capture_obstacle(engine: Any, context: Any, stream: int) -> str | None:
    """Why a call cannot become a CUDA graph, as far as TensorRT tells before it is tried."""
    if is_streaming(engine):
        return "the engine streams weights, and TensorRT waits for the copies on the host; cuda_graph=False says so"
    if hasattr(context, "is_stream_capturable") and not context.is_stream_capturable(stream):
        return (
            "TensorRT-RTX reports the engine as not capturable: it allocates during a call; build it again with this "
            "version, which forbids that (REQUIRE_USER_ALLOCATION)"
        )
    return None
