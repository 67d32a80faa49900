# SPDX-License-Identifier: Apache-2.0
"""The config of a HunyuanVideo transformer, read off the shapes of its weights under diffusers' names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_SINGLE = "single_transformer_blocks"
_REFINER = "context_embedder.token_refiner.refiner_blocks"


def original_config(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """See `ModelFamily.original_config`; KeyError names a tensor that every such model has.

    The two models of 16 channels, text to video and image to video by token replacement, have the same tensors; these
    are taken for text to video. A diffusers config.json beside the file says otherwise.

    Args:
        shapes: Shapes of the tensors, by diffusers' names.

    Raises:
        ValueError: There are no single-stream blocks.
    """
    if _blocks(shapes, _SINGLE) == 0:
        raise ValueError("no single-stream blocks, as in version 1.5, for which diffusers has no converter")
    inner, channels, patch_time, patch, _ = shapes["x_embedder.proj.weight"]
    head_dim = shapes[f"{_SINGLE}.0.attn.norm_q.weight"][0]
    outputs = shapes["proj_out.weight"][0] // (patch_time * patch * patch)
    return {
        "in_channels": channels,
        "out_channels": outputs,
        "num_attention_heads": inner // head_dim,
        "attention_head_dim": head_dim,
        "num_layers": _blocks(shapes, "transformer_blocks"),
        "num_single_layers": _blocks(shapes, _SINGLE),
        "num_refiner_layers": _blocks(shapes, _REFINER),
        "mlp_ratio": shapes[f"{_SINGLE}.0.proj_mlp.weight"][0] / inner,
        "patch_size": patch,
        "patch_size_t": patch_time,
        "guidance_embeds": "time_text_embed.guidance_embedder.linear_1.weight" in shapes,
        "text_embed_dim": shapes["context_embedder.proj_in.weight"][1],
        "pooled_projection_dim": shapes["time_text_embed.text_embedder.linear_1.weight"][1],
        "image_condition_type": None if channels == outputs else "latent_concat",
    }


def _blocks(shapes: Mapping[str, tuple[int, ...]], stack: str) -> int:
    """The length of a list of blocks."""
    numbers = [int(name[len(stack) + 1 :].split(".")[0]) for name in shapes if name.startswith(f"{stack}.")]
    return 1 + max(numbers, default=-1)
