# SPDX-License-Identifier: Apache-2.0
"""Which submodules of a model are compared when a verification looks for the place of a departure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vorta_trt.export import ModelMetadata

WAN_BLOCK = ("attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0", "attn2.to_out.0", "ffn")
# Their two results have no name of their own in the graph, so the dual-stream blocks themselves are not compared.
DUAL_STREAM_BLOCK = (
    *("attn.to_q", "attn.to_k", "attn.to_v", "attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    *("attn.to_out.0", "attn.to_add_out", "ff", "ff_context"),
)
SINGLE_STREAM_BLOCK = ("proj_mlp", "attn.to_q", "attn.to_k", "attn.to_v", "proj_out")


def compared_modules(metadata: ModelMetadata) -> list[str]:
    """Their names in the order of execution; the graph need not have all of them."""
    return list(_hunyuan_video(metadata) if metadata.family == "hunyuan_video" else _wan(metadata))


def _wan(metadata: ModelMetadata) -> Iterator[str]:
    yield "patch_embedding"
    yield from (f"condition_embedder.{name}" for name in ("time_embedder", "time_proj", "text_embedder"))
    for layer in range(metadata.num_layers):
        yield from (f"blocks.{layer}.{name}" for name in WAN_BLOCK)
        yield f"blocks.{layer}"
    yield "proj_out"


def _hunyuan_video(metadata: ModelMetadata) -> Iterator[str]:
    yield from (f"time_text_embed.{name}" for name in ("guidance_embedder", "text_embedder"))  # not all have the first
    yield "x_embedder"
    yield "context_embedder.proj_in"
    for layer in range(metadata.config["num_refiner_layers"]):
        yield f"context_embedder.token_refiner.refiner_blocks.{layer}"
    for layer in range(metadata.config["num_layers"]):
        yield from (f"transformer_blocks.{layer}.{name}" for name in DUAL_STREAM_BLOCK)
    for layer in range(metadata.config["num_single_layers"]):
        yield from (f"single_transformer_blocks.{layer}.{name}" for name in SINGLE_STREAM_BLOCK)
        yield f"single_transformer_blocks.{layer}"
    yield "norm_out"
    yield "proj_out"
