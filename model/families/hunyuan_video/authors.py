# SPDX-License-Identifier: Apache-2.0
"""The names that the authors of HunyuanVideo give its modules."""

from __future__ import annotations

from vorta_trt.model.families.authors import AuthorsNames, Rows, joined, renamed

_MODEL = {
    "time_in.mlp.0": "time_text_embed.timestep_embedder.linear_1",
    "time_in.mlp.2": "time_text_embed.timestep_embedder.linear_2",
    "vector_in.in_layer": "time_text_embed.text_embedder.linear_1",
    "vector_in.out_layer": "time_text_embed.text_embedder.linear_2",
    "guidance_in.mlp.0": "time_text_embed.guidance_embedder.linear_1",
    "guidance_in.mlp.2": "time_text_embed.guidance_embedder.linear_2",
}
_ENDS = {"img_in.proj": "x_embedder.proj", "final_layer.linear": "proj_out"}
_TEXT = {
    "txt_in.input_embedder": "context_embedder.proj_in",
    "txt_in.t_embedder.mlp.0": "context_embedder.time_text_embed.timestep_embedder.linear_1",
    "txt_in.t_embedder.mlp.2": "context_embedder.time_text_embed.timestep_embedder.linear_2",
    "txt_in.c_embedder.linear_1": "context_embedder.time_text_embed.text_embedder.linear_1",
    "txt_in.c_embedder.linear_2": "context_embedder.time_text_embed.text_embedder.linear_2",
}
_REFINER_BLOCK = {
    "norm1": "norm1",
    "norm2": "norm2",
    "self_attn_proj": "attn.to_out.0",
    "mlp.fc1": "ff.net.0.proj",
    "mlp.fc2": "ff.net.2",
    "adaLN_modulation.1": "norm_out.linear",
}
_REFINER_QKV = {"self_attn_qkv": ("attn.to_q", "attn.to_k", "attn.to_v")}
DUAL_STREAM_BLOCK = {
    "img_mod.linear": "norm1.linear",
    "img_attn_q_norm": "attn.norm_q",
    "img_attn_k_norm": "attn.norm_k",
    "img_attn_proj": "attn.to_out.0",
    "img_mlp.fc1": "ff.net.0.proj",
    "img_mlp.fc2": "ff.net.2",
    "txt_mod.linear": "norm1_context.linear",
    "txt_attn_q_norm": "attn.norm_added_q",
    "txt_attn_k_norm": "attn.norm_added_k",
    "txt_attn_proj": "attn.to_add_out",
    "txt_mlp.fc1": "ff_context.net.0.proj",
    "txt_mlp.fc2": "ff_context.net.2",
}
_DUAL_STREAM_QKV = {
    "img_attn_qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "txt_attn_qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
}
_SINGLE_STREAM_BLOCK = {
    "modulation.linear": "norm.linear",
    "q_norm": "attn.norm_q",
    "k_norm": "attn.norm_k",
    "linear2": "proj_out",
}
_SINGLE_STREAM_QKV_MLP = {"linear1": ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")}


def authors_names(dual: int, single: int, refiner: int) -> AuthorsNames:
    """The authors' names of a model's modules.

    Args:
        dual: Number of dual-stream blocks.
        single: Number of single-stream blocks.
        refiner: Number of layers of the token refiner.
    """
    names = renamed(_MODEL) | dict(ends_and_refiner(refiner))
    for layer in range(dual):
        theirs, ours = f"double_blocks.{layer}.", f"transformer_blocks.{layer}."
        names |= renamed(DUAL_STREAM_BLOCK, theirs, ours) | joined(_DUAL_STREAM_QKV, theirs, ours)
    for layer in range(single):
        theirs, ours = f"single_blocks.{layer}.", f"single_transformer_blocks.{layer}."
        names |= renamed(_SINGLE_STREAM_BLOCK, theirs, ours) | joined(_SINGLE_STREAM_QKV_MLP, theirs, ours)
    return names


def ends_and_refiner(refiner: int) -> AuthorsNames:
    """The names of the first and the last layer, and of the refiner of the prompt, which has that many layers."""
    names = renamed(_ENDS | _TEXT)
    # The authors' rows are shift and scale, diffusers' are scale and shift.
    names["final_layer.adaLN_modulation.1"] = (Rows("norm_out.linear", 1, 2), Rows("norm_out.linear", 0, 2))
    for layer in range(refiner):
        theirs = f"txt_in.individual_token_refiner.blocks.{layer}."
        ours = f"context_embedder.token_refiner.refiner_blocks.{layer}."
        names |= renamed(_REFINER_BLOCK, theirs, ours) | joined(_REFINER_QKV, theirs, ours)
    return names
