# SPDX-License-Identifier: Apache-2.0
"""Methods of diffusers' models that a compiled or routed transformer cannot support: each raises an error."""

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


_REFUSED = {
    _LORA: (
        *("load_lora_adapter", "save_lora_adapter", "add_adapter", "set_adapter", "set_adapters"),
        *("fuse_lora", "unfuse_lora", "enable_lora", "disable_lora"),
    ),
    _SAVE: ("save_pretrained", "push_to_hub"),
    _ATTENTION: (
        *("set_attention_backend", "set_attn_processor", "fuse_qkv_projections"),
        "enable_xformers_memory_efficient_attention",
    ),
    _GROUPS: ("enable_group_offload",),
    _FIXED: ("enable_layerwise_casting", "enable_parallelism"),
}


def _refusal(name: str, reason: str) -> Callable[..., NoReturn]:
    def refuse(self: Any, *arguments: Any, **options: Any) -> NoReturn:
        raise VortaError(f"{name}: not for {type(self).__name__}; {reason}")

    refuse.__name__, refuse.__doc__ = name, f"Refused: {reason}."
    return refuse


class Refusals:
    """Mixin with methods that refuse; it has to come before diffusers' classes among the bases."""


for _reason, _names in _REFUSED.items():
    for _name in _names:
        setattr(Refusals, _name, _refusal(_name, _reason))
