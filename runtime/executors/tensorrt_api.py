# SPDX-License-Identifier: Apache-2.0
"""Checks calls into TensorRT, and wraps those that differ between 8.6, 10, 11 and RTX.

| | 8.6 | 10, 11 | RTX |
| --- | --- | --- | --- |
| context without own memory | `..._without_device_memory()` | strategy USER_MANAGED | as 10, in a runtime config |
| memory that a context needs | by the whole engine | by profile, or by shapes (10.10) | by shapes |
| giving it the memory | `device_memory = address` | `set_device_memory(address, size)` | as 10, 11 |
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
    """Calls a function of TensorRT, and raises an error with TensorRT's log if the call fails.

    A call fails if its result is None or False, or if it raises RuntimeError.

    Args:
        flavour: The flavour whose log is collected.
        what: Description of the call, for the error message.
        function: The function to call.
        *arguments: Arguments of the call.
        memory: The GPU memory that the call allocates from; None if it does not allocate.
        needed: Approximate number of bytes that the call allocates; None if it is unknown.

    Returns:
        The function's result.

    Raises:
        DeviceOutOfMemory: The call failed for lack of memory, according to TensorRT.
        VortaError: The call failed for another reason.
    """
    said: list[str] = []
    result = None
    with flavour.hub.collect() as collected:
        try:
            result = function(*arguments)
        except (
            RuntimeError
        ) as error:  # the bindings report some failures this way, e.g. set_optimization_profile_async of 8.6
            said = [str(error)]
    if result is not None and result is not False:
        return result
    said += collected.errors or collected.warnings
    if memory is not None and any(_MEMORY.search(line) for line in said):
        from vorta_trt.runtime.device.device_memory import DeviceOutOfMemory

        raise DeviceOutOfMemory(f"{what} ({flavour.title})", memory.device, needed, *memory.free_bytes())
    raise VortaError(f"{what} failed in {flavour.title_and_version}: {'; '.join(said) or 'it logged no reason'}")


def runtime_config(trt: Any, engine: Any) -> Any:
    """The configuration for contexts of a TensorRT-RTX engine; None for the other flavours, which have none."""
    if not hasattr(trt, "DynamicShapesKernelSpecializationStrategy"):
        return None
    config = engine.create_runtime_config()
    config.set_execution_context_allocation_strategy(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
    # LAZY, the default, swaps kernels in later calls, which a captured CUDA graph would not notice.
    config.dynamic_shapes_kernel_specialization_strategy = trt.DynamicShapesKernelSpecializationStrategy.EAGER
    config.set_runtime_cache(config.create_runtime_cache())  # contexts share the kernels that one of them has compiled
    return config


def make_context(trt: Any, engine: Any, config: Any, layer_ranges: bool) -> Any:
    """Makes an execution context that does not allocate memory for activations.

    Args:
        trt: TensorRT's module.
        engine: A deserialised engine.
        config: The result of `runtime_config`.
        layer_ranges: Whether to mark every layer with an NVTX range, which makes launches slower.

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
    """Largest number of scratch bytes that a context needs, over all profiles and shapes, weight streaming included."""
    return int(engine.device_memory_size_v2 if hasattr(engine, "device_memory_size_v2") else engine.device_memory_size)


def scratch_for(engine: Any, context: Any, profile: int) -> int:
    """Scratch bytes that a context needs for the profile and the input shapes that are set in it."""
    if not hasattr(engine, "get_device_memory_size_for_profile_v2"):
        return most_scratch(engine)
    if is_streaming(engine):  # the sizes below do not include the scratch memory of streaming
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
    """Why a call cannot be captured as a CUDA graph, if that is known in advance; None if capturing can be tried."""
    if is_streaming(engine):
        return "the engine streams weights, and TensorRT waits for the copies on the host; cuda_graph=False says so"
    if hasattr(context, "is_stream_capturable") and not context.is_stream_capturable(stream):
        return (
            "TensorRT-RTX reports the engine as not capturable: it allocates during a call; build it again with this "
            "version, which forbids that (REQUIRE_USER_ALLOCATION)"
        )
    return None
