# SPDX-License-Identifier: Apache-2.0
"""One rank of the tests of `vorta::ulysses_attention`: it compares its rows with the attention of one GPU."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vorta_trt.model import AttentionGeometry, routed_attention
from vorta_trt.model.parallel.shards import TokenShards
from vorta_trt.model.parallel.ulysses_attention import gather_tokens, ulysses_attention
from vorta_trt.plugins import LibraryError, load_library
from vorta_trt.plugins.communicator import check, communicator, rank_of


@dataclass(frozen=True)
class Case:
    """One call; `keys` says whether the similarities of queries or of keys choose a coreset's keys."""

    grid: tuple[int, int, int]
    text: int = 0
    batch: int = 1
    heads: int = 8
    head_dim: int = 128
    keys: str = "query"
    precision: str = "same"

    @property
    def geometry(self) -> AttentionGeometry:
        return AttentionGeometry(self.grid, (2, 3, 4), (3, 1, 3), (2, 3, 2), 6, self.keys, self.text)


CASES = (
    Case((4, 6, 8)),
    Case((5, 7, 9), text=17, batch=2, head_dim=64, keys="key"),
    Case((3, 5, 11), text=5, head_dim=96, heads=4),
    Case((1, 1, 5), batch=3),  # of four ranks the last has no tokens
    Case((1, 1, 1), text=4, head_dim=256),
    Case((5, 12, 20), text=30, heads=24, keys="key"),
    Case((5, 12, 20), heads=40, precision="fp8"),
)


def same_on_all_ranks(case: Case, seed: int) -> tuple[Tensor, ...]:
    """Query, key and value [B, S+T, N, D], routes [B, N], a permutation [N], and text lengths [B]."""
    generator = torch.Generator().manual_seed(seed)
    shape = (case.batch, case.geometry.tokens, case.heads, case.head_dim)
    tokens = [torch.randn(shape, generator=generator).bfloat16() for _ in range(3)]
    routes = torch.randint(0, 3, (case.batch, case.heads), generator=generator)
    order = torch.randperm(case.heads, generator=generator)
    length = torch.randint(1, max(case.text, 1) + 1, (case.batch,), generator=generator)
    return *(tensor.cuda() for tensor in tokens), *(tensor.int().cuda() for tensor in (routes, order, length))


def shard(tokens: Tensor, case: Case, ranks: int, rank: int) -> Tensor:
    """The rows [B, X+T, N, D] of this rank, with NaN as padding."""
    shards = TokenShards(case.geometry.video_tokens, ranks, rank)
    own = shards.own(tokens)
    own[:, shards.count : shards.rows] = float("nan")
    return own


def difference(case: Case, ranks: int, rank: int, seed: int, captured: bool) -> float:
    """Largest difference to the attention of one GPU, over the largest value; infinite where padding is not 0."""
    *tokens, routes, order, length = same_on_all_ranks(case, seed)
    text_length = length if case.text else None
    mine = [shard(each, case, ranks, rank) for each in tokens]

    def call() -> Tensor:
        return ulysses_attention(
            *mine, routes, order, case.geometry, ranks, text_length, attention_precision=case.precision
        )

    if captured:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = call()
        routes.copy_(routes.roll(1, dims=1))  # a step with other routes, and heads in another order
        order.copy_(order.flip(0))
        out.fill_(float("nan"))
        graph.replay()
    else:
        out = call()
    whole = routed_attention(
        *tokens, routes, case.geometry, text_length, attention_precision=case.precision
    )  # [B, S+T, N, D]
    wanted = TokenShards(case.geometry.video_tokens, ranks, rank).own(whole)
    assert gather_tokens(wanted[:, : -case.text or None].flatten(2), case.geometry.video_tokens, ranks).equal(
        whole[:, : case.geometry.video_tokens].flatten(2)
    )
    worst = (out.double() - wanted.double()).abs().max() / whole.double().abs().max()
    return worst.nan_to_num(float("inf")).item()


def run(rank: int, ranks: int, identity: bytes, seed: int, path: str, one_gpu: bool) -> None:
    """Runs one process of the test; writes its results to a file named `path` and the rank."""
    torch.cuda.set_device(0 if one_gpu else rank)
    library = load_library()
    with communicator(library, identity, ranks, rank):
        found = {
            f"{case} captured={captured}": difference(case, ranks, rank, seed + i, captured)
            for i, case in enumerate(CASES)
            for captured in (False, *([] if one_gpu else [True]))
            if case.heads % ranks == 0
            and (case.precision == "same" or torch.cuda.get_device_capability() >= (8, 9))  # GPUs with fp8 kernels
        }
        check(library, ranks)
        assert rank_of(library, ranks) == rank
        torch.cuda.synchronize()
    try:
        difference(CASES[0], ranks, rank, seed, False)
    except LibraryError as error:
        assert f"no communicator of {ranks} GPUs" in str(error)
    else:
        raise AssertionError("a call without a communicator did not fail")
    torch.save(found, f"{path}{rank}")
