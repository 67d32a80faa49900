# SPDX-License-Identifier: Apache-2.0
"""The authors' names of HunyuanVideo 1.5's modules; text refiner and most of a block are as in HunyuanVideo."""

from __future__ import annotations

from vorta_trt.model.families.authors import AuthorsNames, renamed
from vorta_trt.model.families.hunyuan_video.authors import DUAL_STREAM_BLOCK, ends_and_refiner

_MODEL = {
    "time_in.mlp.0": "time_embed.timestep_embedder.linear_1",
    "time_in.mlp.2": "time_embed.timestep_embedder.linear_2",
    "time_r_in.mlp.0": "time_embed.timestep_embedder_r.linear_1",
    "time_r_in.mlp.2": "time_embed.timestep_embedder_r.linear_2",
    "byt5_in.layernorm": "context_embedder_2.norm",
    "byt5_in.fc1": "context_embedder_2.linear_1",
    "byt5_in.fc2": "context_embedder_2.linear_2",
    "byt5_in.fc3": "context_embedder_2.linear_3",
    "vision_in.proj.0": "image_embedder.norm_in",
    "vision_in.proj.1": "image_embedder.linear_1",
    "vision_in.proj.3": "image_embedder.linear_2",
    "vision_in.proj.4": "image_embedder.norm_out",
    "cond_type_embedding": "cond_type_embed",
}
_BLOCK = {
    **DUAL_STREAM_BLOCK,
    "img_attn_q": "attn.to_q",
    "img_attn_k": "attn.to_k",
    "img_attn_v": "attn.to_v",
    "txt_attn_q": "attn.add_q_proj",
    "txt_attn_k": "attn.add_k_proj",
    "txt_attn_v": "attn.add_v_proj",
}


def authors_names(layers: int, refiner: int) -> AuthorsNames:
    """The authors' names of a model's modules.

    Args:
        layers: Number of dual-stream blocks.
        refiner: Number of layers of the token refiner.
    """
    names = renamed(_MODEL) | dict(ends_and_refiner(refiner))
    for layer in range(layers):
        names |= renamed(_BLOCK, f"double_blocks.{layer}.", f"transformer_blocks.{layer}.")
    return names
