# SPDX-License-Identifier: Apache-2.0
"""The authors' names of tensors, written independently of diffusers' converters, since the tests check those."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

_WAN_TOP = {
    "condition_embedder.time_embedder.linear_1": "time_embedding.0",
    "condition_embedder.time_embedder.linear_2": "time_embedding.2",
    "condition_embedder.text_embedder.linear_1": "text_embedding.0",
    "condition_embedder.text_embedder.linear_2": "text_embedding.2",
    "condition_embedder.time_proj": "time_projection.1",
    "condition_embedder.image_embedder.norm1": "img_emb.proj.0",
    "condition_embedder.image_embedder.ff.net.0.proj": "img_emb.proj.1",
    "condition_embedder.image_embedder.ff.net.2": "img_emb.proj.3",
    "condition_embedder.image_embedder.norm2": "img_emb.proj.4",
    "condition_embedder.image_embedder.pos_embed": "img_emb.emb_pos",
    "patch_embedding": "patch_embedding",
    "proj_out": "head.head",
    "scale_shift_table": "head.modulation",
}
_WAN_BLOCK = {
    "attn1": "self_attn",
    "attn2": "cross_attn",
    "norm2": "norm3",
    "ffn.net.0.proj": "ffn.0",
    "ffn.net.2": "ffn.2",
    "scale_shift_table": "modulation",
}
_WAN_ATTENTION = {
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "o",
    "norm_q": "norm_q",
    "norm_k": "norm_k",
    "add_k_proj": "k_img",
    "add_v_proj": "v_img",
    "norm_added_k": "norm_k_img",
}


def wan(name: str) -> str:
    """The authors' name of a tensor of diffusers' Wan."""
    stem, _, leaf = name.rpartition(".")
    if leaf not in ("weight", "bias"):
        stem, leaf = name, ""
    end = f".{leaf}" if leaf else ""
    if not stem.startswith("blocks."):
        return _WAN_TOP[stem] + end
    number, part = stem.removeprefix("blocks.").split(".", 1)
    if part.startswith("attn"):
        attention, inner = part.split(".", 1)
        return f"blocks.{number}.{_WAN_BLOCK[attention]}.{_WAN_ATTENTION[inner]}{end}"
    return f"blocks.{number}.{_WAN_BLOCK[part]}{end}"


_HUNYUAN_TOP = {
    "x_embedder.proj": "img_in.proj",
    "time_text_embed.timestep_embedder.linear_1": "time_in.mlp.0",
    "time_text_embed.timestep_embedder.linear_2": "time_in.mlp.2",
    "time_text_embed.guidance_embedder.linear_1": "guidance_in.mlp.0",
    "time_text_embed.guidance_embedder.linear_2": "guidance_in.mlp.2",
    "time_text_embed.text_embedder.linear_1": "vector_in.in_layer",
    "time_text_embed.text_embedder.linear_2": "vector_in.out_layer",
    "context_embedder.time_text_embed.timestep_embedder.linear_1": "txt_in.t_embedder.mlp.0",
    "context_embedder.time_text_embed.timestep_embedder.linear_2": "txt_in.t_embedder.mlp.2",
    "context_embedder.time_text_embed.text_embedder.linear_1": "txt_in.c_embedder.linear_1",
    "context_embedder.time_text_embed.text_embedder.linear_2": "txt_in.c_embedder.linear_2",
    "context_embedder.proj_in": "txt_in.input_embedder",
    "proj_out": "final_layer.linear",
}
_HUNYUAN_PARTS = {  # by the stack's name in diffusers: the authors' stack, and the parts of a block
    "context_embedder.token_refiner.refiner_blocks": (
        "txt_in.individual_token_refiner.blocks",
        {
            "norm1": "norm1",
            "norm2": "norm2",
            "attn.to_out.0": "self_attn_proj",
            "ff.net.0.proj": "mlp.fc1",
            "ff.net.2": "mlp.fc2",
            "norm_out.linear": "adaLN_modulation.1",
        },
    ),
    "transformer_blocks": (
        "double_blocks",
        {
            "norm1.linear": "img_mod.linear",
            "norm1_context.linear": "txt_mod.linear",
            "attn.norm_q": "img_attn_q_norm",
            "attn.norm_k": "img_attn_k_norm",
            "attn.to_out.0": "img_attn_proj",
            "attn.norm_added_q": "txt_attn_q_norm",
            "attn.norm_added_k": "txt_attn_k_norm",
            "attn.to_add_out": "txt_attn_proj",
            "ff.net.0.proj": "img_mlp.fc1",
            "ff.net.2": "img_mlp.fc2",
            "ff_context.net.0.proj": "txt_mlp.fc1",
            "ff_context.net.2": "txt_mlp.fc2",
        },
    ),
    "single_transformer_blocks": (
        "single_blocks",
        {
            "norm.linear": "modulation.linear",
            "attn.norm_q": "q_norm",
            "attn.norm_k": "k_norm",
            "proj_out": "linear2",
        },
    ),
}
_JOINED = {  # by the authors' name: the parts in diffusers that it holds, one below the other
    "txt_in.individual_token_refiner.blocks": {"self_attn_qkv": ("attn.to_q", "attn.to_k", "attn.to_v")},
    "double_blocks": {
        "img_attn_qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
        "txt_attn_qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    },
    "single_blocks": {"linear1": ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")},
}


def hunyuan_video(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """diffusers' HunyuanVideo in the authors' layout: products of one input joined, the last norm's halves swapped."""
    stored: dict[str, Tensor] = {}
    for name, tensor in state.items():
        stem, _, leaf = name.rpartition(".")
        if stem in _HUNYUAN_TOP:
            stored[f"{_HUNYUAN_TOP[stem]}.{leaf}"] = tensor
        elif stem == "norm_out.linear":  # scale, shift -> shift, scale
            stored[f"final_layer.adaLN_modulation.1.{leaf}"] = torch.cat(tensor.chunk(2)[::-1])
        else:
            stack = next(stack for stack in _HUNYUAN_PARTS if stem.startswith(f"{stack}."))
            number, part = stem.removeprefix(f"{stack}.").split(".", 1)
            theirs, parts = _HUNYUAN_PARTS[stack]
            if part in parts:
                stored[f"{theirs}.{number}.{parts[part]}.{leaf}"] = tensor
                continue
            joined, members = next(item for item in _JOINED[theirs].items() if part in item[1])
            if part == members[0]:
                rows = [state[f"{stack}.{number}.{member}.{leaf}"] for member in members]
                stored[f"{theirs}.{number}.{joined}.{leaf}"] = torch.cat(rows)
    return stored
