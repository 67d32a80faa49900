# SPDX-License-Identifier: Apache-2.0
"""`TokenShards`: which video tokens a rank has.

Letters: P ranks, B batch, S video tokens, T text tokens, R rows of a shard.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class TokenShards:
    """S video tokens in P contiguous shards of R = ceil(S / P) rows; the last ones are filled up with padding.

    Attributes:
        tokens: S.
        ranks: P; with 1 nothing is cut and nothing is copied.
        rank: The rank whose shard this is.
    """

    tokens: int
    ranks: int = 1
    rank: int = 0

    @property
    def rows(self) -> int:
        """R, rows of every shard, padding included."""
        return -(-self.tokens // self.ranks)

    @cached_property
    def counts(self) -> tuple[int, ...]:
        """Video tokens of every rank, without padding; a rank may have none."""
        return tuple(min(max(self.tokens - rank * self.rows, 0), self.rows) for rank in range(self.ranks))

    @property
    def count(self) -> int:
        """Video tokens of this rank, without padding."""
        return self.counts[self.rank]

    def own(self, tokens: Tensor) -> Tensor:
        """This rank's rows of [B, S + T, ...], zeros where it has none, and the rows after S: [B, R + T, ...]."""
        if self.ranks == 1:
            return tokens
        begin = min(self.rank * self.rows, self.tokens)
        rows, behind = tokens[:, begin : begin + self.count], tokens[:, self.tokens :]
        if missing := self.rows - self.count:
            rows = functional.pad(rows, (0, 0) * (tokens.ndim - 2) + (0, missing))
        return torch.cat((rows, behind), dim=1) if behind.shape[1] else rows.contiguous()

    def first_tokens(self, count: int) -> int:
        """How many of the first `count` video tokens are among the rows of this rank."""
        return min(max(count - self.rank * self.rows, 0), self.count)

    def of_first(self, count: int, first: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
        """The modulations of the first `first_tokens(count)` rows, and of the rows after them.

        Args:
            count: How many tokens, the first ones, have a modulation of their own.
            first: Modulation of the first tokens.
            others: Modulation of all other tokens, of the same shape.
        """
        return first, others
