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
    """`TokenShards` of a rank that is an input. Rows of padding repeat the last token; nobody reads them.

    How many of the first tokens are here depends on the rank, and no operator takes that as an input. But on one rank
    alone both kinds of tokens meet, and how many of the first it has is a constant. So every rank cuts its rows there,
    and what changes from rank to rank is which modulation the two parts take: before that rank both take that of the
    first tokens, behind it both take that of the others.

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
        """This rank's rows of [B, S + T, ...], and the rows behind S: [B, R + T, ...]."""
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
        """See `TokenShards`; chosen by the rank.

        Raises:
            ValueError: Text rows follow, which are never of the first tokens, and a rank has no others.
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
        """The rank that has the last of the first tokens; those before it have no others."""
        return (count - 1) // self.rows


@dataclass(frozen=True)
class RankInput:
    """What a model that is traced for P ranks has as its `parallel`.

    Attributes:
        ranks: P.
        model: Whose buffers `constants.RANK_INPUTS` are the inputs.
    """

    ranks: int
    model: nn.Module

    @classmethod
    def install(cls, model: Any, ranks: int) -> None:
        """Makes a model one that is traced for P ranks: gives it the buffers, and itself as its `parallel`.

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
        """What the self-attentions of all blocks call; arguments are those of `Ranks.attentions`."""
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
