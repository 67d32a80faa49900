# SPDX-License-Identifier: Apache-2.0
"""FLOPs of a transformer step outside the routed self-attention, counted from the diffusers config.

Source: a matrix product [m, k] x [k, n] has 2 m k n FLOPs, a multiplication and an addition per term (Kaplan et al.
2020, arXiv 2001.08361, section 2.1); attention of m queries over k keys with N heads of D channels is two such
products, 4 m k N D. The family counts the layers of its diffusers model, this file adds the routers. Norms,
activations, softmax, rotary embedding and sums are left out, as in every such count; the routed self-attention itself
(QK^T and PV) is `AttentionGeometry.attention_flops`.

Letters: S video tokens, T padded text tokens, N heads. All figures are for one sample and one step.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vorta_trt.model.families import get_family
from vorta_trt.model.families.family import linear_flops
from vorta_trt.model.geometry import AttentionGeometry
from vorta_trt.model.router import BRANCHES


def other_flops(
    family: str, config: Mapping[str, Any], geometry: AttentionGeometry, *, has_router: bool = True
) -> dict[str, int]:
    """FLOPs of all that routing leaves as it is, by part.

    Args:
        family: name of the model family.
        config: config of the diffusers transformer.
        geometry: geometry of the attention, which has S and T.
        has_router: whether the routers are counted.

    Returns:
        "projections" (query, key, value and output of the self-attention), "feed_forward", "cross_attention" (with its
        projections; 0 if there is none), "conditioning" (timestep, text, modulation, routers) and "patches" (in and
        out).

    Raises:
        ValueError: unknown family.
    """
    facts = get_family(family)
    counts = facts.other_flops(config, geometry.video_tokens, geometry.text_tokens)
    if has_router:
        heads = config["num_attention_heads"]
        dim = heads * config["attention_head_dim"]
        counts["conditioning"] += sum(facts.stacks(config).values()) * linear_flops(1, dim, BRANCHES * heads)
    return counts
