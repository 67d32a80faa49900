# SPDX-License-Identifier: Apache-2.0
"""FLOPs of a transformer step outside the routed self-attention, counted from the diffusers config.

Source: a matrix product [m, k] x [k, n] has 2 m k n FLOPs, a multiplication and an addition per term (Kaplan et al.
2020, arXiv 2001.08361, section 2.1); attention of m queries over k keys with N heads of D channels is two such
products, 4 m k N D. The layers are those of diffusers' WanTransformer3DModel and HunyuanVideoTransformer3DModel, with
the routers. Norms, activations, softmax, rotary embedding and sums are left out, as in every such count; the routed
self-attention itself (QK^T and PV) is `AttentionGeometry.attention_flops`.

Letters: S video tokens, T padded text tokens, E = N * D inner dimension, N heads, X text tokens of Wan's
cross-attention. All figures are for one sample and one step.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from vorta_trt.model.geometry import AttentionGeometry
from vorta_trt.model.router import BRANCHES

FREQUENCIES = 256  # channels of HunyuanVideo's sinusoidal embeddings; Wan's config has its own freq_dim
REFINER_MLP_RATIO = 4  # of HunyuanVideo's token refiner, whatever the config's mlp_ratio


def other_flops(
    family: str, config: Mapping[str, Any], geometry: AttentionGeometry, *, has_router: bool = True
) -> dict[str, int]:
    """FLOPs of all that routing leaves as it is, by part.

    Args:
        family: "wan" or "hunyuan_video". config: of the diffusers transformer. geometry: for S and T.
        has_router: count the routers.

    Returns:
        "projections" (query, key, value and output of the self-attention), "feed_forward", "cross_attention" (Wan's,
        with its projections), "conditioning" (timestep, text, modulation, routers) and "patches" (in and out).

    Raises:
        ValueError: unknown family.
    """
    counts = {"wan": _wan, "hunyuan_video": _hunyuan_video}
    if family not in counts:
        raise ValueError(f"family {family!r}: must be one of {', '.join(map(repr, counts))}")
    return counts[family](config, geometry, has_router)


def _linear(rows: int, inputs: int, outputs: int) -> int:
    return 2 * rows * inputs * outputs


def _attention(queries: int, keys: int, dim: int) -> int:
    return 4 * queries * keys * dim


def _mlp(rows: int, inputs: int, hidden: int, outputs: int) -> int:
    return _linear(rows, inputs, hidden) + _linear(rows, hidden, outputs)


def _wan(config: Mapping[str, Any], geometry: AttentionGeometry, has_router: bool) -> dict[str, int]:
    from vorta_trt.model.wan import TEXT_SEQUENCE

    video, text = geometry.video_tokens, TEXT_SEQUENCE
    heads, layers = config["num_attention_heads"], config["num_layers"]
    dim = heads * config["attention_head_dim"]
    voxels = math.prod(config["patch_size"])
    outputs = config["out_channels"] or config["in_channels"]
    cross = (
        2 * _linear(video, dim, dim)  # query, output
        + 2 * _linear(text, dim, dim)  # key, value
        + _attention(video, text, dim)
    )
    conditioning = (
        _mlp(1, config["freq_dim"], dim, dim)  # timestep
        + _linear(1, dim, 6 * dim)  # modulation, shared by the layers
        + _mlp(text, config["text_dim"], dim, dim)
        + layers * has_router * _linear(1, dim, BRANCHES * heads)
    )
    return {
        "projections": layers * 4 * _linear(video, dim, dim),
        "feed_forward": layers * _mlp(video, dim, config["ffn_dim"], dim),
        "cross_attention": layers * cross,
        "conditioning": conditioning,
        "patches": _linear(video, config["in_channels"] * voxels, dim) + _linear(video, dim, outputs * voxels),
    }


def _hunyuan_video(config: Mapping[str, Any], geometry: AttentionGeometry, has_router: bool) -> dict[str, int]:
    video, text, tokens = geometry.video_tokens, geometry.text_tokens, geometry.tokens
    heads, dual, single = config["num_attention_heads"], config["num_layers"], config["num_single_layers"]
    dim = heads * config["attention_head_dim"]
    hidden = int(dim * config["mlp_ratio"])
    voxels = config["patch_size_t"] * config["patch_size"] ** 2
    text_dim = config["text_embed_dim"]
    timestep = _mlp(1, FREQUENCIES, dim, dim)
    refiner = (
        timestep
        + _mlp(1, text_dim, dim, dim)  # the mean text token
        + _linear(text, text_dim, dim)
        + config["num_refiner_layers"]
        * (
            4 * _linear(text, dim, dim)
            + _attention(text, text, dim)
            + _mlp(text, dim, REFINER_MLP_RATIO * dim, dim)
            + _linear(1, dim, 2 * dim)
        )
    )
    modulation = dual * 2 * _linear(1, dim, 6 * dim) + single * _linear(1, dim, 3 * dim) + _linear(1, dim, 2 * dim)
    conditioning = (
        timestep
        + bool(config["guidance_embeds"]) * timestep
        + _mlp(1, config["pooled_projection_dim"], dim, dim)
        + refiner
        + modulation
        + (dual + single) * has_router * _linear(1, dim, BRANCHES * heads)
    )
    # A single-stream block has one output matrix for attention and feed forward; each part has its own rows of it.
    return {
        "projections": (dual + single) * 4 * _linear(tokens, dim, dim),
        "feed_forward": (dual + single) * _mlp(tokens, dim, hidden, dim),
        "cross_attention": 0,
        "conditioning": conditioning,
        "patches": _linear(video, config["in_channels"] * voxels, dim)
        + _linear(video, dim, config["out_channels"] * voxels),
    }
