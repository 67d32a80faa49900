# SPDX-License-Identifier: Apache-2.0
"""Does an engine that several GPUs share give the sample of one GPU, and how fast? Blocks of Wan 14B in TensorRT 8.6.

    python studies/ulysses_engine.py --work /big/disk --gpus 2 --layers 2                   # everything
    python studies/ulysses_engine.py --work /big/disk --gpus 2 --layers 2 --stage build     # or step by step
    python studies/ulysses_engine.py --work /big/disk --gpus 2 --layers 2 --stage run

The same weights are exported and built twice, for one GPU and for P, as in `tensorrt8_chain_14b.py`. Then P processes
start. Rank 0 runs the engine of one GPU by itself; then all ranks run the shared engine together, without and with a
CUDA graph, while the routes change. The sample of the shared engine may be at most twice as far from torch's as that of
the engine of one GPU, and must have the same bits on every rank.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import tensorrt8_chain_14b as chain
import torch
import torch.distributed as dist
from torch import Tensor
from torch.multiprocessing.spawn import spawn

from vorta_trt.benchmarks.harness import write_result
from vorta_trt.benchmarks.step.cases import StepCase, mixed_routes, select_case
from vorta_trt.benchmarks.step.measure import difference
from vorta_trt.engines import Bundle
from vorta_trt.model.parallel.groups import EVERYONE
from vorta_trt.runtime import Engine
from vorta_trt.runtime.parallel.engine_ranks import engine_ranks
from vorta_trt.runtime.parallel.world import INTERFACES, LOOPBACK

ROUTES = ("50/50", "0/100", "10/45/45")
CALLS = 5  # that are timed together
TIMESTEP = 700.0
LIMIT = 60.0  # seconds that an engine's run may take


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for ONNX files and bundles; kept")
    parser.add_argument("--gpus", type=int, default=2, help="P [2]")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--model", default="wan-14b", help="a model of `bench step` [wan-14b]")
    parser.add_argument("--fp8", action="store_true", help="fp8 products of linear layers, and of routed attention")
    parser.add_argument("--stage", choices=("all", *chain.STAGES), default="all")
    parser.add_argument("--results", type=Path, default=chain.RESULTS)
    arguments = parser.parse_args()
    stages = chain.STAGES if arguments.stage == "all" else (arguments.stage,)
    case = select_case(arguments.model, arguments.layers)
    arguments.work.mkdir(parents=True, exist_ok=True)
    name = f"{arguments.model}-{arguments.layers}{'-fp8' if arguments.fp8 else ''}"
    files = {gpus: arguments.work / f"{name}-gpus{gpus}.onnx" for gpus in (1, arguments.gpus)}
    for gpus, file in files.items():
        if "export" in stages:
            chain.export(file, case, arguments.fp8, gpus)
        if "build" in stages:
            chain.build(file, file.with_suffix(".bundle"), None, None)
    if "run" not in stages:
        return 0
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    os.environ.setdefault("MASTER_PORT", "29519")
    for interface in INTERFACES:
        os.environ.setdefault(interface, LOOPBACK)
    answers = torch.multiprocessing.get_context("spawn").SimpleQueue()
    bundles = [file.with_suffix(".bundle") for file in files.values()]
    spawn(measure, (arguments.gpus, bundles, case, answers), nprocs=arguments.gpus)
    figures = answers.get() | {"case": str(case), "gpus": arguments.gpus, "fp8": arguments.fp8}
    print(f"written: {write_result(arguments.results, f'ulysses-engine-{name}', figures)}")
    return 0 if figures["right"] else 1


def measure(rank: int, ranks: int, bundles: list[Path], case: StepCase, answers: Any) -> None:
    """Work of every process; rank 0 puts the figures into `answers`."""
    torch.cuda.set_device(rank)
    device = torch.device("cuda", rank)
    dist.init_process_group("cpu:gloo,cuda:nccl", rank=rank, world_size=ranks, device_id=device)
    lone, shared = bundles
    found: dict[str, Any] = {"rows": [], "right": True}
    expected: dict[str, Tensor] = {}  # torch's
    inputs: dict[str, Tensor] = {}
    if rank == 0:
        subject = chain.make(case)
        inputs = {name: value for name, value in subject.inputs.items() if name not in chain.ROUTING}
        for routes in ROUTES:
            override = mixed_routes(routes, subject.routed.num_layers, subject.routed.num_heads).cuda()
            step = partial(subject.runs(chain.OURS, override), TIMESTEP)
            expected[routes] = step().cpu()
            found["rows"].append({"what": "torch, 1 GPU", "routes": routes, "ms": milliseconds(step)})
        del subject, step
        chain.release()
        samples = rows_of(lone, "engine of 1 GPU", device, inputs, expected, True, found)
        own = {routes: difference(samples[routes], expected[routes]) for routes in ROUTES}
    shapes = [{name: (tuple(value.shape), value.dtype) for name, value in inputs.items()}]
    dist.broadcast_object_list(shapes, src=0)
    for name, (shape, dtype) in shapes[0].items():
        inputs.setdefault(name, torch.empty(shape, dtype=dtype, device=device))
        dist.broadcast(inputs[name], src=0)
    library = Bundle.open(shared, verify=False).plugin_library(rank)
    assert library is not None
    with engine_ranks(library, EVERYONE, device, LIMIT):
        for graph in (False, True):
            what = f"engine of {ranks} GPUs{', in a graph' if graph else ''}"
            samples = rows_of(shared, what, device, inputs, expected, graph, found)
            for routes, sample in samples.items():
                sums: list[Any] = [None] * ranks
                dist.all_gather_object(sums, sample.double().sum().item())
                if rank == 0:
                    same = len(set(sums)) == 1
                    apart = difference(sample, expected[routes])
                    right = same and apart <= max(2 * own[routes], 1e-4)
                    found["right"] &= right
                    found["rows"][-1 - [*samples][::-1].index(routes)]["right"] = right
                    print(what, routes, f"{apart:.2e}, 1 GPU {own[routes]:.2e}, same on all ranks: {same}", flush=True)
    if rank == 0:
        answers.put(found)
    dist.barrier()
    dist.destroy_process_group()


def rows_of(
    bundle: Path,
    what: str,
    device: torch.device,
    inputs: dict[str, Tensor],
    expected: dict[str, Tensor],
    graph: bool,
    found: dict[str, Any],
) -> dict[str, Tensor]:
    """Samples of all routes, whose rows go to `found`."""
    samples = {}
    with Engine(bundle, device=str(device), cuda_graph=graph, verify=False) as engine:
        metadata = engine.metadata
        assert metadata is not None
        for routes in ROUTES:
            override = mixed_routes(routes, metadata.num_layers, metadata.num_heads).cuda()
            tau, timestep = torch.tensor([0.3]).cuda(), torch.full((1,), TIMESTEP, device=device)
            given = {**inputs, "tau": tau, "route_override": override, "timestep": timestep}

            def run(given: dict[str, Tensor] = given) -> Tensor:
                sample: Tensor = engine(**given)["sample"]
                return sample

            for _ in range(3):  # heads as they are; placed by the routes; captured
                sample = run()
            samples[routes] = sample.cpu()
            row = {"what": what, "routes": routes, "ms": milliseconds(run), "memory": str(engine.device_use())}
            if routes in expected:
                row["difference"] = difference(samples[routes], expected[routes])
            found["rows"].append(row)
            if device.index == 0:
                print(row, flush=True)
    return samples


def milliseconds(run: Callable[[], object]) -> float:
    """Mean milliseconds of several consecutive calls on this rank; the other ranks make as many."""
    run()
    torch.cuda.synchronize()
    begun = time.perf_counter()
    for _ in range(CALLS):
        run()
    torch.cuda.synchronize()
    return round(1e3 * (time.perf_counter() - begun) / CALLS, 3)


if __name__ == "__main__":
    sys.exit(main())
