# SPDX-License-Identifier: Apache-2.0
"""Methods of diffusers' models that a compiled or routed transformer cannot honour: each says so, and what to do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

from vorta_trt.plugins.errors import VortaError

_LORA = (
    "weights are fixed here: load and fuse the LoRA into the checkpoint's transformer with diffusers "
    "(pipe.load_lora_weights, pipe.fuse_lora, pipe.transformer.save_pretrained), then build from that checkpoint"
)
_SAVE = "the bundle or ONNX file is what it is saved as: copy that; the checkpoint's own folder holds the other parts"
_ATTENTION = "its attention is the routed one"
_GROUPS = (
    "its layers do not move one by one; leave it out with exclude_modules=['transformer'], or use "
    "enable_model_cpu_offload(), which moves the other parts"
)
_FIXED = "its precision and device are decided when it is built or loaded"


def _refused(name: str, reason: str) -> Callable[..., NoReturn]:
    def refuse(self: Any, *arguments: Any, **options: Any) -> NoReturn:
        raise VortaError(f"{name}: not for {type(self).__name__}; {reason}")

    refuse.__name__ = name
    refuse.__doc__ = f"Refused: {reason}."
    return refuse


class Refusals:
    """Comes before diffusers' classes among the bases."""

    load_lora_adapter = _refused("load_lora_adapter", _LORA)
    save_lora_adapter = _refused("save_lora_adapter", _LORA)
    add_adapter = _refused("add_adapter", _LORA)
    set_adapter = _refused("set_adapter", _LORA)
    set_adapters = _refused("set_adapters", _LORA)
    fuse_lora = _refused("fuse_lora", _LORA)
    unfuse_lora = _refused("unfuse_lora", _LORA)
    enable_lora = _refused("enable_lora", _LORA)
    disable_lora = _refused("disable_lora", _LORA)
    save_pretrained = _refused("save_pretrained", _SAVE)
    push_to_hub = _refused("push_to_hub", _SAVE)
    set_attention_backend = _refused("set_attention_backend", _ATTENTION)
    set_attn_processor = _refused("set_attn_processor", _ATTENTION)
    fuse_qkv_projections = _refused("fuse_qkv_projections", _ATTENTION)
    enable_xformers_memory_efficient_attention = _refused("enable_xformers_memory_efficient_attention", _ATTENTION)
    enable_group_offload = _refused("enable_group_offload", _GROUPS)
    enable_layerwise_casting = _refused("enable_layerwise_casting", _FIXED)
    enable_parallelism = _refused("enable_parallelism", _FIXED)
