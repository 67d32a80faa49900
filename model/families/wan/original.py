# SPDX-License-Identifier: Apache-2.0
"""The config of a Wan transformer, read off the shapes of its weights under diffusers' names."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

HEAD_DIM = 128  # of every published model; the weights do not show it
_IMAGE = "condition_embedder.image_embedder."


def original_config(shapes: Mapping[str, tuple[int, ...]], theirs: Mapping[str, Any]) -> dict[str, Any]:
    """See `ModelFamily.original_config`; KeyError names a tensor that every such model has.

    Args:
        shapes: Shapes of the tensors, by diffusers' names.
        theirs: The authors' config.json, which alone knows the number of heads and eps; may be empty.
    """
    inner, channels, *patch = shapes["patch_embedding.weight"]
    layers = 1 + max(int(name.split(".")[1]) for name in shapes if name.startswith("blocks."))
    heads = int(theirs.get("num_heads", inner // HEAD_DIM))
    image, positions = shapes.get(f"{_IMAGE}norm1.weight"), shapes.get(f"{_IMAGE}pos_embed")
    added = shapes.get("blocks.0.attn2.add_k_proj.weight")
    return {
        "patch_size": patch,
        "num_attention_heads": heads,
        "attention_head_dim": inner // heads,
        "in_channels": channels,
        "out_channels": shapes["proj_out.weight"][0] // math.prod(patch),
        "text_dim": shapes["condition_embedder.text_embedder.linear_1.weight"][1],
        "freq_dim": shapes["condition_embedder.time_embedder.linear_1.weight"][1],
        "ffn_dim": shapes["blocks.0.ffn.net.0.proj.weight"][0],
        "num_layers": layers,
        "cross_attn_norm": "blocks.0.norm2.weight" in shapes,
        "qk_norm": "rms_norm_across_heads" if "blocks.0.attn1.norm_q.weight" in shapes else None,
        "eps": float(theirs.get("eps", 1e-6)),
        "image_dim": image and image[0],
        "added_kv_proj_dim": added and added[1],
        "pos_embed_seq_len": positions and positions[1],
    }
