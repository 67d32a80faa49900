# SPDX-License-Identifier: Apache-2.0
"""The router: from the timestep embedding to a branch per head.

The router sees the timestep alone, so a schedule's routes are known before sampling.

Letters: B batch, N heads, L layers.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from vorta_trt.model.constants import ROUTER_DECIDES
from vorta_trt.model.geometry import Branch

BRANCHES = len(Branch)


class Router(nn.Module):
    """softmax(Linear(SiLU(temb))), always in float32.

    Its parameters are `linear.weight` [3 N, embedding_dim] and `linear.bias` [3 N], as in the published checkpoints.
    """

    def __init__(self, embedding_dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.linear = nn.Linear(embedding_dim, heads * BRANCHES, dtype=torch.float32)

    def forward(self, temb: Tensor) -> Tensor:
        """Gives float32 scores [B, N, 3] for temb [B, embedding_dim] of any float dtype."""
        weight, bias = self.linear.weight.float(), self.linear.bias.float()
        logits = functional.linear(functional.silu(temb.float()), weight, bias)  # [B, 3 N]
        return torch.softmax(logits.unflatten(1, (self.heads, BRANCHES)), dim=-1)  # [B, N, 3]


def check_tau(tau: float) -> float:
    """Gives a routing threshold as a float; ValueError unless it is finite."""
    if not math.isfinite(tau):
        raise ValueError(f"tau {tau}: must be a number; above 1 every head is full, use 2")
    return float(tau)


def hard_routes(scores: Tensor, tau: Tensor | float, override: Tensor | None = None) -> Tensor:
    """The branch of every head: the best score's, or full where the best is below `tau`.

    Comparisons instead of an argmax: ties go to the lower branch id in every runtime, and a score that is not a number
    means full attention.

    Args:
        scores: [..., N, 3].
        tau: Routing threshold, a number or a tensor [1]; above 1 every head is full.
        override: int32, broadcastable to [..., N]; where >= 0 it replaces the router's choice.

    Returns:
        int32 [..., N].
    """
    full, coreset, sliding = scores.unbind(-1)  # [..., N] each
    best = torch.maximum(torch.maximum(full, coreset), sliding)
    confident = best >= tau
    takes_sliding = confident & (sliding > full) & (sliding > coreset)
    takes_coreset = confident & (coreset > full) & (coreset >= sliding)
    routes = takes_coreset.to(torch.int32) * int(Branch.CORESET) + takes_sliding.to(torch.int32) * int(Branch.SLIDING)
    return routes if override is None else torch.where(override > ROUTER_DECIDES, override, routes)
