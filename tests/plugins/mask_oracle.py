# SPDX-License-Identifier: Apache-2.0
"""Routed attention by brute force: a dense mask of every query and key, in float64.

It is written from DESIGN's text alone, token by token, and shares no code with the package or kernel_oracle.py: no
blocks, no groups, no lists. It needs memory for all logits, so it is for small grids.

Letters: S video tokens, T padded text tokens, L = S + T, N heads, D head dim.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

Triple = tuple[int, int, int]


@dataclass(frozen=True)
class Pattern:
    """The geometry of one problem, none of whose sizes has to divide another."""

    grid: Triple
    tile: Triple
    window: Triple
    bucket: Triple
    keep: int
    text: int = 0

    @property
    def video(self) -> int:
        return math.prod(self.grid)

    def coordinates(self, device: torch.device | str = "cpu") -> Tensor:
        """Frame, row and column of every video token, [S, 3]."""
        token = torch.arange(self.video, device=device)
        _, height, width = self.grid
        return torch.stack([token // (height * width), token // width % height, token % width], 1)


def sliding_mask(pattern: Pattern, device: torch.device | str = "cpu") -> Tensor:
    """Which video keys a video query of a sliding head sees, [S, S]."""
    mask = torch.ones(pattern.video, pattern.video, dtype=torch.bool, device=device)
    for axis, place in enumerate(pattern.coordinates(device).T):
        tile = place // pattern.tile[axis]  # [S]
        tiles = math.ceil(pattern.grid[axis] / pattern.tile[axis])
        reach = pattern.window[axis] // 2
        if pattern.window[axis] >= tiles:
            continue
        centre = tile.clamp(reach, tiles - 1 - reach)
        mask &= (tile[None, :] - centre[:, None]).abs() <= reach
    return mask


@dataclass(frozen=True)
class Coreset:
    """What the coresets of all heads have in common, for every token.

    Attributes:
        bucket: Number of the token's bucket, [S].
        centre: Token id of its bucket's centre, [S].
        keep: Number of tokens that its bucket keeps, [S].
    """

    bucket: Tensor
    centre: Tensor
    keep: Tensor


def coreset_of(pattern: Pattern, device: torch.device | str = "cpu") -> Coreset:
    place = pattern.coordinates(device)  # [S, 3]
    whole, grid = (torch.tensor(entries, device=device) for entries in (pattern.bucket, pattern.grid))
    index = place // whole  # [S, 3]
    counts = [math.ceil(pattern.grid[axis] / pattern.bucket[axis]) for axis in range(3)]
    extent = torch.minimum(whole, grid - index * whole)  # [S, 3] of the token's bucket
    centre = index * whole + extent // 2
    return Coreset(
        bucket=(index[:, 0] * counts[1] + index[:, 1]) * counts[2] + index[:, 2],
        centre=(centre[:, 0] * pattern.grid[1] + centre[:, 1]) * pattern.grid[2] + centre[:, 2],
        keep=(extent.prod(1) * pattern.keep // math.prod(pattern.bucket)).clamp(min=1),
    )


def similarities(pattern: Pattern, tokens: Tensor) -> Tensor:
    """Cosine of every video token with its bucket's centre, [N, S, D] -> [N, S]; infinite where NaN leaves none."""
    unit = tokens.double()
    unit = unit / unit.norm(dim=-1, keepdim=True).clamp(min=1e-12)
    similarity: Tensor = (unit * unit[:, coreset_of(pattern, tokens.device).centre]).sum(-1)
    return similarity.masked_fill(similarity.isnan(), math.inf)


def kept_tokens(pattern: Pattern, tokens: Tensor) -> Tensor:
    """Whether a head keeps a token, from its video tokens: [N, S, D] -> bool [N, S].

    A bucket keeps its centre and the tokens least similar to it; among equals, those with the lower token ids. A token
    without a similarity, because of NaN, is the first to be dropped.
    """
    coreset = coreset_of(pattern, tokens.device)
    similarity = similarities(pattern, tokens)  # [N, S]
    token = torch.arange(pattern.video, device=tokens.device)
    is_centre = token == coreset.centre  # [S]
    same = (coreset.bucket[:, None] == coreset.bucket[None, :]) & ~is_centre[:, None]  # [S, S] rivals, tokens
    lower = token[:, None] < token[None, :]  # [S, S]
    rival, own = similarity[:, :, None], similarity[:, None, :]  # [N, S, 1], [N, 1, S]
    rank = (same & ((rival < own) | ((rival == own) & lower))).sum(1)  # [N, S]
    return is_centre | (rank < coreset.keep - 1)


def routed_mask(
    pattern: Pattern, route: int, text_length: int, kept_keys: Tensor | None = None, device: torch.device | str = "cpu"
) -> Tensor:
    """Which tokens a query sees, [L, L]; rows of padded text see nothing, and nobody sees those columns.

    Args:
        pattern: The geometry.
        route: 1 is coreset, 2 is sliding, all others are full.
        text_length: Valid text tokens.
        kept_keys: Video keys of a coreset head, [S].
        device: Where the mask is wanted.
    """
    video, length = pattern.video, pattern.video + pattern.text
    mask = torch.ones(length, length, dtype=torch.bool, device=device)
    if route == 2:
        mask[:video, :video] = sliding_mask(pattern, device)
    elif route == 1:
        assert kept_keys is not None
        mask[:, :video] = kept_keys
    mask[video + text_length :] = False
    mask[:, video + text_length :] = False
    return mask


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float) -> Tensor:
    """softmax(Q K^T * scale) V of the visible keys in float64, 0 where none is: [..., L, D] and [..., L, L]."""
    logits = (query.double() @ key.double().transpose(-1, -2) * scale).masked_fill(~mask, -math.inf)
    weights = torch.softmax(logits, -1).masked_fill(~mask, 0.0)
    return weights @ value.double()


def routed(
    pattern: Pattern,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    route: int,
    text_length: int = 0,
    coreset_keys: str = "query",
    scale: float | None = None,
) -> Tensor:
    """Output of one head in float64, all of whose inputs are finite: [L, D] each."""
    video = pattern.video
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    if route != 1:
        return attend(query, key, value, routed_mask(pattern, route, text_length, device=query.device), scale)
    kept_queries = kept_tokens(pattern, query[None, :video])[0]
    kept_keys = kept_tokens(pattern, key[None, :video])[0] if coreset_keys == "key" else kept_queries
    output = attend(query, key, value, routed_mask(pattern, route, text_length, kept_keys, query.device), scale)
    centre = coreset_of(pattern, query.device).centre
    output[:video] = torch.where(kept_queries[:, None], output[:video], output[centre])
    return output
