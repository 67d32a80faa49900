# SPDX-License-Identifier: Apache-2.0
"""Weight streaming: a part of an engine's weights stays in host memory and is copied to the GPU while it runs.

It is for cards whose memory is too small for all weights. The budget is the number of bytes that stay on the GPU.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from vorta_trt.engines.flavours import Flavour
from vorta_trt.plugins.errors import VortaError
from vorta_trt.runtime.executors.tensorrt_api import most_scratch

if TYPE_CHECKING:
    from vorta_trt.runtime.device.device_memory import DeviceMemory

Budget = int | Literal["auto"]

# Bytes that "auto" leaves free for inputs, outputs, CUDA graphs, and kernels that are loaded later.
HEADROOM = 1 << 30


def check_budget(budget: Budget | None) -> None:
    """Raises ValueError for a budget that no engine takes."""
    if budget is None or budget == "auto" or (isinstance(budget, int) and budget >= 0):
        return
    raise ValueError(
        f"weight_streaming_budget {budget!r}: must be bytes of weights to keep on the GPU (0 streams the most), or "
        '"auto", which goes by the free memory'
    )


def set_budget(flavour: Flavour, engine: Any, memory: DeviceMemory, budget: Budget) -> int:
    """Sets the budget of an engine that has no context yet, and returns it in bytes.

    "auto" is computed here, because TensorRT's own automatic budget leaves no memory for other models, and its Python
    binding truncates it to 32 bits.

    Raises:
        VortaError: The flavour or this engine has no weight streaming, or TensorRT refuses.
    """
    if not hasattr(engine, "weight_streaming_budget_v2"):
        raise VortaError(
            f"weight_streaming_budget {budget}: {flavour.title_and_version} has no weight streaming; leave it "
            "out, or use TensorRT 10 or newer, or TensorRT-RTX"
        )
    streamable = int(engine.streamable_weights_size)
    if streamable == 0:
        raise VortaError(
            f"weight_streaming_budget {budget}: the engine was built without weight streaming, all its weights lie on "
            "the GPU; leave it out, or build the engine with --weight-streaming"
        )
    if budget == "auto":
        _set(flavour, engine, 0)  # with this, the engine reports the scratch memory that streaming takes
        wanted = max(memory.free_bytes()[0] - most_scratch(engine) - HEADROOM, 0)
    else:
        wanted = budget
    wanted = min(wanted, streamable)
    _set(flavour, engine, wanted)
    return wanted


def _set(flavour: Flavour, engine: Any, budget: int) -> None:
    with flavour.hub.collect() as collected:
        engine.weight_streaming_budget_v2 = budget  # setting the property does not report a failure
    if collected.errors or int(engine.weight_streaming_budget_v2) > budget:
        said = "; ".join(collected.errors) or f"the budget is {int(engine.weight_streaming_budget_v2)}"
        raise VortaError(
            f"weight_streaming_budget {budget}: {flavour.title_and_version} refuses it ({said}); give fewer bytes"
        )
