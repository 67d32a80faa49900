# SPDX-License-Identifier: Apache-2.0
"""`RankInput`: a model that is exported once for all ranks, its rank and its heads being inputs of the graph.

It stands in the place of `Ranks` while a model is traced. All ranks run the same graph: which rows of the tokens are
this rank's is computed from the input `rank`, and rank p computes the heads that the input `head_orders` [L, N] has
from p * N / P on.

Letters: P ranks, B batch, S video tokens, T text tokens, R rows of a shard, N heads, L layers.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from vorta_trt.model.constants import HEAD_ORDERS, RANK
from vorta_trt.model.geometry import AttentionGeometry
from vorta_trt.model.operator import Attention
from vorta_trt.model.parallel.placement import check_ranks
from vorta_trt.model.parallel.shards import TokenShards
from vorta_trt.model.parallel.ulysses_attention import gather_tokens, ulysses_attention


@dataclass(frozen=True)
class InputShards(TokenShards):
    """`TokenShards` whose rank is an input of the graph. Rows of padding repeat the last token; nobody reads them.

    How many of a rank's rows are first tokens depends on the rank, and no operator takes that number as an input. But
    only one rank has both first tokens and others, and its number of first tokens is a constant. So every rank cuts its
    rows at that number, and only the modulations of the two parts change from rank to rank: on lower ranks both parts
    take that of the first tokens, on higher ranks both take that of the others.

    Attributes:
        input: The rank, int32 [1].
        text: T.
    """

    input: Tensor | None = None
    text: int = 0

    @property
    def count(self) -> int:
        """Not known while the graph is made."""
        raise NotImplementedError("the rank is an input of the graph")

    def own(self, tokens: Tensor) -> Tensor:
        """This rank's rows of [B, S + T, ...], and the rows after S: [B, R + T, ...]."""
        assert self.input is not None
        rows = self.input * self.rows + torch.arange(self.rows, dtype=torch.int32, device=tokens.device)  # [R]
        rows = rows.clamp(max=self.tokens - 1)
        if behind := tokens.shape[1] - self.tokens:
            behind_rows = torch.arange(self.tokens, self.tokens + behind, dtype=torch.int32, device=tokens.device)
            rows = torch.cat((rows, behind_rows))  # [R + T]
        return tokens.index_select(1, rows)

    def first_tokens(self, count: int) -> int:
        """After how many rows the modulation changes on the rank that has both kinds of tokens."""
        return count - self._meeting(count) * self.rows

    def of_first(self, count: int, first: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
        """See `TokenShards`; the input `rank` chooses the modulations.

        Raises:
            ValueError: A rank has first tokens alone, and text rows follow them, which are never first tokens.
        """
        assert self.input is not None
        if (meeting := self._meeting(count)) and self.text:
            raise ValueError(
                f"ulysses {self.ranks}: the first {count} of {self.tokens} tokens, which have a timestep of their own, "
                f"would fill {meeting} of {self.ranks} GPUs, and text tokens, which follow on each, have the other "
                f"timestep; export for at most {self.tokens // count} GPUs, the frames of the latents"
            )
        return torch.where(self.input <= meeting, first, others), torch.where(self.input < meeting, first, others)

    def _meeting(self, count: int) -> int:
        """The rank that has the last of the first tokens; lower ranks have first tokens alone."""
        return (count - 1) // self.rows


@dataclass(frozen=True)
class RankInput:
    """The `parallel` of a model that is traced for P ranks.

    Attributes:
        ranks: P.
        model: The model, whose buffers named in `constants.RANK_INPUTS` are the inputs.
    """

    ranks: int
    model: nn.Module

    @classmethod
    def install(cls, model: Any, ranks: int) -> None:
        """Prepares a model for being traced for P ranks: gives it the buffers and a `RankInput` as its `parallel`.

        Args:
            model: A `RoutedTransformer`; a copy that is made for the export.
            ranks: P.

        Raises:
            ValueError: P does not divide the heads.
        """
        check_ranks(model.num_heads, ranks)
        orders = torch.arange(model.num_heads, dtype=torch.int32).expand(model.num_layers, -1)
        model.register_buffer(RANK, torch.zeros(1, dtype=torch.int32), persistent=False)
        model.register_buffer(HEAD_ORDERS, orders.clone(), persistent=False)
        model.parallel = cls(ranks, model)

    def shards(self, geometry: AttentionGeometry) -> TokenShards:
        """Which video tokens this rank has."""
        rank: Tensor = getattr(self.model, RANK)
        return InputShards(geometry.video_tokens, self.ranks, input=rank, text=geometry.text_tokens)

    def attentions(
        self, routes: Tensor, geometry: AttentionGeometry, attention_precision: str, **tokens: Any
    ) -> list[Attention]:
        """The attention functions of all blocks; arguments are those of `Ranks.attentions`."""
        orders: Tensor = getattr(self.model, HEAD_ORDERS)
        options = {"attention_precision": attention_precision, **tokens}
        return [
            partial(
                ulysses_attention,
                routes=routes[layer],
                head_order=orders[layer],
                geometry=geometry,
                ranks=self.ranks,
                **options,
            )
            for layer in range(routes.shape[0])
        ]

    def whole(self, rows: Tensor, geometry: AttentionGeometry) -> Tensor:
        """Gathers the shards of all ranks: [B, R, C] -> [B, S, C]."""
        return gather_tokens(rows, geometry.video_tokens, self.ranks)
