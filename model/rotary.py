# SPDX-License-Identifier: Apache-2.0
"""Rotary position embedding of neighbouring pairs, in a form that exports well.

Letters: B batch, S tokens, N heads, D head dim.
"""

from __future__ import annotations

import torch
from torch import Tensor


def rotate(tokens: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of neighbouring pairs: tokens [B, S, N, D], cos and sin [1, S, 1, D/2] -> [B, S, N, D].

    It uses stack and flatten where diffusers assigns to slices: the same numbers, without a scatter in the exported
    graph.
    """
    even, odd = tokens.unflatten(-1, (-1, 2)).unbind(-1)  # [B, S, N, D/2]
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2).type_as(tokens)


def half_tables(cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """One value per pair from diffusers' tables, which hold each twice: [1, S, 1, D] -> [1, S, 1, D/2]."""
    return cos[..., 0::2].contiguous(), sin[..., 1::2].contiguous()


def with_fixed_tokens(cos: Tensor, sin: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The tables [1, S, 1, D/2] with `count` tokens more, rotated by an angle of 0, which changes no bit."""
    missing = (1, count, 1, cos.shape[3])
    return torch.cat((cos, cos.new_ones(missing)), dim=1), torch.cat((sin, sin.new_zeros(missing)), dim=1)
