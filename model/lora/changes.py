# SPDX-License-Identifier: Apache-2.0
"""The changes that LoRA files add to one parameter, in float32: strength * (alpha / rank) * up @ down, or a difference.

Tensors are read from the file when the parameter is, and dropped with it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

Read = Callable[[str], Tensor]


@dataclass(frozen=True)
class Span:
    """Rows of a parameter, and the rows of the file's tensor that are for them.

    Attributes:
        first: First row in the parameter.
        count: Number of rows.
        source: First row in the file's tensor.
    """

    first: int
    count: int
    source: int


class Change(Protocol):
    """Something that is added to a parameter."""

    def add_to(self, weight: Tensor) -> None:
        """Changes `weight` in place; it is contiguous and in float32 or float64."""


@dataclass(frozen=True)
class LowRank:
    """`scale * up @ down` on rows of a weight [outputs, inputs], or of a convolution's with its inputs flattened."""

    read: Read
    down: str
    up: str
    scale: float
    span: Span

    def add_to(self, weight: Tensor) -> None:
        span = self.span
        rows = weight.flatten(1)[span.first : span.first + span.count]  # [outputs, inputs], a view
        down = self.read(self.down).to(rows.dtype).flatten(1)  # [rank, inputs]
        up = self.read(self.up).to(rows.dtype).flatten(1)[span.source : span.source + span.count]  # [outputs, rank]
        rows.addmm_(up, down, alpha=self.scale)


@dataclass(frozen=True)
class Difference:
    """`scale * difference` on rows of a weight or a bias."""

    read: Read
    key: str
    scale: float
    span: Span

    def add_to(self, weight: Tensor) -> None:
        span = self.span
        rows = weight[span.first : span.first + span.count]
        difference = self.read(self.key).to(rows.dtype)[span.source : span.source + span.count]
        rows.add_(difference.reshape(rows.shape), alpha=self.scale)
