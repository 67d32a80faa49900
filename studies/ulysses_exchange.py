# SPDX-License-Identifier: Apache-2.0
"""What does the exchange around a routed attention cost on several GPUs? Wan 14B's layer at 77x720x1280.

    python studies/ulysses_exchange.py                 # on 2 and 4 GPUs, one process each
    python studies/ulysses_exchange.py --ranks 2 --heads 24 --grid 30,45,80 --text 256
    python studies/ulysses_exchange.py --one-gpu       # pack, attention and unpack of rank 0, without the exchange

The study compares `torch.ops.vorta.ulysses_attention` (one operator: kernels that pack and unpack, NCCL called
directly) with `sharded_attention`, which indexes with torch and calls `torch.distributed.all_to_all_single`. Both are
checked against the attention of one GPU first. Milliseconds are those of the slowest rank, a mean over consecutive
calls.
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
from torch.multiprocessing.spawn import spawn

from vorta_trt.benchmarks.harness import environment, write_result
from vorta_trt.model import AttentionGeometry, routed_attention
from vorta_trt.model.parallel.attention import sharded_attention
from vorta_trt.model.parallel.exchange import HeadExchange
from vorta_trt.model.parallel.placement import BranchCosts, head_order
from vorta_trt.model.parallel.shards import TokenShards
from vorta_trt.model.parallel.ulysses_attention import ulysses_attention
from vorta_trt.plugins import Problem, Tensors, load_library
from vorta_trt.plugins.communicator import communicator, create_id
from vorta_trt.plugins.operator_calls import enqueue
from vorta_trt.plugins.ulysses_attention import UlyssesAttentionParams, workspace_size

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"
HEAD_DIM = 128


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 4], help="numbers of GPUs [2 4]")
    parser.add_argument("--grid", default="20,45,80", help="frames, height and width in tokens [20,45,80]")
    parser.add_argument("--heads", type=int, default=40)
    parser.add_argument("--text", type=int, default=0, help="text tokens in the attention [0]")
    parser.add_argument("--calls", type=int, default=10, help="calls that are timed together [10]")
    parser.add_argument("--one-gpu", action="store_true", help="time what rank 0 does, without the exchange")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the result")
    arguments = parser.parse_args()
    figures: dict[str, Any] = {"environment": environment(), "arguments": vars(arguments) | {"output": None}}
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    os.environ.setdefault("MASTER_PORT", "29517")
    for ranks in arguments.ranks:
        if arguments.one_gpu:
            figures[f"rank 0 of {ranks}"] = rehearsed(ranks, arguments)
            print(f"rank 0 of {ranks}:", figures[f"rank 0 of {ranks}"], flush=True)
            continue
        if torch.cuda.device_count() < ranks:
            print(f"{ranks} GPUs: this machine has {torch.cuda.device_count()}")
            continue
        answers = torch.multiprocessing.get_context("spawn").SimpleQueue()
        spawn(measure, (ranks, create_id(load_library()), arguments, answers), nprocs=ranks)
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
        answers.put({key: max(each.get(key, 0.0) for each in everyone) for key in found})
    dist.destroy_process_group()


def figures_of(rank: int, ranks: int, arguments: argparse.Namespace) -> dict[str, float]:
    geometry = geometry_of(arguments)
    generator = torch.Generator("cuda").manual_seed(7)
    heads, shards = arguments.heads, TokenShards(geometry.video_tokens, ranks, rank)
    shape = (1, geometry.tokens, heads, HEAD_DIM)
    query, key, value = (
        torch.randn(shape, generator=generator, device="cuda", dtype=torch.bfloat16) for _ in range(3)
    )  # [1, S+T, N, D] each
    routes = (torch.arange(heads, device="cuda") % 2 + 1).int()[None]  # [1, N], half coreset, half sliding
    order = head_order(routes, BranchCosts.of(geometry), ranks)
    length = torch.full((1,), arguments.text, dtype=torch.int32, device="cuda") if arguments.text else None
    whole = routed_attention(query, key, value, routes, geometry, length)
    scale, wanted = whole.abs().max().item(), shards.own(whole)
    query, key, value = shards.own(query), shards.own(key), shards.own(value)  # [1, X+T, N, D] each
    del whole
    order32 = order.int()

    def ours() -> Tensor:
        return ulysses_attention(query, key, value, routes, order32, geometry, ranks, length)

    group = dist.new_group()
    assert isinstance(group, dist.ProcessGroup)

    def theirs() -> Tensor:
        out: Tensor = sharded_attention(query, key, value, routes, order, geometry, group, length)
        return out

    exchange = HeadExchange(group, shards, order)
    all_query, all_key, all_value = exchange.to_heads(query, key, value)  # [1, S+T, H, D] each
    own_routes = routes[:, exchange.own].contiguous()

    def attention() -> Tensor:
        return routed_attention(all_query, all_key, all_value, own_routes, geometry, length)

    captured, graph = ours(), torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = ours()

    def replayed() -> Tensor:
        graph.replay()
        return captured

    found: dict[str, float] = {}
    ways: dict[str, Callable[[], Tensor]] = {"operator": ours, "operator in a graph": replayed, "torch": theirs}
    for name, way in ways.items():
        difference = (way().float() - wanted.float()).abs().max().item()
        found[f"{name}: largest difference / largest value"] = difference / scale
    for name, way in {"attention alone": attention, **ways}.items():
        found[f"{name} ms"] = milliseconds(way, arguments.calls)
    for name in ways:
        found[f"{name} without attention ms"] = found[f"{name} ms"] - found["attention alone ms"]
    for name, way in {"operator": ours, "torch": theirs}.items():
        found |= kernels(name, way, arguments.calls)
    found["GB that a rank sends as Q, K, V"] = (ranks - 1) / ranks * shards.count * 3 * heads * HEAD_DIM * 2 / 1e9
    return found


def rehearsed(ranks: int, arguments: argparse.Namespace) -> dict[str, float]:
    """Milliseconds of the kernels around the attention, and their bytes per second, read and written."""
    geometry, library, heads = geometry_of(arguments), load_library(), arguments.heads
    shards = TokenShards(geometry.video_tokens, ranks)
    shape = (1, shards.rows + geometry.text_tokens, heads, HEAD_DIM)
    tensors = [torch.randn(shape, device="cuda", dtype=torch.bfloat16) for _ in range(4)]  # Q, K, V and the output
    routes = (torch.arange(heads, device="cuda") % 2 + 1).int()[None]
    order = head_order(routes, BranchCosts.of(geometry), ranks).int()
    length = torch.full((1,), arguments.text, dtype=torch.int32, device="cuda") if arguments.text else None
    params = UlyssesAttentionParams(
        ranks=ranks,
        rehearsal=1,
        attention=Problem(dtype="bfloat16", batch=1, heads=heads, head_dim=HEAD_DIM, **geometry.to_dict()),
        head_order=order.data_ptr(),
    )
    size = workspace_size(library, params)
    workspace = torch.zeros(size, dtype=torch.uint8, device="cuda")
    names = ("query", "key", "value", "output")
    params.tensors = Tensors(
        routes=routes.data_ptr(),
        text_length=None if length is None else length.data_ptr(),
        workspace=workspace.data_ptr(),
        workspace_bytes=size,
        **{name: tensor.data_ptr() for name, tensor in zip(names, tensors, strict=True)},
        **{f"{name}_stride": tensors[0].stride()[:3] for name in names},
    )

    def run() -> Tensor:
        enqueue(library, params, torch.cuda.current_stream().cuda_stream)
        return tensors[3]

    run()
    found = kernels("operator", run, arguments.calls)
    moved = 2 * tensors[0].numel() * 2 / 1e9  # GB read and written of one tensor
    found["pack GB/s"] = 3 * moved / found["operator: kernels pack ms"] * 1000
    found["unpack GB/s"] = moved / found["operator: kernels unpack ms"] * 1000
    found["workspace GB"] = size / 1e9
    return found


def geometry_of(arguments: argparse.Namespace) -> AttentionGeometry:
    frames, height, width = map(int, arguments.grid.split(","))
    tile = (6 if frames % 6 == 0 else 5, 9, 8)
    return AttentionGeometry(
        (frames, height, width), tile, (3, 3, 3), (2, 3, 2), 6, "key" if arguments.text else "query", arguments.text
    )


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
    return float(start.elapsed_time(end)) / calls


def kernels(way: str, run: Callable[[], Tensor], calls: int) -> dict[str, float]:
    """Milliseconds of a call by kernel; those of NCCL include the wait for the slowest rank."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
        for _ in range(calls):
            run()
        torch.cuda.synchronize()
    groups = {"unpack_kernel": "unpack", "pack_kernel": "pack", "nccl": "NCCL", "attention": "attention"}
    groups |= {"coreset": "coreset", "index": "index", "copy": "copy"}
    found: dict[str, float] = {}
    for event in profiler.key_averages():
        name = next((name for pattern, name in groups.items() if pattern in event.key.lower()), None)
        if name is not None and event.device_time_total:
            label = f"{way}: kernels {name} ms"
            found[label] = found.get(label, 0.0) + event.device_time_total / 1000 / calls
    return found


if __name__ == "__main__":
    main()
