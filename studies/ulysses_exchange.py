# SPDX-License-Identifier: Apache-2.0
"""What does the exchange around a routed attention cost on several GPUs? Wan 14B's layer at 77x720x1280.

    python studies/ulysses_exchange.py                 # on 2 and 4 GPUs, one process each
    python studies/ulysses_exchange.py --ranks 2 --heads 24 --grid 30,45,80 --text 256

Compared are `torch.ops.vorta.ulysses_attention` (one operator: kernels that pack and unpack, NCCL called directly) and
`torch.distributed.all_to_all_single` with torch's own permutations around it. Both are checked against the attention of
one GPU first. Milliseconds are those of the slowest rank; a mean over calls that follow each other.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from vorta_trt.benchmarks.harness import environment, write_result
from vorta_trt.model import AttentionGeometry, routed_attention
from vorta_trt.model.parallel.placement import BranchCosts, head_order
from vorta_trt.model.parallel.ulysses_attention import shard_tokens, ulysses_attention
from vorta_trt.plugins import load_library
from vorta_trt.plugins.communicator import communicator, create_id

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"
HEAD_DIM = 128


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 4], help="numbers of GPUs [2 4]")
    parser.add_argument("--grid", default="20,45,80", help="frames, height and width in tokens [20,45,80]")
    parser.add_argument("--heads", type=int, default=40)
    parser.add_argument("--text", type=int, default=0, help="text tokens in the attention [0]")
    parser.add_argument("--calls", type=int, default=10, help="calls that are timed together [10]")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the result")
    arguments = parser.parse_args()
    figures: dict[str, Any] = {"environment": environment(), "arguments": vars(arguments) | {"output": None}}
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    os.environ.setdefault("MASTER_PORT", "29517")
    for ranks in arguments.ranks:
        if torch.cuda.device_count() < ranks:
            print(f"{ranks} GPUs: this machine has {torch.cuda.device_count()}")
            continue
        answers = torch.multiprocessing.get_context("spawn").SimpleQueue()
        torch.multiprocessing.spawn(measure, (ranks, create_id(load_library()), arguments, answers), nprocs=ranks)
        figures[f"{ranks} GPUs"] = answers.get()
        print(ranks, "GPUs:", figures[f"{ranks} GPUs"], flush=True)
    print(write_result(arguments.output, "ulysses-exchange", figures))


def measure(rank: int, ranks: int, identity: bytes, arguments: argparse.Namespace, answers: Any) -> None:
    torch.cuda.set_device(rank)
    dist.init_process_group("nccl", rank=rank, world_size=ranks, device_id=torch.device("cuda", rank))
    with communicator(load_library(), identity, ranks, rank), torch.inference_mode():
        found = figures_of(rank, ranks, arguments)
        torch.cuda.synchronize()
    everyone: list[Any] = [None] * ranks
    dist.all_gather_object(everyone, found)
    if rank == 0:
        answers.put({key: max(each[key] for each in everyone) for key in found})
    dist.destroy_process_group()


def figures_of(rank: int, ranks: int, arguments: argparse.Namespace) -> dict[str, float]:
    geometry = geometry_of(arguments)
    generator = torch.Generator("cuda").manual_seed(7)
    heads, size, video = arguments.heads, shard_tokens(geometry, ranks), geometry.video_tokens
    whole = [
        torch.randn((1, geometry.tokens, heads, HEAD_DIM), generator=generator, device="cuda", dtype=torch.bfloat16)
        for _ in range(3)
    ]  # [1, S+T, N, D] each
    routes = (torch.arange(heads, device="cuda") % 2 + 1).int()[None]  # [1, N], half coreset, half sliding
    order = head_order(routes, BranchCosts.of(geometry), ranks).int()
    length = torch.full((1,), arguments.text, dtype=torch.int32, device="cuda") if arguments.text else None
    rows = [*range(rank * size, min((rank + 1) * size, video))]
    wanted = routed_attention(*whole, routes, geometry, length)
    scale = wanted.abs().max().item()
    text = range(video, geometry.tokens)
    index = torch.tensor([*rows, *[0] * (size - len(rows)), *text], device="cuda")
    mine = [tensor[:, index] for tensor in whole]  # [1, X+T, N, D]
    wanted = wanted[:, index]
    del whole
    kept = torch.tensor([*range(len(rows)), *range(size, size + arguments.text)], device="cuda")

    def ours() -> Tensor:
        return ulysses_attention(*mine, routes, order, geometry, ranks, length)

    peer = Peer(rank, ranks, geometry, order, length)

    def theirs() -> Tensor:
        return peer(*mine, routes)

    own_order = order[rank * heads // ranks : (rank + 1) * heads // ranks].long()
    received = peer.gathered(*mine)  # [S+T, 3, H, D]
    own_routes = routes[:, own_order].contiguous()

    def attention() -> Tensor:
        return routed_attention(*(received[None, :, i] for i in range(3)), own_routes, geometry, length)

    graph, captured = torch.cuda.CUDAGraph(), ours()
    with torch.cuda.graph(graph):
        captured = ours()

    def replayed() -> Tensor:
        graph.replay()
        return captured

    found: dict[str, float] = {}
    ways: dict[str, Callable[[], Tensor]] = {"operator": ours, "operator in a graph": replayed, "torch": theirs}
    for name, way in ways.items():
        difference = (way()[:, kept].float() - wanted[:, kept].float()).abs().max().item()
        found[f"{name}: largest difference / largest value"] = difference / scale
    for name, way in {"attention alone": attention, **ways}.items():
        found[f"{name} ms"] = milliseconds(way, arguments.calls)
    found["operator: exchange, pack and unpack ms"] = found["operator ms"] - found["attention alone ms"]
    found["torch: exchange and permutations ms"] = found["torch ms"] - found["attention alone ms"]
    found |= kernels(ours, arguments.calls)
    sent = (ranks - 1) / ranks * size * 3 * heads * HEAD_DIM * 2
    found["GB that a rank sends as Q, K, V"] = sent / 1e9
    return found


def geometry_of(arguments: argparse.Namespace) -> AttentionGeometry:
    grid = tuple(map(int, arguments.grid.split(",")))
    tile = (5 if grid[0] % 5 == 0 and grid[0] < 30 else 6, 9, 8)
    return AttentionGeometry(grid, tile, (3, 3, 3), (2, 3, 2), 6, "key" if arguments.text else "query", arguments.text)


class Peer:
    """The same exchange with torch: `all_to_all_single`, and indexing for the permutations. Batch 1, full shards."""

    def __init__(
        self, rank: int, ranks: int, geometry: AttentionGeometry, order: Tensor, length: Tensor | None
    ) -> None:
        self.rank, self.ranks, self.geometry, self.length = rank, ranks, geometry, length
        self.order, self.inverse = order.long(), order.argsort()
        self.size = shard_tokens(geometry, ranks)

    def gathered(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """[S+T, 3, H, D] of this rank's heads."""
        heads = query.shape[2] // self.ranks
        packed = torch.stack((query[0], key[0], value[0]), dim=1).index_select(2, self.order)  # [X+T, 3, N, D]
        packed = packed.unflatten(2, (self.ranks, heads))  # [X+T, 3, P, H, D]
        sent = packed[: self.size].permute(2, 0, 1, 3, 4).contiguous()  # [P, X, 3, H, D]
        received = torch.empty_like(sent)
        dist.all_to_all_single(received, sent)
        video = received.flatten(0, 1)[: self.geometry.video_tokens]
        return torch.cat([video, packed[self.size :, :, self.rank]]) if self.geometry.text_tokens else video

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, routes: Tensor) -> Tensor:
        tokens = self.gathered(query, key, value)
        heads, video = tokens.shape[2], self.geometry.video_tokens
        mine = self.order[self.rank * heads : (self.rank + 1) * heads]
        parts = (tokens[None, :, i] for i in range(3))
        out = routed_attention(*parts, routes[:, mine].contiguous(), self.geometry, self.length)[0]  # [S+T, H, D]
        sent = out.new_empty((self.ranks * self.size, *out.shape[1:])) if video % self.ranks else out[:video]
        if video % self.ranks:
            sent[:video] = out[:video]
        received = torch.empty_like(sent)
        dist.all_to_all_single(received, sent)
        rows = received.unflatten(0, (self.ranks, self.size)).transpose(0, 1)  # [X, P, H, D]
        if self.geometry.text_tokens:
            text = out.new_empty((self.ranks, self.geometry.text_tokens, *out.shape[1:]))
            dist.all_gather_into_tensor(text, out[video:].contiguous())
            rows = torch.cat([rows, text.transpose(0, 1)])
        return rows.flatten(1, 2).index_select(1, self.inverse)[None]  # [1, X+T, N, D]


def milliseconds(run: Callable[[], Tensor], calls: int) -> float:
    for _ in range(3):
        run()
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    dist.barrier()
    torch.cuda.synchronize()
    start.record()
    for _ in range(calls):
        run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / calls


def kernels(run: Callable[[], Tensor], calls: int) -> dict[str, float]:
    """Milliseconds of a call by kernel; those of NCCL include the wait for the slowest rank."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
        for _ in range(calls):
            run()
        torch.cuda.synchronize()
    groups = {"unpack_kernel": "unpack", "pack_kernel": "pack", "nccl": "NCCL"}
    found = dict.fromkeys((f"kernel {name} ms" for name in groups.values()), 0.0)
    for event in profiler.key_averages():
        for pattern, name in groups.items():
            if pattern in event.key:
                found[f"kernel {name} ms"] += event.device_time_total / 1000 / calls
                break
    return found


if __name__ == "__main__":
    main()
