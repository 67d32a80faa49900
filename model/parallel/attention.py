# SPDX-License-Identifier: Apache-2.0
"""`sharded_attention`: routed attention of tokens that are sharded over ranks.

It has three steps: heads to ranks, the attention, tokens to ranks. torch.distributed exchanges (`exchange.py`), or the
library (`library_exchange.py`). With `overlap` the rank's heads are two halves, and the exchanges of one run beside the
attention of the other.

Letters: P ranks, B batch, S video tokens, T text tokens, N heads, n = N / P heads of a rank, D head dim, R rows of a
shard.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Protocol, TypeAlias

import torch
import torch.distributed as dist
from torch import Tensor

from vorta_trt.model.geometry import AttentionGeometry
from vorta_trt.model.operator import routed_attention
from vorta_trt.model.parallel.exchange import HeadExchange
from vorta_trt.model.parallel.group_communicator import GroupCommunicator
from vorta_trt.model.parallel.library_exchange import UlyssesCall
from vorta_trt.model.parallel.shards import TokenShards
from vorta_trt.plugins.operator_schema import SAME_PRECISION
from vorta_trt.plugins.ulysses_attention import Part

Watch: TypeAlias = Callable[[str], AbstractContextManager[object]]
"""Makes, from the name of an exchange, the context manager that is entered around it."""
HEADS, TOKENS, SAMPLE = "heads", "tokens", "sample"  # names of the exchanges


def unwatched(name: str) -> AbstractContextManager[object]:
    """Watches nothing."""
    return nullcontext()


@torch.compiler.disable  # type: ignore[untyped-decorator]
def sharded_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    routes: Tensor,
    head_order: Tensor,
    geometry: AttentionGeometry,
    group: dist.ProcessGroup,
    text_length: Tensor | None = None,
    scale: float | None = None,
    attention_precision: str = SAME_PRECISION,
    watch: Watch = unwatched,
    communicator: GroupCommunicator | None = None,
    overlap: bool = False,
) -> Tensor:
    """`routed_attention` of this rank's tokens over all tokens; every rank of the group calls it. It has no gradient.

    Args:
        query: [B, R + T, N, D]: the rows of this rank's shard (see `TokenShards`), and after them all text rows, which
            are the same on every rank.
        key: Keys, of the shape and dtype of `query`.
        value: Values, of the shape and dtype of `query`.
        routes: Int32 [B, N], of all heads; the same on every rank.
        head_order: Int64 [N], a permutation of the heads, the same on every rank; rank p computes those from p * n on.
        geometry: Geometry of all tokens.
        group: P processes; P divides N.
        text_length: Int32 [B], valid text tokens; see `routed_attention`.
        scale: Factor of the logits; None is 1/sqrt(D).
        attention_precision: "same" or "fp8"; see `routed_attention`.
        watch: Makes the context managers around the two exchanges, HEADS and TOKENS, or around four with `overlap`.
        communicator: The library's communicator of the same ranks, which then does the exchanges; None: `group` does
            them.
        overlap: Whether exchanges run beside the attention, if a rank has more than one head.

    Returns:
        [B, R + T, N, D]; rows of padding are 0.
    """
    output = torch.empty(query.shape, dtype=query.dtype, device=query.device)  # [B, R + T, N, D]
    tokens = (query, key, value)
    orders = halves(head_order, group.size()) if overlap else (head_order,)
    if communicator is None:
        shards = TokenShards(geometry.video_tokens, group.size(), group.rank())
        attended = (routes, geometry, text_length, scale, attention_precision)
        steps = [_TorchSteps(HeadExchange(group, shards, order), tokens, output, *attended) for order in orders]
        _run(steps, watch, query.device)
        return output
    calls = [
        UlyssesCall(
            *tokens, routes, order.int(), output, text_length, geometry, group.size(), scale, attention_precision
        )
        for order in orders
    ]
    with communicator.watched():
        _run([_LibrarySteps(call) for call in calls], watch, query.device)
    return output


def halves(head_order: Tensor, ranks: int) -> tuple[Tensor, ...]:
    """Head orders [about N / 2] of the first and second half of every rank's heads; one order for one head a rank."""
    by_rank = head_order.view(ranks, -1)  # [P, n]
    return tuple(half.reshape(-1) for half in by_rank.tensor_split(2, dim=1) if half.shape[1])


class _Steps(Protocol):
    """The three steps for some heads of a call."""

    def to_heads(self) -> None: ...
    def attend(self) -> None: ...
    def to_tokens(self) -> None: ...


@dataclass
class _TorchSteps:
    exchange: HeadExchange
    tokens: tuple[Tensor, Tensor, Tensor] | None  # first all heads of some tokens, then some heads of all tokens
    output: Tensor
    routes: Tensor
    geometry: AttentionGeometry
    text_length: Tensor | None
    scale: float | None
    attention_precision: str
    attended: Tensor | None = None

    def to_heads(self) -> None:
        assert self.tokens is not None
        self.tokens = self.exchange.to_heads(*self.tokens)  # [B, S + T, n, D] each

    def attend(self) -> None:
        routes = self.routes.index_select(1, self.exchange.own)  # [B, n]
        assert self.tokens is not None
        query, key, value = self.tokens
        self.attended = routed_attention(
            query, key, value, routes, self.geometry, self.text_length, self.scale, self.attention_precision
        )
        self.tokens = None

    def to_tokens(self) -> None:
        assert self.attended is not None
        self.exchange.to_tokens(self.attended, self.output)


@dataclass
class _LibrarySteps:
    call: UlyssesCall

    def to_heads(self) -> None:
        self.call.enqueue(Part.TO_HEADS)

    def attend(self) -> None:
        self.call.enqueue(Part.ATTEND)

    def to_tokens(self) -> None:
        self.call.enqueue(Part.TO_TOKENS)


def _run(calls: Sequence[_Steps], watch: Watch, device: torch.device) -> None:
    """Runs one call, or two whose exchanges are on a stream of their own."""
    first, *others = calls
    if device.type != "cuda" or not others:
        for call in calls:
            with watch(HEADS):
                call.to_heads()
        for call in calls:
            call.attend()
            with watch(TOKENS):
                call.to_tokens()
        return
    (second,) = others
    main, side = torch.cuda.current_stream(device), _side_stream(device)
    # Memory that one stream allocates and the other uses is freed when both are synchronised, or before the stream that
    # gets the memory next waits for the other.
    side.wait_stream(main)
    with watch(HEADS):
        first.to_heads()
    with torch.cuda.stream(side), watch(HEADS):
        second.to_heads()
    second_has_heads = side.record_event()
    first.attend()
    side.wait_stream(main)
    with torch.cuda.stream(side), watch(TOKENS):
        first.to_tokens()
    main.wait_event(second_has_heads)
    second.attend()
    side.wait_stream(main)
    with torch.cuda.stream(side), watch(TOKENS):
        second.to_tokens()
    main.wait_stream(side)


@cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    """A stream of high priority for exchanges: on Hopper, attention's thread blocks keep their multiprocessors."""
    return torch.cuda.Stream(device, priority=-1)
