# SPDX-License-Identifier: Apache-2.0
"""Does an engine's GPU memory grow? Requests in a loop, and engines opened and closed; prints and keeps the figures.

    python studies/leak_check.py                       # a tiny engine, with whichever TensorRT runs here
    python studies/leak_check.py wan.bundle --requests 200 --openings 3

The inputs are random, of the smallest and the largest batch that the engine takes, in turns. Memory is what the driver
counts as used on the whole GPU, torch's cache given back first: nothing else may run on it. Host memory is resident.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tiny_engine import build_tiny_engine, runnable_flavour

from vorta_trt.benchmarks.harness import write_result
from vorta_trt.model.precision import torch_dtype
from vorta_trt.runtime.engine import Engine

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"
GRANULE = 2 << 20  # bytes: what the driver hands out; more is growth
WARM_UP = 8  # requests: each batch is warmed up, captured and replayed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path, nargs="?", help="default: a tiny engine")
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--openings", type=int, default=5, help="how often the engine is opened and closed")
    parser.add_argument("--no-cuda-graph", dest="cuda_graph", action="store_false")
    parser.add_argument("--name", default="leak-check", help="of the file of results")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bundle = arguments.bundle or _tiny(Path(folder))
        figures = measure(bundle, arguments.requests, arguments.openings, arguments.cuda_graph)
    figures["bundle"] = "a tiny engine" if arguments.bundle is None else arguments.bundle.name
    print(json.dumps(figures, indent=2))
    print(f"written: {write_result(RESULTS, arguments.name, figures)}")
    grown = max(figures["growth_bytes_over_requests"], figures["growth_bytes_over_openings"])
    return 0 if grown < GRANULE else 1


def measure(bundle: Path, requests: int, openings: int, cuda_graph: bool) -> dict[str, Any]:
    """Growth of the used memory after warming up; samples are taken every tenth of the requests."""
    used = []
    for opening in range(openings + 1):  # the first one loads libraries
        with Engine(bundle, verify=opening == 0, cuda_graph=cuda_graph) as engine:
            request = _requests(engine)
            for number in range(WARM_UP):
                request(number)
            if opening == openings:
                samples = _samples(request, requests)
                flavour, on_gpu = engine.executor, engine.device_use()
                fallbacks = dict(engine.fallbacks.counts)
        used.append(_used_bytes())
    return {
        "executor": flavour,
        "cuda_graph": cuda_graph,
        "fallbacks": fallbacks,
        "requests": requests,
        "used_bytes_during_requests": [sample for sample, _ in samples],
        "growth_bytes_over_requests": samples[-1][0] - samples[0][0],
        "host_growth_bytes_over_requests": samples[-1][1] - samples[0][1],
        "engine_bytes": {"weights": on_gpu.weights, "scratch": on_gpu.scratch, "buffers": on_gpu.buffers},
        "openings": openings,
        "used_bytes_after_closing": used,
        "growth_bytes_over_openings": used[-1] - used[1],
    }


def _samples(request: Callable[[int], None], requests: int) -> list[tuple[int, int]]:
    samples = [(_used_bytes(), _resident_bytes())]
    for number in range(requests):
        request(number)
        if (number + 1) % max(requests // 10, 1) == 0 or number + 1 == requests:
            samples.append((_used_bytes(), _resident_bytes()))
    return samples


def _requests(engine: Engine) -> Callable[[int], None]:
    """A function that makes request number n with fresh random inputs, and uses the outputs."""
    sizes = [
        min((spec.minimum[0] for spec in engine.inputs if spec.minimum), default=1),
        max((spec.maximum[0] for spec in engine.inputs if spec.maximum), default=1),
    ]

    def request(number: int) -> None:
        batch = sizes[number % 2]
        inputs = {
            spec.name: _random([batch if isinstance(size, str) else size for size in spec.shape], spec.dtype)
            for spec in engine.inputs
            if spec.name not in ("tau", "route_override")
        }
        for output in engine(step=number, **inputs).values():
            output.float().sum().item()

    return request


def _random(shape: list[int], dtype: str) -> torch.Tensor:
    if dtype.startswith("int"):  # a mask of valid text tokens
        return torch.ones(shape, dtype=torch_dtype(dtype), device="cuda")
    return torch.randn(shape, device="cuda").to(torch_dtype(dtype))


def _used_bytes() -> int:
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info()
    return total - free


def _resident_bytes() -> int:
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields["VmRSS"].split()[0]) * 1024


def _tiny(folder: Path) -> Path:
    if (flavour := runnable_flavour()) is None:
        sys.exit("no TensorRT both builds and runs on this machine (vorta-trt doctor says why); give a bundle")
    return build_tiny_engine(folder / "tiny.bundle", flavour).path


if __name__ == "__main__":
    sys.exit(main())
