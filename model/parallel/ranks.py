# SPDX-License-Identifier: Apache-2.0
"""`Ranks`: the processes that one routed transformer is spread over, as `RoutedTransformer.parallelize` makes it.

Letters: P ranks, B batch, S video tokens, N heads, L layers, R rows of a shard.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, cast, get_args

import torch
import torch.distributed as dist
from torch import Tensor

from vorta_trt.model.geometry import AttentionGeometry
from vorta_trt.model.operator import Attention
from vorta_trt.model.parallel.attention import SAMPLE, Watch, sharded_attention, unwatched
from vorta_trt.model.parallel.exchange import gather_shards
from vorta_trt.model.parallel.exchange_choice import AUTO, LIBRARY, TORCH, Exchange, ExchangeChoice, choose_exchange
from vorta_trt.model.parallel.group_communicator import TIMEOUT
from vorta_trt.model.parallel.groups import Group, joined
from vorta_trt.model.parallel.placement import BranchCosts, Placement, check_costs, check_ranks, head_order
from vorta_trt.model.parallel.shards import TokenShards
from vorta_trt.plugins.operator_schema import AttentionPrecision


@dataclass
class Ranks:
    """The processes of a group, and what this one does among them.

    Attributes:
        group: P processes, each with the whole model.
        placement: How heads are given to ranks, see `placement.py`.
        watch: Makes the context managers that are entered around every exchange, for measurements.
        costs: Cost of a head in each branch; None takes those that follow from the geometry.
        choice: The chosen exchange, and why it was chosen.
        overlap: Whether exchanges run beside the attention of the other half of the heads.
    """

    group: dist.ProcessGroup
    placement: Placement = "balanced"
    watch: Watch = unwatched
    costs: BranchCosts | None = None
    choice: ExchangeChoice = ExchangeChoice(TORCH, "asked for")
    overlap: bool = False

    @classmethod
    def of(
        cls,
        group: Group,
        placement: str,
        heads: int,
        costs: BranchCosts | None = None,
        *,
        device: torch.device,
        exchange: str = AUTO,
        overlap: bool | None = None,
        timeout: float = TIMEOUT,
    ) -> Ranks:
        """Makes it from the arguments of `RoutedTransformer.parallelize`, which it checks.

        Raises:
            RuntimeError: There is no default group.
            TypeError: `group` is no process group.
            ValueError: This process is not in the group, the group was destroyed, N is no multiple of P, the placement
                is unknown, the costs are not valid, or the exchange is unknown or not possible.
            VortaError: See `choose_exchange`.
        """
        if costs is not None:
            check_costs(costs)
        if placement not in get_args(Placement):
            known = " or ".join(map(repr, get_args(Placement)))
            raise ValueError(f"placement {placement!r}: must be {known}; use 'balanced'")
        members = joined(group)
        check_ranks(heads, members.size())
        choice = choose_exchange(exchange, members, device, timeout)
        overlaps = choice.exchange == LIBRARY if overlap is None else overlap
        return cls(members, cast(Placement, placement), costs=costs, choice=choice, overlap=overlaps)

    @property
    def exchange(self) -> Exchange:
        """The chosen exchange: "library" or "torch"."""
        return self.choice.exchange

    def shards(self, geometry: AttentionGeometry) -> TokenShards:
        """Which video tokens this rank has."""
        return TokenShards(geometry.video_tokens, self.group.size(), self.group.rank())

    def attentions(
        self, routes: Tensor, geometry: AttentionGeometry, attention_precision: str, **tokens: Any
    ) -> list[Attention]:
        """The attention functions that the self-attentions of all blocks call.

        Args:
            routes: Int32 [L, B, N].
            geometry: Geometry of the tokens.
            attention_precision: "same" or "fp8"; see `routed_attention`.
            tokens: `text_length`, if there is text among the tokens.
        """
        communicator = self.choice.communicator
        if communicator is not None and routes.device != communicator.device:
            raise RuntimeError(
                f"parallelize was called on a model on {communicator.device}, which computes on {routes.device} now; "
                f"call it again after moving the model"
            )
        costs = self.costs or BranchCosts.of(geometry, cast(AttentionPrecision, attention_precision))
        orders = head_order(routes, costs, self.group.size(), self.placement)  # [L, N]
        options = {
            "attention_precision": attention_precision,
            "watch": self.watch,
            "communicator": communicator,
            "overlap": self.overlap,
            **tokens,
        }
        return [
            partial(
                sharded_attention, routes=of_layer, head_order=order, geometry=geometry, group=self.group, **options
            )
            for of_layer, order in zip(routes.unbind(0), orders.unbind(0), strict=True)
        ]

    def whole(self, rows: Tensor, geometry: AttentionGeometry) -> Tensor:
        """Gathers the shards of all ranks: [B, R, C] -> [B, S, C]."""
        with self.watch(SAMPLE):
            return gather_shards(rows, geometry.video_tokens, self.group)
